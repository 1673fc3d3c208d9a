"""The replication connection: COPY BOTH over psycopg's libpq layer, read by a thread of its own.

The thread polls the socket, hands frames to the listener, and sends status replies whether or not it is reading: a slow
model stops the reading, never the replies (https://www.postgresql.org/docs/current/protocol-replication.html). libpq's
blocking read would hold the interpreter's lock, so reading is asynchronous throughout.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import psycopg
from psycopg import sql
from psycopg.errors import Diagnostic, error_from_result
from psycopg.pq import DiagnosticField

from cdc.errors import Unavailable, WalvecError
from cdc.lsn import Lsn
from cdc.postgres.connect import REPLICATION, ConnectionSettings, classify, connection_params
from cdc.wire.frames import Keepalive, pg_us
from cdc.wire.session import ReplicationSession, SessionLimits

FRAMES = 2000
"""Frames handed over at once: enough to be cheap, few enough that nobody waits long for the lock."""

SENDER_TIMEOUT_S = 15
"""``wal_sender_timeout`` of our session: a dead consumer's slot is free for the next one after this long."""

SKIPPED = "skipped loading publication"
"""What PostgreSQL 18 warns of where it leaves changes out, because the publication did not exist at that position."""


class StreamSettings(ConnectionSettings, Protocol):
    """What streaming needs to know."""

    @property
    def publication(self) -> str:
        """The publication's name."""


class Listener(Protocol):
    """Who is told what the stream says; called from the reading thread."""

    @property
    def is_full(self) -> bool:
        """Whether reading should pause."""

    def feed(self, frames: Sequence[bytes]) -> list[Keepalive]:
        """Take frames in, in order; return the keepalives among them."""

    def received(self) -> int:
        """Return the end of the newest commit taken in."""

    def acknowledged(self) -> int:
        """Return the furthest position that may be acknowledged."""

    def missed(self, what: str) -> None:
        """Hear that changes were skipped."""


def _connect(
    settings: StreamSettings, made: list[psycopg.Connection[Any]], given_up: threading.Event
) -> tuple[psycopg.Connection[Any], str, int]:
    """Open the connection, put it into ``made``, and identify the server: its system identifier and timeline."""
    params = connection_params(settings, REPLICATION)
    params["options"] += f" -c wal_sender_timeout={SENDER_TIMEOUT_S}s"
    try:
        connection = psycopg.connect(autocommit=True, **params)
        made.append(connection)
        if given_up.is_set():  # whoever asked has looked into ``made`` too early to find it
            connection.close()
        row = connection.execute("IDENTIFY_SYSTEM").fetchone()
        assert row is not None
        return connection, str(row[0]), int(row[1])
    except psycopg.Error as exc:
        raise classify(exc) from exc


def _start(connection: psycopg.Connection[Any], settings: StreamSettings) -> None:
    """Start streaming where the slot stands: 0/0 leaves the position to the server, which alone knows it."""
    command = sql.SQL(
        "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names {}, messages 'true')"
    ).format(sql.Identifier(settings.slot), sql.Literal(sql.Identifier(settings.publication).as_string(connection)))
    try:
        connection.execute(command)
    except psycopg.Error as exc:
        raise classify(exc) from exc


def _make_temporary(connection: psycopg.Connection[Any], settings: StreamSettings) -> None:
    """Make the slot for this connection alone. Waits for running transactions to end."""
    command = sql.SQL("CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT")
    try:
        connection.execute(command.format(sql.Identifier(settings.slot)))
    except psycopg.Error as exc:
        raise classify(exc) from exc


async def open_stream(
    settings: StreamSettings, listener: Listener, ended: Callable[[], None], *, temporary: bool = False
) -> PostgresStream:
    """Attach to the slot. Nothing is read before :meth:`PostgresStream.begin`.

    Args:
        settings: Where, which slot, which publication.
        listener: Who is told.
        ended: Called from the reading thread when it has ended by itself.
        temporary: Make the slot first; it goes with the connection.

    Raises:
        SlotInUse: another consumer holds the slot.
        SlotLost: the slot is missing or invalidated.
        Unavailable: the server is out of reach.
        ConfigError: it will not let us in.
    """
    made: list[psycopg.Connection[Any]] = []
    given_up = threading.Event()
    try:
        connection, system, timeline = await asyncio.to_thread(_connect, settings, made, given_up)
        if temporary:
            await asyncio.to_thread(_make_temporary, connection, settings)
        await asyncio.to_thread(_start, connection, settings)
    except BaseException:  # cancelled, too: the thread goes on, and what it opens must not stay open
        given_up.set()
        for opened in made:
            opened.close()
        raise
    return PostgresStream(connection, system, timeline, listener, ended)


class PostgresStream:
    """One replication connection. Implements :class:`cdc.ports.Stream`."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        system: str,
        timeline: int,
        listener: Listener,
        ended: Callable[[], None],
    ) -> None:
        self.system = system
        self.timeline = timeline
        self.failure: WalvecError | None = None
        self._connection = connection
        self._pg = connection.pgconn
        self._listener = listener
        self._ended = ended
        self._stopping = False
        self._paused = True
        self._session = ReplicationSession(time.monotonic(), SessionLimits.for_server(SENDER_TIMEOUT_S))
        # In the engine's context: what is logged from here, and by what is called from here, names the database, too.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name="walvec stream", daemon=True)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._unsent = False
        connection.add_notice_handler(self._notice)
        self._thread.start()

    # -- from the event loop ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start reading. Until then only status replies are sent: the server must not take us for dead meanwhile."""
        self._paused = False
        self.acknowledge()

    def acknowledge(self) -> None:
        """Say that work settled, so that a status reply may be due. Any thread."""
        with contextlib.suppress(OSError):  # a full pipe: the thread is awake already; a closed one: it has ended
            os.write(self._wake_write, b".")

    def pause(self) -> None:
        """Read no more; status replies go on."""
        self._paused = True

    async def close(self, *, drain: bool) -> None:
        """Stop reading, send the last status reply, and hang up."""
        self._stopping = True
        self.acknowledge()
        await asyncio.to_thread(self._thread.join, 5.0)
        if drain and self.failure is None:
            with contextlib.suppress(psycopg.Error, OSError):
                await asyncio.to_thread(self._farewell)
        self._connection.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _farewell(self) -> None:
        """Acknowledge what is done and end the copy, so that the slot is free at once."""
        self._session.acknowledge(Lsn(self._listener.acknowledged()))
        self._send_status()
        self._pg.put_copy_end()
        deadline = time.monotonic() + 2.0
        while self._pg.flush() and time.monotonic() < deadline:
            select.select([], [self._pg.socket], [], 0.1)
        while time.monotonic() < deadline:
            select.select([self._pg.socket], [], [], 0.1)
            self._pg.consume_input()
            while (size_data := self._pg.get_copy_data(1))[0] > 0:
                pass
            if size_data[0] == -1:
                return

    # -- the reading thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        except WalvecError as exc:
            self.failure = exc
        except psycopg.Error as exc:
            self.failure = classify(exc)
        except Exception as exc:  # a bug must end the stream, not be passed over with its changes
            self.failure = Unavailable(f"Reading the stream failed: {type(exc).__name__}: {exc}.")
        if self.failure is not None:
            # At once: the event loop may be waiting for this very server, and a server that stops waits for us.
            with contextlib.suppress(psycopg.Error, OSError):
                self._connection.close()
        if not self._stopping:
            self._ended()

    def _turn(self) -> None:
        paused = self._paused or self._listener.is_full
        now = time.monotonic()
        self._session.paused(now, paused)
        frames = [] if paused else self._frames()
        if frames:
            self._session.heard_data(now)
            keepalives = self._listener.feed(frames)
            self._session.heard_commit(Lsn(self._listener.received()))
            self._session.acknowledge(Lsn(self._listener.acknowledged()))
            for keepalive in keepalives:
                self._session.heard_keepalive(keepalive, now)
        self._session.acknowledge(Lsn(self._listener.acknowledged()))
        now = time.monotonic()
        if self._session.reply_due(now):
            self._send_status()
        if self._session.server_is_shutting_down:
            raise Unavailable("The server is shutting down and waits for us.")
        if self._session.is_dead(now):
            raise Unavailable(f"The server has been silent for {self._session.silent_for(now):.0f} s.")
        if not frames:
            self._wait(paused)

    def _frames(self) -> list[bytes]:
        frames: list[bytes] = []
        get = self._pg.get_copy_data
        size, dry = 0, False
        while len(frames) < FRAMES and size < 8 << 20:
            length, data = get(1)
            if not length and not dry:  # libpq has no whole frame: take in what the socket holds, once more
                dry = True
                self._pg.consume_input()
                continue
            if length <= 0:
                if length == -1:
                    self._over()
                break
            dry = False
            frames.append(bytes(data))
            size += length
        return frames

    def _over(self) -> None:
        """The server ended the stream: say why."""
        result = self._pg.get_result()
        if result is not None and result.error_field(DiagnosticField.SQLSTATE):
            raise classify(error_from_result(result))
        raise Unavailable("The server ended the stream.")

    def _wait(self, paused: bool) -> None:
        """Sleep until something arrives, work settles, or a reply is due."""
        timeout = max(0.0, min(self._session.next_deadline(time.monotonic()) - time.monotonic(), 1.0))
        readable = [self._wake_read] if paused else [self._wake_read, self._pg.socket]
        writable = [self._pg.socket] if self._unsent else []
        ready, _, _ = select.select(readable, writable, [], min(timeout, 0.05) if paused else timeout)
        if self._wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
        if self._unsent:
            self._unsent = bool(self._pg.flush())
        if self._pg.socket in ready:
            self._pg.consume_input()

    def _send_status(self) -> None:
        now = time.monotonic()
        self._pg.put_copy_data(self._session.status_bytes(now, pg_us(time.time_ns() // 1000)))
        self._unsent = bool(self._pg.flush())

    def _notice(self, diagnostic: Diagnostic) -> None:
        if SKIPPED in (diagnostic.message_primary or ""):
            self._listener.missed("the publication did not exist for a while, and changes were skipped")
