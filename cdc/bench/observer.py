"""Watches embeddings appear: ``python -m cdc.bench.observer AFTER ROWS``, with the URL on standard input.

Standard output gets a line when it watches, and a JSON object of ids to times when all have been seen.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Final

import psycopg

PAUSE_S: Final = 0.0005
PATIENCE_S: Final = 30.0

_NEW: Final = "SELECT id FROM articles_embeddings WHERE id > %s"


def observe(url: str, after: int, rows: int) -> dict[int, float]:
    """Return when each of the ``rows`` embeddings after the id ``after`` was first seen, seconds since the epoch.

    What has not come half a minute after the last one that came is left out.
    """
    seen: dict[int, float] = {}
    with psycopg.connect(url, autocommit=True) as connection:
        print("watching", flush=True)
        low, deadline = after, time.monotonic() + PATIENCE_S
        while len(seen) < rows and time.monotonic() < deadline:
            found = connection.execute(_NEW, (low,), prepare=True).fetchall()
            now = time.time()
            for (id,) in found:
                seen.setdefault(id, now)
            if found:
                deadline = time.monotonic() + PATIENCE_S
            while low + 1 in seen:
                low += 1
            time.sleep(PAUSE_S)
    return seen


if __name__ == "__main__":
    print(json.dumps(observe(sys.stdin.readline().strip(), int(sys.argv[1]), int(sys.argv[2]))))
