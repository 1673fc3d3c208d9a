"""The model is away, slow, or comes back: the slot is not the queue, and memory is bounded."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tests.faults.conftest import SwitchedModel
from tests.sim.world import EngineThread, assert_in_step, settings_for


@pytest.fixture(autouse=True)
def switches(monkeypatch):
    monkeypatch.setattr(SwitchedModel, "away", False)
    monkeypatch.setattr(SwitchedModel, "hangs_s", 0.0)


def until(what, timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def slot(conn):
    return conn.execute(
        "SELECT confirmed_flush_lsn::text, active_pid, confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots"
        " WHERE slot_name = 'walvec'",
        [slot.mark],  # type: ignore[attr-defined]
    ).fetchone()


def mark(conn) -> None:
    slot.mark = conn.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()[0]  # type: ignore[attr-defined]


def test_while_the_model_is_away_keys_are_queued_durably_and_the_log_is_acknowledged(database18, notes18, monkeypatch):
    conn = notes18
    small = replace(settings_for(database18.url, WALVEC_QUEUE_ROWS="500"), queue_bytes=10_000)
    with EngineThread(small, SwitchedModel.of) as engine:
        engine.sync()
        monkeypatch.setattr(SwitchedModel, "away", True)
        conn.execute("INSERT INTO notes SELECT i, 'n ' || i, repeat('y', 200) FROM generate_series(100, 4099) i")
        conn.execute("DELETE FROM notes WHERE id < 5")
        mark(conn)
        assert engine.engine is not None
        budget = engine.engine.intake.budget
        until(lambda: slot(conn)[2])
        queued = conn.execute("SELECT count(*) FROM walvec.dirty").fetchone()[0]
        assert queued >= 3_500 and budget.text_bytes <= 10_000
        monkeypatch.setattr(SwitchedModel, "away", False)
        engine.sync(60)
        assert_in_step(conn, "notes", ["id"])


def test_a_truncation_while_the_model_is_away_does_not_hold_the_log_back(database18, notes18, monkeypatch):
    conn = notes18
    with EngineThread(settings_for(database18.url, WALVEC_QUEUE_ROWS="2"), SwitchedModel.of) as engine:
        engine.sync()
        monkeypatch.setattr(SwitchedModel, "away", True)
        conn.execute("INSERT INTO notes VALUES (100, 'a', 'b')")
        assert engine.engine is not None
        until(lambda: not engine.gate.is_up)
        conn.execute("TRUNCATE notes")
        conn.execute("INSERT INTO notes SELECT i, 'after', 'x' FROM generate_series(1, 9) i")
        mark(conn)
        until(lambda: slot(conn)[2])
        assert conn.execute("SELECT count(*) FROM notes_embeddings").fetchone() == (0,)
        monkeypatch.setattr(SwitchedModel, "away", False)
        engine.sync(60)
        assert_in_step(conn, "notes", ["id"])


@pytest.mark.slow
def test_a_model_that_hangs_never_makes_the_server_hang_up(database18, notes18, monkeypatch):
    """Longer than ``wal_sender_timeout`` of our session (15 s): replies go out though nothing is read."""
    conn = notes18
    with EngineThread(settings_for(database18.url, WALVEC_QUEUE_ROWS="10"), SwitchedModel.of) as engine:
        engine.sync()
        mark(conn)
        pid = slot(conn)[1]
        monkeypatch.setattr(SwitchedModel, "hangs_s", 18.0)
        assert engine.engine is not None
        monkeypatch.setattr(type(engine.engine.intake), "is_full", property(lambda self: SwitchedModel.hangs_s > 0))
        conn.execute("INSERT INTO notes SELECT i, 'n', repeat('z', 5000) FROM generate_series(100, 3000) i")
        time.sleep(18)
        assert slot(conn)[1] == pid
        monkeypatch.undo()
        engine.sync(60)
        assert slot(conn)[1] == pid
        assert_in_step(conn, "notes", ["id"])


def test_a_clock_that_jumps_never_shows_a_negative_lag(database18, notes18, monkeypatch):
    conn = notes18
    with EngineThread(settings_for(database18.url), SwitchedModel.of) as engine:
        engine.sync()
        real, real_ns = time.time, time.time_ns
        for shift in (-3600, 3600, -288):
            monkeypatch.setattr(time, "time", lambda shift=shift: real() + shift)
            monkeypatch.setattr(time, "time_ns", lambda shift=shift: real_ns() + shift * 10**9)
            conn.execute("UPDATE notes SET title = %s", [str(shift)])
            assert engine.engine is not None
            status = engine.engine.status()
            assert status.slot.oldest_unacked_seconds >= 0
            assert all(pipeline.lag_seconds >= 0 for pipeline in status.pipelines)
            engine.sync()
        monkeypatch.undo()
        assert_in_step(conn, "notes", ["id"])
