"""`autotune-index --create-index` whose process is ended while its index is built on the user's table."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import Any

import psycopg
import pytest

from cdc.testing.database import Database
from tests.tuning.clusters import embeddings
from tests.tuning.test_autotune import fill, indexes, scratch

WAITS = "SELECT FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%%' AND wait_event = 'virtualxid'"
BUSY = "SELECT FROM pg_stat_activity WHERE application_name LIKE '%%autotune'"
WORDS = "autotune-index -t docs -c e --recall 80 --metric-kind cos"


def command(database: Database, *more: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "cdc.cli", *WORDS.split(), "-u", database.url, *more]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(db: psycopg.Connection[Any], query: str, found: bool, process: subprocess.Popen[str] | None = None) -> None:
    limit = time.monotonic() + 60
    while (db.execute(query).fetchone() is not None) is not found:
        assert time.monotonic() < limit and (process is None or process.poll() is None)
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_what_it_was_building_does_not_stay(database18: Database, number: signal.Signals) -> None:
    with database18.connect() as db, psycopg.connect(database18.url) as holder:
        fill(db, embeddings(600, seed=41))
        holder.execute("UPDATE docs SET id = id WHERE id = 1")
        process = command(database18, "--create-index")
        until(db, WAITS, True, process)
        process.send_signal(number)
        if number is signal.SIGKILL:
            process.wait(30)
        time.sleep(0.5)
        holder.commit()
        said = process.communicate(timeout=60)[0]
        assert process.returncode == (-number if number is signal.SIGKILL else 128 + number), said
        assert "Traceback" not in said
        until(db, BUSY, False)
        if number is signal.SIGKILL:
            again = command(database18)
            said = again.communicate(timeout=60)[0]
            assert again.returncode == 0, said
        assert (indexes(db), scratch(db)) == ([], [])
