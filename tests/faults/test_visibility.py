"""The stream shows a commit before other sessions can see it, while a synchronous standby is waited for.

A consumer that reads the row then, or guards a write by it, meets the older version and would take it for the newest.
"""

from __future__ import annotations

import threading
import time

import psycopg
import pytest

from cdc.testing.database import Database
from tests.sim.world import EngineThread, assert_in_step, settings_for


@pytest.fixture
def ghost(database):
    """A server whose commits wait for a standby that never comes, for sessions that ask for it; ended by calling it."""

    def wait_for(names: str) -> None:
        with psycopg.connect(database.cluster.dsn(), autocommit=True, options="-c synchronous_commit=local") as conn:
            conn.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
            conn.execute("SELECT pg_reload_conf()")

    yield wait_for
    wait_for("")


SCHEMA = """
SET synchronous_commit = local;
CREATE TABLE notes (id int PRIMARY KEY, title text, body text);
ALTER TABLE notes ALTER body SET STORAGE EXTERNAL;
INSERT INTO notes SELECT i, 'old', repeat(md5(i::text), 200) FROM generate_series(1, 5) i;
CREATE PUBLICATION walvec FOR TABLE notes;
"""


def waiting(database: Database, statements: list[str]) -> list[threading.Thread]:
    """Sessions whose commits hang until the standby is no longer waited for."""

    def run(statement: str) -> None:
        with database.connect() as conn:
            conn.execute(statement)

    threads = [threading.Thread(target=run, args=(statement,)) for statement in statements]
    for thread in threads:
        thread.start()
    return threads


def test_a_row_is_not_read_before_its_commit_can_be_seen(database, ghost):
    with database.connect() as conn:
        conn.execute(SCHEMA)
        with EngineThread(settings_for(database.url)) as engine:
            engine.sync()
            ghost("ghost")
            time.sleep(0.2)  # backends take the setting up
            threads = waiting(
                database,
                [
                    "UPDATE notes SET title = 'new' WHERE id = 1",  # its body is not sent: must be read again
                    "UPDATE notes SET id = 20 WHERE id = 2",  # the old key must be looked at again
                    "DELETE FROM notes WHERE id = 3",
                    "UPDATE notes SET title = 'told', body = 'whole' WHERE id = 4",
                    "INSERT INTO notes VALUES (6, 'fresh', 'row')",
                ],
            )
            assert engine.engine is not None
            intake = engine.engine.intake
            deadline = time.monotonic() + 10
            while len([c for c in list(intake.ledger._unsettled) if c.closed]) < 2 and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(1.0)  # time enough to do it wrong
            assert intake.ledger.oldest is not None, "what cannot be seen yet was taken for done"
            assert all(thread.is_alive() for thread in threads)
            old = conn.execute("SELECT count(*) FROM notes WHERE title = 'new'").fetchone()
            assert old == (0,), "the server did not hold the commits back: this test shows nothing"
            ghost("")
            for thread in threads:
                thread.join(20)
            engine.sync()
            assert_in_step(conn, "notes", ["id"])
