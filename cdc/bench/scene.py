"""The stage of the benchmarks that need a server: one cluster, a database per run, a table of rows of about 200 bytes.

The server beside us keeps PostgreSQL's defaults (``fsync`` and ``synchronous_commit`` on) but for more room between
checkpoints, so that none falls into a run, and commit timestamps, which the latency benchmark reads.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg

from cdc.bench.figures import WrongResult
from cdc.testing.cluster import Cluster
from cdc.testing.consumer import Consumer
from cdc.testing.database import Database

PIPELINE: Final = "public.articles"

SERVER: Final = {
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "shared_buffers": "256MB",
    "track_commit_timestamp": "on",
}

_TABLE: Final = """
CREATE TABLE articles (id bigint PRIMARY KEY, title text NOT NULL, body text NOT NULL,
                       changed_at timestamptz NOT NULL DEFAULT now(), views int NOT NULL DEFAULT 0);
CREATE PUBLICATION walvec FOR TABLE articles;
"""

_ROWS: Final = """
INSERT INTO articles (id, title, body, views)
SELECT i, 'The title of article number ' || i,
       'What there is to say in a sentence or two about article ' || i || ' and all that it is about', i % 1000
FROM generate_series({first}, {last}) AS i
"""

WAIT_S: Final = 600.0
"""The longest that one run may take, in seconds."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A database with an empty table ``articles`` in the publication ``walvec``."""

    database: Database
    connection: psycopg.Connection[Any]

    def insert(self, first: int, rows: int, *, per_commit: int | None = None) -> None:
        """Insert ``rows`` articles from the id ``first`` on, in one transaction or in many of ``per_commit`` rows."""
        last = first + rows - 1
        if per_commit is None:
            self.connection.execute(_ROWS.format(first=first, last=last))
            return
        upto = f"LEAST(b + {per_commit - 1}, {last})"
        loop = f"FOR b IN {first}..{last} BY {per_commit} LOOP {_ROWS.format(first='b', last=upto)}; COMMIT; END LOOP"
        self.connection.execute(f"DO $$ BEGIN {loop}; END $$")

    def settle(self) -> None:
        """Leave nothing for the server to catch up on while a run is timed."""
        self.connection.execute("VACUUM ANALYZE articles")
        self.connection.execute("CHECKPOINT")

    def consumer(self, **settings: str) -> Consumer:
        """Return a consumer of this database with the ``hash`` runtime, not yet started."""
        return Consumer(self.database.url, WALVEC_LOG_LEVEL="info", **settings)

    def one(self, query: str) -> Any:
        """Return the first column of the first row, None where there is no row."""
        row = self.connection.execute(query).fetchone()
        return None if row is None else row[0]

    def wait_for_embeddings(self, rows: int, consumer: Consumer) -> float:
        """Wait until ``rows`` embeddings are visible to this session; return the time, seconds since the epoch.

        The consumer's own count is read, which the transaction that writes the vectors keeps: reading it costs nothing,
        and :func:`check` counts the rows afterwards.

        Raises:
            WrongResult: the consumer ended, or did not get there in time.
        """
        return self._wait("SELECT embeddings FROM walvec.progress", rows, consumer)

    def wait_for_pending(self, rows: int, consumer: Consumer) -> float:
        """Wait until the consumer reports ``rows`` rows waiting; return the time.

        Raises:
            WrongResult: the consumer ended, or did not get there in time.
        """
        return self._wait("SELECT unprocessed FROM walvec.progress", rows, consumer)

    def _wait(self, query: str, rows: int, consumer: Consumer) -> float:
        deadline = time.monotonic() + WAIT_S
        while True:
            count = self._progress(query)
            now = time.time()
            if count >= rows:
                return now
            if consumer.process.poll() is not None:
                raise WrongResult(
                    f"The consumer ended with status {consumer.process.returncode}. {consumer.log[-800:]}"
                )
            if time.monotonic() > deadline:
                raise WrongResult(f"{count} of {rows} rows after {WAIT_S:.0f} s. {consumer.log[-800:]}")
            time.sleep(0.005)

    def _progress(self, query: str) -> int:
        try:
            return int(self.one(query) or 0)
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return 0  # the consumer has not made its tables yet

    def check(self, consumer: Consumer) -> None:
        """Compare source and embeddings, row by row, by hash.

        Raises:
            WrongResult: they differ.
        """
        consumer.sync(WAIT_S)
        for row in consumer.verify():
            wrong = {name: row[name] for name in ("missing", "stale", "orphaned", "duplicate") if row[name]}
            if wrong:
                raise WrongResult(f"{row['pipeline']}: of {row['rows']} rows, {wrong}")
        stored = self.one("SELECT count(*) FROM articles_embeddings")
        source = self.one("SELECT count(*) FROM articles")
        if stored != source:
            raise WrongResult(f"{source} rows, {stored} embeddings")


@contextmanager
def server(version: str) -> Iterator[Cluster]:
    """Run a PostgreSQL of this major version for a while."""
    with Cluster.create(version, settings=SERVER, fsync=True) as cluster:
        yield cluster.start()


@contextmanager
def scene(cluster: Cluster) -> Iterator[Scene]:
    """Make a scene, and remove it afterwards."""
    database = cluster.create_database(f"bench_{secrets.token_hex(4)}")
    try:
        with database.connect() as connection:
            connection.execute(_TABLE)
            yield Scene(database, connection)
    finally:
        database.drop()


def event_time(consumer: Consumer, name: str) -> float:
    """Return when the consumer logged the event ``name`` for the last time, seconds since the epoch."""
    consumer.wait_for(name, 60.0)
    stamps = [event["timestamp"] for event in consumer.events if event.get("event") == name]
    return datetime.fromisoformat(stamps[-1]).timestamp()
