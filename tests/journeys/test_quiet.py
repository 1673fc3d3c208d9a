"""What walvec leaves alone, what it tells in SQL, and when."""

from __future__ import annotations

import json
import threading
import time

import pytest

from cdc.services.engine import DRAIN_S
from cdc.testing.cluster import Cluster
from tests.journeys.conftest import Start
from tests.journeys.journey import Journey, Watched, eventually

NOTES = Watched("notes")


@pytest.fixture(scope="module")
def cluster(pg15: Cluster) -> Cluster:
    """Nothing here differs by version."""
    return pg15


STATS = """SELECT "table: unprocessed rows", "count(source records)", "count(embeddings)" FROM walvec.kbstat
           WHERE "knowledge base" = 'public.notes'"""


def counted(journey: Journey) -> tuple[int, int, int]:
    rows, embeddings = journey.sql("SELECT (SELECT count(*) FROM notes), (SELECT count(*) FROM notes_embeddings)")[0]
    return 0, rows, embeddings


def test_kbstat_agrees_with_sql_after_every_sync(shared: Journey) -> None:
    shared.sql("CREATE TABLE notes (id int PRIMARY KEY, body text)")
    shared.sql("INSERT INTO notes SELECT i, 'note ' || i FROM generate_series(1, 500) i")
    shared.sql("ALTER PUBLICATION walvec ADD TABLE notes")
    shared.settle(NOTES)
    assert shared.sql(STATS) == [counted(shared)]
    for change in (
        "INSERT INTO notes SELECT i, NULLIF('n' || i, 'n600') FROM generate_series(501, 700) i",
        "DELETE FROM notes WHERE id % 3 = 0",
        "UPDATE notes SET body = ' ' WHERE id % 10 = 1",
        "UPDATE notes SET id = id + 10000 WHERE id % 4 = 0",
        "INSERT INTO notes VALUES (-1, 'a'), (-2, ''); DELETE FROM notes WHERE id = -1",
        "BEGIN; DELETE FROM notes; INSERT INTO notes VALUES (1, 'x'); ROLLBACK",
        "BEGIN; SAVEPOINT a; DELETE FROM notes WHERE id > 300; ROLLBACK TO a; DELETE FROM notes WHERE id = -2; COMMIT",
        "TRUNCATE notes; INSERT INTO notes VALUES (5, 'five'), (6, NULL)",
    ):
        shared.sql(change)
        shared.settle(NOTES)
        assert shared.sql(STATS) == [counted(shared)], change


def test_wait_returns_true_once_a_commit_is_embedded(shared: Journey) -> None:
    shared.sql("CREATE TABLE waited (id int PRIMARY KEY, body text); ALTER PUBLICATION walvec ADD TABLE waited")
    shared.settle(Watched("waited"))
    times = []
    for i in range(20):
        shared.sql("INSERT INTO waited VALUES (%s, %s)", [i, f"text {i}"])
        began = time.monotonic()
        assert shared.value("SELECT walvec.wait('10 s')") is True
        times.append(time.monotonic() - began)
        assert shared.value("SELECT count(*) FROM waited_embeddings WHERE id = %s", [i]) == 1
    assert sorted(times)[10] < 0.25, times
    shared.sql("SET synchronous_commit = off")
    shared.sql("UPDATE waited SET body = 'not yet flushed' WHERE id = 3")
    assert shared.value("SELECT walvec.wait('10 s')") is True
    shared.sql("RESET synchronous_commit")
    shared.settle(Watched("waited"))


def test_no_trigger_no_lock_and_no_write_on_a_watched_table(shared: Journey) -> None:
    shared.sql("CREATE TABLE calm (id int PRIMARY KEY, body text)")
    shared.sql("INSERT INTO calm SELECT i, 'calm ' || i FROM generate_series(1, 20000) i")
    oid = shared.value("SELECT 'calm'::regclass::oid")
    seen: set[str] = set()
    done = threading.Event()

    def look() -> None:
        with shared.database.connect() as conn:
            while not done.is_set():
                modes = conn.execute(
                    "SELECT mode FROM pg_locks WHERE relation = %s AND pid IN "
                    "(SELECT pid FROM pg_stat_activity WHERE application_name LIKE %s)", [oid, f"{shared.slot}%"],
                )  # fmt: skip
                seen.update(row[0] for row in modes.fetchall())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        shared.sql("ALTER PUBLICATION walvec ADD TABLE calm")
        shared.sync()
        shared.sql("UPDATE calm SET body = body || '!' WHERE id % 2 = 0")
        shared.settle(Watched("calm"))
    finally:
        done.set()
        looking.join()
    assert seen and seen <= {"AccessShareLock", "RowShareLock"}, seen
    assert shared.value("SELECT count(*) FROM pg_trigger WHERE tgrelid = %s", [oid]) == 0
    assert shared.value("SELECT count(*) FROM pg_event_trigger") == 0
    inserted, updated = shared.sql("SELECT n_tup_ins, n_tup_upd FROM pg_stat_user_tables WHERE relid = %s", [oid])[0]
    assert (inserted, updated) == (20000, 10000)


def test_a_locked_table_holds_up_nothing_else(shared: Journey) -> None:
    shared.sql("""CREATE TABLE locked (id int PRIMARY KEY, body text); INSERT INTO locked VALUES (1, 'one');
        CREATE TABLE unlocked (id int PRIMARY KEY, body text)""")
    holder = shared.database.connect()
    holder.autocommit = False
    holder.execute("LOCK TABLE locked IN ACCESS EXCLUSIVE MODE")
    with shared.database.connect() as other:
        other.execute("SET lock_timeout = '100ms'")
    shared.sql("ALTER PUBLICATION walvec ADD TABLE unlocked; INSERT INTO unlocked VALUES (1, 'goes on')")
    shared.converge(Watched("unlocked"), timeout_s=5)
    holder.rollback()
    shared.sql("ALTER PUBLICATION walvec ADD TABLE locked")
    shared.converge(Watched("locked"), timeout_s=5)
    holder.execute("LOCK TABLE locked IN ACCESS EXCLUSIVE MODE")
    holder.execute("INSERT INTO locked VALUES (2, 'two')")
    shared.sql("INSERT INTO unlocked VALUES (2, 'goes on')")
    shared.converge(Watched("unlocked"), timeout_s=5)
    holder.commit()
    holder.close()
    shared.converge(Watched("locked"), timeout_s=5)


def test_status_and_kbstat_agree(shared: Journey) -> None:
    shared.sync()
    said = json.loads(shared.consumer.command("status", "--json").stdout)
    rows = shared.sql('SELECT "knowledge base", "auto processing", "table: unprocessed rows", "count(source records)", '
                      '"count(embeddings)" FROM walvec.kbstat ORDER BY 1')  # fmt: skip
    keys = ("knowledge_base", "auto_processing", "unprocessed_rows", "source_records", "embeddings")
    assert sorted(tuple(one[key] for key in keys) for one in said) == rows
    eventually(lambda: {one["status"] for one in said} == {"ready"}, 1, lambda: str(said))


def test_a_paused_pipeline_holds_up_no_stop_and_forgets_nothing(start: Start) -> None:
    journey = start(
        "CREATE PUBLICATION walvec FOR TABLE notes",
        before="CREATE TABLE notes (id int PRIMARY KEY, body text); INSERT INTO notes VALUES (1, 'one')",
    )
    journey.settle(NOTES)
    assert journey.consumer.command("pause", "public.notes").returncode == 0
    eventually(lambda: journey.consumer.events[-1]["event"] == "pipeline_paused")
    stopped = threading.Event()

    def write() -> None:  # what has just come is not in the durable queue yet
        with journey.database.connect() as other:
            for id in range(2, 20_000):
                other.execute("INSERT INTO notes VALUES (%s, 'more')", [id])
                if stopped.wait(0.002):
                    return

    writing = threading.Thread(target=write)
    writing.start()
    try:
        eventually(lambda: journey.sql(STATS)[0][0] > 20)
        began = time.monotonic()
        assert journey.consumer.stop() == 0
        assert time.monotonic() - began < DRAIN_S / 2
    finally:
        stopped.set()
        writing.join()
    journey.run()
    assert [event["reason"] for event in journey.events("reconcile_started")] == ["first backfill"]
    assert journey.value("SELECT count(*) FROM notes_embeddings") == 1
    assert journey.consumer.command("resume", "public.notes").returncode == 0
    journey.settle(NOTES)
