"""From the commit of a row to the moment its embedding can be read, at a steady 200 rows a second.

One session inserts a row every 5 ms, each in a transaction of its own. Another, in a process of its own, asks again and
again which embeddings are new, as a user would see it, and notes when it first saw each. The commit's time is the
server's own (``track_commit_timestamp``), taken before the commit is flushed, so that the source row's flush counts.
The observer's round trip and its pause of half a millisecond are part of what it reports: the truth is a little better.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Final

import numpy as np

from cdc.bench.figures import Figure, WrongResult
from cdc.bench.scene import Scene, scene
from cdc.testing.cluster import Cluster

RATE: Final = 200
SECONDS: Final = 20
P50_MS, P99_MS = 8.0, 30.0

_COMMITS: Final = """
SELECT id, EXTRACT(EPOCH FROM pg_catalog.pg_xact_commit_timestamp(xmin))::float8 FROM articles WHERE id > %s
"""


def run(cluster: Cluster, rows: int | None, repeat: int) -> list[Figure]:
    """Measure; return the median and the 99th percentile of each run, in milliseconds.

    Raises:
        WrongResult: a row's embedding was never seen, or differs afterwards.
    """
    rows = rows or RATE * SECONDS
    with scene(cluster) as stage:
        stage.insert(1, 1000)
        stage.settle()
        with stage.consumer() as consumer:
            consumer.wait_for("reconcile_finished", 60.0)
            _once(stage, 1000, RATE)  # plans, caches and pages are warm from here on
            runs = [_once(stage, 1000 + RATE + turn * rows, rows) for turn in range(repeat)]
            stage.check(consumer)
    label = f"commit to visible at {RATE} rows/s"
    return [
        Figure(f"{label}, p50", "ms", tuple(float(np.percentile(ms, 50)) for ms in runs), P50_MS, "lower"),
        Figure(f"{label}, p99", "ms", tuple(float(np.percentile(ms, 99)) for ms in runs), P99_MS, "lower"),
    ]


def _once(stage: Scene, after: int, rows: int) -> list[float]:
    """Insert ``rows`` rows after the id ``after``, one every 5 ms; return how long each took to be visible, in ms."""
    command = [sys.executable, "-m", "cdc.bench.observer", str(after), str(rows)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as observer:
        assert observer.stdin is not None and observer.stdout is not None
        print(stage.database.url, file=observer.stdin, flush=True)  # not an argument: it holds a password
        observer.stdout.readline()
        _write(stage, after, rows)
        answer = observer.stdout.readline()
    if not answer:
        raise WrongResult("The observer ended early.")
    seen = {int(id): at for id, at in json.loads(answer).items()}
    commits = {id: at for id, at in stage.connection.execute(_COMMITS, (after,)) if id <= after + rows}
    missing = commits.keys() - seen.keys()
    if missing or len(commits) != rows:
        raise WrongResult(f"{len(missing)} of {rows} embeddings were not seen")
    return [(seen[id] - at) * 1000 for id, at in commits.items()]


def _write(stage: Scene, after: int, rows: int) -> None:
    begin = time.perf_counter()
    for row in range(rows):
        ahead = begin + row / RATE - time.perf_counter()
        if ahead > 0:
            time.sleep(ahead)
        stage.insert(after + 1 + row, 1)
