"""The slot: missing, lost, moved, held by another; and a server that stops."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request

from cdc.testing.cluster import Cluster
from tests.journeys.conftest import Start
from tests.journeys.journey import Journey, Watched, eventually

DOCS = Watched("docs")
TABLE = "CREATE TABLE docs (id int PRIMARY KEY, body text);"
PUBLICATION = "CREATE PUBLICATION walvec FOR TABLE docs"
SOME = "INSERT INTO docs SELECT i, 'row ' || i FROM generate_series(%s::int, %s::int) i"


def settled(start: Start, on_slot_lost: str = "reconcile") -> Journey:
    """A journey that embedded twenty rows, and whose consumer has stopped."""
    journey = start(PUBLICATION, before=TABLE, WALVEC_ON_SLOT_LOST=on_slot_lost)
    journey.sql(SOME, [1, 20])
    journey.settle(DOCS)
    assert journey.consumer.stop() == 0
    return journey


def changed(journey: Journey) -> None:
    journey.sql("UPDATE docs SET body = 'changed while down' WHERE id < 5; DELETE FROM docs WHERE id = 7")
    journey.sql(SOME, [21, 30])


def back_again(journey: Journey) -> None:
    """Start the consumer; by itself it finds all that changed, and goes on."""
    journey.run()
    journey.converge(DOCS, timeout_s=15)
    journey.sql("UPDATE docs SET body = 'streamed again' WHERE id = 9; DELETE FROM docs WHERE id = 10")
    journey.settle(DOCS)
    journey.verified("public.docs")


def drop_slot(journey: Journey) -> None:
    journey.sql("SELECT pg_drop_replication_slot(%s)", [journey.slot])


def test_dropped_while_down(start: Start) -> None:
    journey = settled(start)
    drop_slot(journey)
    changed(journey)
    back_again(journey)
    lost = journey.events("slot_lost")
    assert len(lost) == 1 and "has been dropped" in lost[0]["message"]


def test_made_anew_under_the_same_name_while_down(start: Start) -> None:
    journey = settled(start)
    drop_slot(journey)
    changed(journey)
    journey.sql("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [journey.slot])
    back_again(journey)


def test_advanced_by_somebody_else_while_down(start: Start) -> None:
    journey = settled(start)
    changed(journey)
    journey.sql("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", [journey.slot])
    back_again(journey)
    assert any("moved" in str(event.get("reason")) for event in journey.consumer.events)


def test_advanced_by_somebody_else_after_a_crash(start: Start) -> None:
    journey = start(PUBLICATION, before=TABLE)
    journey.sql(SOME, [1, 20])
    journey.settle(DOCS)
    journey.consumer.kill()
    changed(journey)
    journey.sql("SELECT pg_create_logical_replication_slot('decoy', 'pgoutput'), pg_drop_replication_slot('decoy')")
    # Past what the consumer may have reserved for itself: 16 MB and more.
    journey.sql("CREATE TABLE elsewhere AS SELECT repeat(md5(i::text), 100) FROM generate_series(1, 6000) i")
    journey.sql("SELECT pg_logical_emit_message(false, 'filler', repeat('x', 20000000))")
    active = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
    eventually(lambda: not journey.value(active, [journey.slot]))
    journey.sql("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", [journey.slot])
    back_again(journey)


def invalidate(journey: Journey) -> None:
    """Have the server give the slot up, by keeping no more than 1 MB of WAL for it."""
    journey.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
    journey.sql("SELECT pg_reload_conf()")
    try:
        for _ in range(4):
            journey.sql("SELECT pg_logical_emit_message(false, 'x', 'x'), pg_switch_wal()")
        eventually(lambda: journey.sql("CHECKPOINT") or journey.value(
            "SELECT wal_status = 'lost' FROM pg_replication_slots WHERE slot_name = %s", [journey.slot]))  # fmt: skip
    finally:
        journey.sql("ALTER SYSTEM RESET max_slot_wal_keep_size")
        journey.sql("SELECT pg_reload_conf()")


def test_invalidated_by_the_server(start: Start) -> None:
    journey = settled(start)
    changed(journey)
    invalidate(journey)
    back_again(journey)
    assert "invalidated" in journey.events("slot_lost")[0]["message"]
    kept = journey.value("SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s", [journey.slot])
    assert kept == "reserved"


def test_lost_and_told_to_stop(start: Start) -> None:
    journey = settled(start, "stop")
    drop_slot(journey)
    changed(journey)
    for _ in range(2):  # and it stays so until a person decides
        done = journey.consumer.command("run", timeout_s=30)
        assert done.returncode == 3
        last = done.stderr.strip().splitlines()[-1]
        assert "WALVEC_ON_SLOT_LOST" in last and "has been dropped" in last and "Traceback" not in done.stderr, last
    assert not journey.sql("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", [journey.slot])
    journey.consumer.environment["WALVEC_ON_SLOT_LOST"] = "reconcile"
    back_again(journey)


def test_a_second_consumer_stands_by_and_takes_over(start: Start) -> None:
    journey = start(PUBLICATION, before=TABLE)
    journey.sql(SOME, [1, 2000])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    second = journey.another(WALVEC_HTTP=f"127.0.0.1:{port}").start()
    standby = second.wait_for("slot_standby")
    assert journey.slot in standby["message"] and "pid" in standby["message"]

    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    eventually(lambda: get("/readyz")[0] == 200, 5, lambda: str(get("/readyz")))
    status, health = get("/healthz")
    assert status == 200 and "standby" in health, health
    assert json.loads(get("/status")[1]) is not None
    journey.settle(DOCS)  # the first one's work is not disturbed
    journey.sql("UPDATE docs SET body = 'as it is killed ' || id WHERE id % 2 = 0")
    journey.consumer.kill()
    killed = time.monotonic()
    journey.sql("DELETE FROM docs WHERE id % 5 = 0; INSERT INTO docs VALUES (-1, 'nobody is there')")
    second.wait_for("slot_streaming", 20)
    journey.converge(DOCS, timeout_s=20 - (time.monotonic() - killed))
    journey.consumer.start()  # the first comes back, and stands by in its turn
    journey.consumer.wait_for("slot_standby")
    journey.settle(DOCS)
    assert second.stop() == 0
    journey.sql("INSERT INTO docs VALUES (-2, 'back to the first')")
    journey.converge(DOCS, timeout_s=10)
    journey.verified("public.docs")


def test_a_fast_shutdown_of_the_server_is_fast(start: Start, cluster: Cluster) -> None:
    journey = start(PUBLICATION, before=TABLE)
    journey.settle(DOCS)
    began = time.monotonic()
    cluster.stop("fast", timeout=30)
    idle = time.monotonic() - began
    cluster.start()
    journey.reconnect()
    journey.settle(DOCS)
    journey.sql("INSERT INTO docs SELECT i, repeat('backlog ' || i, 20) FROM generate_series(1, 30000) i")
    began = time.monotonic()
    cluster.stop("fast", timeout=30)
    busy = time.monotonic() - began
    cluster.start()
    journey.reconnect()
    journey.settle(DOCS, timeout_s=60)
    assert max(idle, busy) < 5, f"idle {idle:.1f} s, with a backlog {busy:.1f} s"


def test_an_idle_publication_retains_no_wal(start: Start) -> None:
    journey = start(PUBLICATION, before=TABLE + "CREATE TABLE other (id int, body text)")
    journey.sql(SOME, [1, 5])
    journey.settle(DOCS)
    retained = "SELECT pg_current_wal_lsn() - {} FROM pg_replication_slots WHERE slot_name = %s"
    for _ in range(4):
        journey.sql("INSERT INTO other SELECT i, repeat(md5(i::text), 100) FROM generate_series(1, 5000) i")
    behind = retained.format("confirmed_flush_lsn")
    eventually(lambda: journey.value(behind, [journey.slot]) < 100_000, 5,
               lambda: str(journey.value(behind, [journey.slot])))  # fmt: skip
    kept = retained.format("restart_lsn")
    eventually(lambda: journey.sql("CHECKPOINT") or journey.value(kept, [journey.slot]) < 2_000_000, 10,
               lambda: str(journey.value(kept, [journey.slot])))  # fmt: skip
