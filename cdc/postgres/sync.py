"""Waiting until all that was committed before a call is embedded or dead-lettered."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from cdc.errors import Unavailable
from cdc.lsn import parse_lsn
from cdc.postgres.connect import classify, connect_sync
from cdc.postgres.control import installed_version
from cdc.postgres.published import fault, published
from cdc.postgres.queries import bound
from cdc.postgres.setup import SetupSettings

FIRST_POLL_S: Final = 0.005
LAST_POLL_S: Final = 0.1
GRACE_S: Final = 2.0
"""How long nobody may hold the slot before it is worth a word: a consumer may just be connecting."""

SHOWN_S: Final = 1.0
"""How long the counts in the control schema may trail: under a steady load they never stand at nought."""

Conn = psycopg.Connection[TupleRow]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Place:
    """A database, and no slot."""

    database_url: str = field(repr=False)
    slot: str = ""


def mark(url: str) -> int:
    """Write a message of ours into a database's WAL, and return its position: all commits before stand below.

    Raises:
        ConfigError: the database will not let us in, or is a standby.
        Unavailable: it is away.
    """
    with connect_sync(_Place(url), "sync") as conn:
        try:
            row = conn.execute(bound("sync", "mark"), {}).fetchone()
        except psycopg.Error as exc:
            raise classify(exc) from exc
    assert row is not None, "the statement always gives one row"
    return parse_lsn(row[0])


class Sync:
    """One call of ``sync``: a position in the WAL, the tables of that moment, and a patient loop.

    Args:
        settings: Which database, slot and publication.
        say: Told once each about pipelines that are not waited for, and about a slot that nobody reads.
    """

    def __init__(self, settings: SetupSettings, say: Say) -> None:
        self._settings = settings
        self._say = say
        self._said: set[str] = set()
        self._conn: Conn = connect_sync(settings, "sync")
        self._started = time.monotonic()
        self._schema_ready = False
        try:
            target, since = self._row(bound("sync", "mark"), {})
            tables = published(self._conn, settings.publication, settings.schema)
        except psycopg.Error as exc:
            self._conn.close()
            raise classify(exc) from exc
        self._bound: dict[str, Any] = {
            "slot": settings.slot,
            "target": target,
            "since": since,
            "schemas": [table.table.schema for table in tables],
            "tables": [table.table.name for table in tables],
        }
        self._faults = {str(table.table): found for table in tables if (found := fault(table)) is not None}

    def wait(self, timeout_s: float | None) -> bool:
        """Return True once everything is settled, False when ``timeout_s`` seconds have passed first. Blocks.

        A server that goes away meanwhile is waited for.

        Raises:
            ConfigError: The database cannot be read.
        """
        deadline = None if timeout_s is None else self._started + timeout_s
        pause = FIRST_POLL_S
        try:
            while not (self._settled() and self._shown(deadline)):
                left = LAST_POLL_S if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return False
                time.sleep(min(pause, left))
                pause = min(pause * 1.5, LAST_POLL_S)
            return True
        finally:
            self._conn.close()

    def _settled(self) -> bool:
        try:
            if self._conn.closed:
                self._conn = connect_sync(self._settings, "sync")
            self._schema_ready = self._schema_ready or installed_version(self._conn, self._settings.schema) > 0
            if self._schema_ready and self._look():
                return True
            self._mention_idle_slot()
        except psycopg.Error as exc:
            self._forgive(classify(exc))
        except Unavailable as exc:
            self._forgive(exc)
        return False

    def _shown(self, deadline: float | None) -> bool:
        """Give the consumer a moment to write down its counts, so that kbstat agrees with what was waited for."""
        last = time.monotonic() + SHOWN_S
        last = last if deadline is None else min(last, deadline)
        pending = bound("sync", "pending", schema=sql.Identifier(self._settings.schema))
        with contextlib.suppress(psycopg.Error):
            while time.monotonic() < last and self._row(pending, self._bound)[0]:
                time.sleep(FIRST_POLL_S)
        return True

    def _look(self) -> bool:
        schema = sql.Identifier(self._settings.schema)
        if not self._row(bound("sync", "settled", schema=schema), self._bound)[0]:
            return False
        waits = self._conn.execute(bound("sync", "waits", schema=schema), self._bound).fetchall()
        if not all(failed or name in self._faults for name, _, failed in waits):
            return False
        for name, reason, _ in waits:
            self._once(f"Not waited for: {name} is in error. {self._faults.get(name, reason)}")
        # Once more: a scan that ended between the two looks may have left keys in the durable queue.
        return bool(self._row(bound("sync", "settled", schema=schema), self._bound)[0])

    def _mention_idle_slot(self) -> None:
        if time.monotonic() - self._started < GRACE_S:
            return
        row = self._conn.execute(bound("sync", "slot_held"), [self._settings.slot]).fetchone()
        if row is None or not row[0]:
            missing = "does not exist" if row is None else "is read by nobody"
            self._once(f'The replication slot "{self._settings.slot}" {missing}: is `walvec run` running?')

    def _forgive(self, error: Exception) -> None:
        """Go on after the server went away; anything else is the caller's to hear."""
        if not isinstance(error, Unavailable):
            raise error
        self._conn.close()
        self._once(f"{error} Waiting for the server.")

    def _once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(line)

    def _row(self, statement: sql.SQL, params: dict[str, Any]) -> TupleRow:
        row = self._conn.execute(statement, params).fetchone()
        assert row is not None, "the statement always gives one row"
        return row
