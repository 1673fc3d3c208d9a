"""Kill -9, again and again, under the load of several writers; at the end all is equal, and nothing went backwards.

Each text names its row's version; a witness polls the embeddings' hashes all the while and turns them back into
versions by the writers' own log of what they committed: an older version must never replace a newer one.

The seed is printed; ``CHAOS_SEED`` repeats it, as far as time allows. ``CHAOS_KILLS`` sets the number of kills.
"""

from __future__ import annotations

import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
import pytest

from cdc.testing.cluster import Cluster
from cdc.testing.consumer import Consumer
from cdc.testing.database import Database
from tests.sim.world import BASE, assert_in_step, hash_of

KILLS = int(os.environ.get("CHAOS_KILLS", "20"))
KEYS, HOT = 400, 5
SCHEMA = """
CREATE TABLE docs (id int PRIMARY KEY, body text, version int NOT NULL);
ALTER TABLE docs ALTER body SET STORAGE EXTERNAL;
CREATE TABLE tags (id int PRIMARY KEY, body text);
CREATE PUBLICATION walvec FOR TABLE docs (id, body), tags (id, body);
"""
SETTINGS = {**BASE, "WALVEC_QUEUE_ROWS": "300", "WALVEC_BATCH_ROWS": "4", "WALVEC_INFLIGHT": "1"}
"""Small batches, so that there is work under way at every moment."""


@pytest.fixture
def rng() -> random.Random:
    seed = int(os.environ.get("CHAOS_SEED", secrets.randbits(32)))
    print(f"CHAOS_SEED={seed}")
    return random.Random(seed)


def text(id: int, version: int) -> str:
    long = random.Random(id * 7919 + version).randbytes(1_500).hex() if id % 17 == 0 else ""
    return f"row {id} v{version} {long}"


class Load:
    """Several writers, each with keys of its own: the versions of a row are what its one writer committed, in order."""

    def __init__(self, database: Database, rng: random.Random, writers: int = 3) -> None:
        self._database = database
        self._stop = threading.Event()
        self.failures: list[BaseException] = []
        self.versions: dict[bytes, tuple[int, int]] = {hash_of(text(i, 0)): (i, 0) for i in range(1, KEYS + 1)}
        self.commits = 0
        self._latest: dict[int, int] = {}
        parts = [partial(self._write, n, writers, random.Random(rng.random())) for n in range(writers)]
        self._threads = [threading.Thread(target=self._guard, args=(part,)) for part in (*parts, self._witness)]

    def _guard(self, action: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                action()
            except psycopg.OperationalError:  # the server was killed too
                time.sleep(0.1)
            except BaseException as exc:
                self.failures.append(exc)
                return

    def _write(self, n: int, writers: int, rng: random.Random) -> None:
        mine = range(n + 1, KEYS + 1, writers)
        with psycopg.connect(self._database.dsn()) as conn:
            while not self._stop.is_set():
                rows = rng.choice([1, 1, 1, 2, 5, 120])
                with conn.transaction():
                    for _ in range(rows):
                        id = rng.choice(mine[:HOT]) if rng.random() < 0.3 else rng.choice(mine)
                        self._change(conn, id, rng)
                    if rng.random() < 0.05:
                        conn.execute("DELETE FROM tags WHERE id %% %s = %s AND id > 50", [writers, n])
                self.commits += 1
                time.sleep(rng.random() * 0.01)

    def _change(self, conn: psycopg.Connection[Any], id: int, rng: random.Random) -> None:
        what = rng.random()
        if what < 0.12:
            conn.execute("DELETE FROM docs WHERE id = %s", [id])
        elif what < 0.2:
            conn.execute("UPDATE docs SET version = version WHERE id = %s", [id])
        elif what < 0.3:
            conn.execute("INSERT INTO tags VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                         [id, f"tag {rng.randrange(5)}"])  # fmt: skip
        else:
            version = self._latest[id] = self._latest.get(id, 0) + 1
            body = text(id, version)
            self.versions[hash_of(body)] = (id, version)
            conn.execute(
                "INSERT INTO docs VALUES (%s, %s, %s)"
                " ON CONFLICT (id) DO UPDATE SET body = excluded.body, version = excluded.version",
                [id, body, version],
            )

    def _witness(self) -> None:
        """Look at every embedding, over and over: a row's version only grows."""
        newest: dict[int, int] = {}
        with self._database.connect() as conn:
            while not self._stop.is_set():
                for id, digest in conn.execute("SELECT id, source_hash FROM docs_embeddings", binary=True).fetchall():
                    key, version = self.versions[digest]
                    assert key == id, f"row {id} has the embedding of row {key}"
                    assert version >= newest.get(id, 0), f"row {id} went back from version {newest[id]} to {version}"
                    newest[id] = version
                time.sleep(0.005)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        if self.failures:
            raise self.failures[0]


@contextmanager
def consumed(database: Database, **settings: str) -> Iterator[Consumer]:
    with database.connect() as conn:
        conn.execute(SCHEMA)
        rows = [(id, text(id, 0)) for id in range(1, KEYS // 2)]
        conn.cursor().executemany("INSERT INTO docs VALUES (%s, %s, 0)", rows)
    with Consumer(database.url, **SETTINGS, **settings) as consumer:
        consumer.sync()
        yield consumer


def until_streaming(consumer: Consumer, before: int) -> None:
    """Wait until the run has begun to stream that was started when the log had ``before`` events of this."""
    consumer.wait_for(lambda _: streams(consumer) > before, 20)


def streams(consumer: Consumer) -> int:
    return sum(event["event"] == "slot_streaming" for event in consumer.events)


def assert_equal(database: Database, consumer: Consumer) -> None:
    consumer.sync(60)
    with database.connect() as conn:
        for table in ("docs", "tags"):
            assert_in_step(conn, table, ["id"])
    assert [(row["missing"], row["stale"], row["orphaned"], row["duplicate"]) for row in consumer.verify()] == [
        (0,) * 4
    ] * 2


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_kill_9_at_random_moments_under_load(database, rng):
    kills = KILLS // 2 + (KILLS % 2 if database.cluster.major == "18" else 0)  # half on each server
    with consumed(database) as consumer:
        with Load(database, rng) as load:
            before = 0
            for _ in range(kills):
                if rng.random() < 0.2:
                    time.sleep(rng.random())  # perhaps before it has begun
                else:
                    until_streaming(consumer, before)
                    time.sleep(rng.random() ** 2)
                consumer.kill()
                before = streams(consumer)
                consumer.environment["WALVEC_QUEUE_ROWS"] = rng.choice(["300", "1000000"])
                consumer.start()
                assert not load.failures
            time.sleep(0.5)
        print(f"{kills} kills, {load.commits} commits")
        assert load.commits > kills
        assert_equal(database, consumer)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_the_walsender_is_terminated_under_load(database18, rng):
    with consumed(database18) as consumer, database18.connect() as conn:
        ended = 0
        with Load(database18, rng) as load:
            deadline = time.monotonic() + 60
            while ended < 4 and time.monotonic() < deadline:
                time.sleep(rng.random() * 0.4)
                ended += conn.execute(
                    "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
                    " WHERE slot_name = 'walvec' AND active_pid IS NOT NULL"
                ).rowcount
                assert not load.failures
        assert ended == 4
        assert_equal(database18, consumer)
        # None of these was taken for a slot that somebody else had moved.
        assert not [e for e in consumer.events if "somebody else" in str(e.get("reason"))]


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize(("version", "ways"), [("15", ("immediate", "kill")), ("18", ("kill", "fast"))])
def test_the_server_is_killed_under_load(version, ways, rng):
    """With fsync on. After a crash the slot stands where it was last saved: what is sent again must do no harm."""
    with Cluster.create(version, fsync=True) as cluster:
        cluster.start()
        database = cluster.create_database("chaos")
        with consumed(database) as consumer:
            with Load(database, rng, writers=2) as load:
                for how in ways:
                    time.sleep(0.4 + rng.random() * 0.5)
                    if how == "kill":
                        cluster.kill()
                    else:
                        cluster.stop("immediate" if how == "immediate" else "fast")
                    cluster.start()
                    time.sleep(0.3)
            assert not load.failures
            assert_equal(database, consumer)


@pytest.mark.slow
def test_a_standby_takes_over_from_a_killed_holder(database18, rng):
    with consumed(database18) as first, Consumer(database18.url, **SETTINGS) as second:
        second.wait_for("slot_standby")
        with Load(database18, rng):
            time.sleep(0.5)
            first.kill()
            started = time.monotonic()
            second.wait_for("slot_streaming", 20)
            took = time.monotonic() - started
            time.sleep(0.3)
        print(f"taken over after {took:.1f} s")
        assert_equal(database18, second)


@pytest.mark.slow
def test_a_frozen_holder_that_wakes_up_writes_nothing_more(database18, rng):
    """It lost the slot while it slept; its writes are shut out by the epoch, and it stands by."""
    import signal

    with consumed(database18) as first, Consumer(database18.url, **SETTINGS) as second:
        with Load(database18, rng), database18.connect() as conn:
            time.sleep(0.3)
            first.process.send_signal(signal.SIGSTOP)
            conn.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'walvec'")
            second.wait_for("slot_streaming", 20)
            time.sleep(0.3)
            first.process.send_signal(signal.SIGCONT)
            time.sleep(1.0)
        assert_equal(database18, second)
        first.wait_for("slot_standby")
