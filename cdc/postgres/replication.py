"""The replication connection: COPY BOTH over psycopg's libpq layer, read by a thread of its own.

The thread polls the socket, hands frames to the intake, and sends status replies whether or not it is reading: a slow
model stops the reading, never the replies (https://www.postgresql.org/docs/current/protocol-replication.html). libpq's
blocking read would hold the interpreter's lock, so reading is asynchronous throughout.
"""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import psycopg
from psycopg import pq, sql

from cdc.errors import DecodeError, PublicationMissing, SlotLost, Unavailable, WalvecError
from cdc.postgres.connect import REPLICATION, ConnectionSettings, classify, connection_params
from cdc.wire.frames import BODY, Keepalive, pg_us
from cdc.wire.session import Session

FRAMES = 2000
"""Frames handed over at once: enough to be cheap, few enough that nobody waits long for the lock."""

SENDER_TIMEOUT_S = 15
"""``wal_sender_timeout`` of our session: a dead consumer's slot is free for the next one after this long."""

SKIPPED = "skipped loading publication"


class StreamSettings(ConnectionSettings, Protocol):
    """What streaming needs to know."""

    @property
    def publication(self) -> str:
        """The publication's name."""


class Listener(Protocol):
    """Who is told what the stream says."""

    def feed(self, frames: Sequence[bytes]) -> list[Keepalive]:
        """Take frames in, in order; return the keepalives among them."""

    def acknowledged(self) -> int:
        """Return the furthest position that may be acknowledged."""

    def missed(self, what: str) -> None:
        """Hear that changes were skipped."""

    @property
    def is_full(self) -> bool:
        """Whether reading should pause."""


class PostgresStream:
    """One replication connection. Implements :class:`cdc.ports.Stream`."""

    def __init__(self, connection: psycopg.Connection[Any], system: str, timeline: int, listener: Listener,
                 ended: Callable[[], None]) -> None:  # fmt: skip
        self.system = system
        self.timeline = timeline
        self._connection = connection
        self._pg = connection.pgconn
        self._listener = listener
        self._ended = ended
        self._failure: WalvecError | None = None
        self._stopping = False
        self._reading = True
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._session = Session(time.monotonic(), sender_timeout_s=SENDER_TIMEOUT_S)
        self._thread = threading.Thread(target=self._run, name="walvec stream", daemon=True)
        self._warnings: list[str] = []
        connection.add_notice_handler(self._notice)

    def begin(self) -> None:
        """Start reading."""
        self._thread.start()

    def acknowledge(self) -> None:
        """Say that work settled, so that a status reply may be due. Any thread."""
        try:
            os.write(self._wake_write, b".")
        except OSError:
            pass  # the pipe is full, so the thread is awake already; or the stream has ended

    @property
    def failure(self) -> WalvecError | None:
        """Why reading ended, if it did."""
        return self._failure

    async def close(self, *, drain: bool) -> None:
        """Stop reading, send the last status reply, and hang up."""
        self._stopping = True
        self.acknowledge()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, 5.0)
        try:
            if drain and self._failure is None:
                self._session.acknowledge(self._listener.acknowledged())
                self._send_status(final=True)
                self._pg.put_copy_end()
                self._pg.flush()
        except (psycopg.Error, OSError):
            pass
        self._connection.close()
        for descriptor in (self._wake_read, self._wake_write):
            os.close(descriptor)
