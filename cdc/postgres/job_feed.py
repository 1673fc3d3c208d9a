"""Hears that tables of jobs have changed from their database's write-ahead log, through a slot that leaves no trace.

The slot is temporary: it goes with the connection, so that nothing keeps WAL when the daemon is gone. What changed is
not taken from the stream but read again by SQL, once the commit is visible. Where the server does not allow a slot, the
tables are looked at every second instead, and the log says so, with what mends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

import psycopg
import structlog
from psycopg import sql
from psycopg.rows import TupleRow

from cdc.errors import ConfigError, Unavailable, WalvecError
from cdc.postgres.connect import classify, connect_sync
from cdc.postgres.queries import bound
from cdc.postgres.replication import PostgresStream, open_stream
from cdc.rows import Table
from cdc.wire.frames import BODY, KEEPALIVE, Keepalive, parse_frame

log = structlog.get_logger()

PUBLICATION: Final = "walvec_books"
"""The publication of all tables of jobs in a control database. Daemons with other tables add theirs."""

LOOK_S: Final = 1.0
"""Seconds between looks at the tables themselves while there is no stream, and at the publication while there is."""

AGAIN_S: Final = 30.0
"""Seconds after which a stream that was refused is asked for again."""

_XID = Struct(">I").unpack_from
_END = Struct(">Q").unpack_from
_ROW_CHANGES: Final = frozenset(b"IUDT")

Changed = Callable[[int | None], None]
"""Called in the event loop: a commit of this transaction (32 bits) changed a book; None: look, something may have."""


@dataclass(frozen=True, slots=True)
class FeedSettings:
    """Where a control database is, and the names of what is used there."""

    database_url: str
    slot: str
    publication: str = PUBLICATION


class JobFeed:
    """Implements :class:`cdc.ports.books.Feed` for tables of one database.

    Args:
        url: The control database.
        tables: The tables to hear of.
        changed: Told of changes.
    """

    def __init__(self, url: str, tables: Sequence[Table], changed: Changed) -> None:
        self._settings = FeedSettings(url, f"walvec_books_{secrets.token_hex(4)}")
        self._tables = tuple(tables)
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._said = ""
        self.streaming = False

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            pause = LOOK_S
            try:
                stream, over = await self._opened()
            except WalvecError as exc:
                self._say(exc)
                pause = LOOK_S if isinstance(exc, Unavailable) else AGAIN_S
            else:
                await self._listen(stream, over)
            for _ in range(int(pause / LOOK_S)):
                await asyncio.sleep(LOOK_S)
                self._changed(None)

    async def _opened(self) -> tuple[PostgresStream, asyncio.Event]:
        """Open the stream; while the slot waits for running transactions to end, have the tables looked at."""
        opening = asyncio.create_task(self._open(), name="books stream")
        try:
            while not opening.done():
                await asyncio.wait((opening,), timeout=LOOK_S)
                self._changed(None)
        except asyncio.CancelledError:
            opening.cancel()
            outcome = (await asyncio.gather(opening, return_exceptions=True))[0]
            if isinstance(outcome, tuple):
                await outcome[0].close(drain=False)
            raise
        return opening.result()

    async def _open(self) -> tuple[PostgresStream, asyncio.Event]:
        await asyncio.to_thread(self._prepare)
        over = asyncio.Event()

        def heard(xid: int) -> None:
            self._loop.call_soon_threadsafe(self._changed, xid)

        def ended() -> None:
            self._loop.call_soon_threadsafe(over.set)

        return await open_stream(self._settings, _Ear(heard), ended, temporary=True), over

    async def _listen(self, stream: PostgresStream, over: asyncio.Event) -> None:
        """Hear changes until the stream ends; see now and then that the publication still names every table."""
        connection = None
        try:
            stream.begin()
            self.streaming, self._said = True, ""
            log.info("job_feed_streaming", slot=self._settings.slot, publication=PUBLICATION)
            self._changed(None)  # what was committed before the slot was there
            connection = await asyncio.to_thread(connect_sync, self._settings, "books")
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), LOOK_S)
                if not over.is_set() and await asyncio.to_thread(self._publish, connection):
                    self._changed(None)
            if stream.failure is not None:
                self._say(stream.failure)
        except WalvecError as exc:
            self._say(exc)
        finally:
            self.streaming = False
            await stream.close(drain=False)
            if connection is not None:
                connection.close()

    def _say(self, exc: WalvecError) -> None:
        if self._said != str(exc):
            self._said = str(exc)
            log.warning(
                "job_feed_missing",
                message=f"The tables of jobs are looked at every {LOOK_S:g} s instead of being heard. {exc.message}",
                remedy=exc.remedy,
            )

    # -- in threads -------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """See that the server streams, and that the publication names every table."""
        with connect_sync(self._settings, "books") as connection:
            row = connection.execute(bound("jobs", "wal_level")).fetchone()
            level, recovering, may = row if row else ("", False, True)
            if level != "logical":
                raise ConfigError(
                    f"The control database's server has wal_level {level}; hearing changes needs logical.",
                    "ALTER SYSTEM SET wal_level = 'logical'; then restart PostgreSQL.",
                )
            if recovering:
                raise ConfigError("The control database is on a standby.", "Name the primary.")
            if not may:
                raise ConfigError("The daemon's role may not stream changes.", "ALTER ROLE … REPLICATION;")
            self._publish(connection)

    def _publish(self, connection: psycopg.Connection[TupleRow]) -> bool:
        """Publish the tables that are not yet, or that were made anew; return whether there were any."""
        try:
            return self._add_missing(connection)
        except psycopg.Error as exc:
            raise classify(exc) from exc

    def _add_missing(self, connection: psycopg.Connection[TupleRow]) -> bool:
        members = self._members(connection)
        missing = [table for table in self._tables if members is None or table not in members]
        there = [table for table in missing if _is_there(connection, table)]
        if not there and members is not None:
            return False
        for table in there:
            _identify(connection, table)
        names = sql.SQL(", ").join(sql.Identifier(table.schema, table.name) for table in there)
        if members is None:
            command = sql.SQL("CREATE PUBLICATION {} FOR TABLE {}") if there else sql.SQL("CREATE PUBLICATION {}")
        else:
            command = sql.SQL("ALTER PUBLICATION {} ADD TABLE {}")
        statement = command.format(sql.Identifier(PUBLICATION), *([names] if there else []))
        try:
            connection.execute(statement)
        except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
            pass  # another daemon was as fast
        except psycopg.Error as exc:
            raise _not_allowed(exc, statement) from exc
        return bool(there)

    @staticmethod
    def _members(connection: psycopg.Connection[TupleRow]) -> set[Table] | None:
        rows = connection.execute(bound("jobs", "publication_members"), {"publication": PUBLICATION}).fetchall()
        return {Table(row[0], row[1]) for row in rows if row[0] is not None} if rows else None


def _is_there(connection: psycopg.Connection[TupleRow], table: Table) -> bool:
    return bool(connection.execute(bound("jobs", "columns"), {"schema": table.schema, "table": table.name}).fetchall())


def _identify(connection: psycopg.Connection[TupleRow], table: Table) -> None:
    """See that UPDATE and DELETE of a table still work once it is published."""
    row = connection.execute(bound("jobs", "identified"), {"schema": table.schema, "table": table.name}).fetchone()
    if row is None or row[0]:
        return
    statement = sql.SQL("ALTER TABLE {} REPLICA IDENTITY FULL").format(sql.Identifier(table.schema, table.name))
    try:
        connection.execute(statement)
    except psycopg.Error as exc:
        raise _not_allowed(exc, statement) from exc


def _not_allowed(exc: psycopg.Error, statement: sql.Composable) -> WalvecError:
    found = classify(exc)
    if isinstance(found, Unavailable):
        return found
    return ConfigError(found.message, f"Let the tables' owner run: {statement.as_string(None)};")


class _Ear:
    """Listens for transactions that changed a row. Implements :class:`cdc.postgres.replication.Listener`."""

    is_full = False

    def __init__(self, changed: Callable[[int], None]) -> None:
        self._changed = changed
        self._xid = 0
        self._touched = False
        self._received = 0

    def feed(self, frames: Sequence[bytes]) -> list[Keepalive]:
        """Take frames in; return the keepalives among them."""
        keepalives: list[Keepalive] = []
        for frame in frames:
            if frame[0] == KEEPALIVE:
                parsed = parse_frame(frame)
                if isinstance(parsed, Keepalive):
                    keepalives.append(parsed)
                continue
            kind = frame[BODY]
            if kind == ord("B"):
                (self._xid,) = _XID(frame, BODY + 17)
                self._touched = False
            elif kind in _ROW_CHANGES:
                self._touched = True
            elif kind == ord("C"):
                (self._received,) = _END(frame, BODY + 10)
                if self._touched:
                    self._changed(self._xid)
        return keepalives

    def received(self) -> int:
        """Return the end of the newest commit taken in."""
        return self._received

    def acknowledged(self) -> int:
        """Return the same: nothing is kept for later."""
        return self._received

    def missed(self, what: str) -> None:
        """Changes were skipped: look."""
        self._changed(self._xid)
