"""Two databases on two PostgreSQL servers, five jobs each, one daemon: a server that is gone takes only its own along.

The servers are PostgreSQL 18 with pgvector, which holds the table of jobs too, and PostgreSQL 15 without. Each is
stopped as by a crash and started again, while writers go on on both.
"""

from __future__ import annotations

import contextlib
import secrets
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import psycopg
import pytest

from cdc.testing.cluster import Cluster
from cdc.testing.daemon import Daemon
from cdc.testing.database import Database
from inference.testing_api import FakeApi
from tests.acceptance.scene import World, converged, eventually, vector_of

FRESH_S = 1.0
"""What the median time from commit to vector must stay below, whatever the other server does."""

TABLES = """
CREATE TABLE docs (id serial PRIMARY KEY, title text, body text);
CREATE TABLE notes (key text PRIMARY KEY DEFAULT 'k:' || gen_random_uuid()::text, body text);
CREATE TABLE beats (id int PRIMARY KEY, body text);
INSERT INTO docs (title, body) SELECT 'title ' || i, 'body ' || i FROM generate_series(1, 200) AS i;
INSERT INTO notes (body) SELECT 'note ' || i FROM generate_series(1, 100) AS i;
INSERT INTO beats VALUES (1, 'beat');
"""

JOBS = (
    ("docs", "body", "v", "hash", 8),
    ("docs", "title", "title_v", "hash", 16),
    ("notes", "body", "v", "openai", 8),
    ("notes", "body", "w", "hash", 12),
    ("beats", "body", "v", "hash", 8),
)


@dataclass
class Site:
    """One target database, and the jobs that run there."""

    name: str
    database: Database
    jobs: list[int]
    writing: threading.Event
    writer: threading.Thread | None = None
    written: int = 0

    def write(self, seed: int) -> None:
        """Insert, update and delete until told to stop; while the server is away, wait for it."""
        rng = np.random.default_rng(seed)
        while self.writing.is_set():
            with contextlib.suppress(psycopg.Error), self.database.connect(connect_timeout=5) as db:
                while self.writing.is_set():
                    self._change(db, rng)
                    self.written += 1
                    time.sleep(0.01)  # the pace, about a hundred a second
            time.sleep(0.05)

    def _change(self, db: psycopg.Connection, rng: np.random.Generator) -> None:
        text, dice = f"{self.name} {self.written}", rng.random()
        if dice < 0.5:
            column = "title" if dice < 0.2 else "body"
            db.execute(f"UPDATE docs SET {column} = %s WHERE id = %s", [text, int(rng.integers(1, 250))])
        elif dice < 0.7:
            db.execute("INSERT INTO docs (title, body) VALUES (%s, %s)", [text, text if dice < 0.65 else None])
        elif dice < 0.9:
            db.execute("INSERT INTO notes (body) VALUES (%s)", [text])
        else:
            db.execute("DELETE FROM docs WHERE id = %s", [int(rng.integers(1, 250))])

    def freshness(self, changes: int = 12) -> list[float]:
        """Return the seconds from commit to vector, one change after the other."""
        took = []
        with self.database.connect() as db:
            for _ in range(changes):
                text = secrets.token_hex(8)
                db.execute("UPDATE beats SET body = %s", [text])
                began, wanted = time.monotonic(), vector_of(text)
                while not self._is(db, wanted):
                    assert time.monotonic() < began + 20, f"{self.name} stands still"
                    time.sleep(0.002)
                took.append(time.monotonic() - began)
        return took

    @staticmethod
    def _is(db: psycopg.Connection, wanted: np.ndarray) -> bool:
        row = db.execute("SELECT v::real[] FROM beats").fetchone()
        return row is not None and row[0] is not None and bool(np.allclose(row[0], wanted, atol=1e-5))

    def converged(self) -> None:
        """Wait until all five columns are as they should be."""
        with self.database.connect() as db:
            for table, source, target, _, dimension in JOBS:
                converged(db, table, source=source, target=target, dimension=dimension, timeout_s=40)

    def letters(self) -> list[object]:
        """Return the dead letters."""
        with self.database.connect() as db:
            return db.execute("SELECT * FROM walvec.pipeline_errors").fetchall()


@pytest.fixture
def sites(pg18: Cluster, pg15: Cluster, api: FakeApi) -> Iterator[tuple[World, Daemon, Site, Site]]:
    """A control database and a target on 18, a target on 15, five jobs each that have been begun, and two writers."""
    made = [pg18.create_database(f"control_{secrets.token_hex(4)}")]
    made += [cluster.create_database(f"site_{secrets.token_hex(4)}") for cluster in (pg18, pg15)]
    control, here, there = made
    with here.connect() as db:
        db.execute("CREATE EXTENSION vector")
    world = World(control, here)
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    both = []
    try:
        with world.daemon() as daemon:
            daemon.wait_for("job_feed_streaming")
            for name, database in (("here", here), ("there", there)):
                with database.connect() as db:
                    db.execute(TABLES)
                both.append(Site(name, database, [], threading.Event()))
                for table, source, target, runtime, dimension in JOBS:
                    columns = {"src_column": source, "dst_column": target, "db_connection": database.url}
                    id = (
                        world.job(table, embedding_model=f"hash-{dimension}", **columns)
                        if runtime == "hash"
                        else world.api_job(api, table, **columns)
                    )
                    both[-1].jobs.append(id)
            for number, site in enumerate(both):
                site.writing.set()
                site.writer = threading.Thread(target=site.write, args=[seed + number])
                site.writer.start()
            yield world, daemon, both[0], both[1]
            rest(*both)
            assert daemon.stop() == 0
    finally:
        rest(*both)
        for database in made:
            database.cluster.start()
        world.close()
        for database in made:
            database.drop()


def rest(*sites: Site) -> None:
    """Let the writers end."""
    for site in sites:
        site.writing.clear()
    for site in sites:
        if site.writer is not None:
            site.writer.join()


def test_a_server_that_is_stopped_and_restarted_takes_only_its_own_jobs_along(
    sites: tuple[World, Daemon, Site, Site], pg18: Cluster, pg15: Cluster
) -> None:
    world, daemon, here, there = sites
    for id in (*here.jobs, *there.jobs):
        world.done(id, 30)
    fresh = {"before": here.freshness()}

    # the other server goes away
    pg15.stop("immediate")
    written = here.written
    fresh["while PostgreSQL 15 is down"] = here.freshness()
    with here.database.connect() as db:
        assert db.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'walvec_jobs%'").fetchone()
    assert here.written > written, "nothing was written meanwhile"
    pg15.start()
    written = there.written
    eventually(lambda: there.written > written + 10)
    fresh["of PostgreSQL 15 once it is back"] = there.freshness()

    # the server with the table of jobs goes away, and one of the targets with it
    pg18.stop("immediate")
    fresh["while the control database is down"] = there.freshness()
    pg18.start()
    world.reconnect()
    written = here.written
    eventually(lambda: here.written > written + 10)
    fresh["of PostgreSQL 18 once it is back"] = here.freshness()

    for when, took in fresh.items():
        print(f"{when}: median {statistics.median(took) * 1000:.0f} ms, longest {max(took) * 1000:.0f} ms")
    for when in ("before", "while PostgreSQL 15 is down", "while the control database is down"):
        assert statistics.median(fresh[when]) < FRESH_S, when

    # a job is taken up as before, and all that was written is there
    new = world.job("notes", dst_column="x", embedding_model="hash-4", db_connection=there.database.url)
    world.done(new)
    rest(here, there)
    for site in (here, there):
        site.converged()
        assert not site.letters()
    with there.database.connect() as db:
        converged(db, "notes", target="x", dimension=4)
    for id in (*here.jobs, *there.jobs, new):
        row = world.row(id)
        assert (row["init_failed_at"], row["init_failure_reason"], row["init_progress"]) == (None, None, 100)
    assert not [event for event in daemon.events if event["event"] == "job_failed"]
