"""A TCP proxy that misbehaves on request: resets, black holes, latency, narrow lines, one byte at a time.

    with FaultProxy("127.0.0.1", cluster.port) as proxy:
        connection = psycopg.connect(cluster.dsn(port=proxy.port))
        proxy.stall()      # a black hole: both ends stay connected and hear nothing
        proxy.heal()
        proxy.reset()      # RST to both ends of every connection

It runs in a thread of its own and moves bytes only; methods may be called from any thread and take effect, on open
connections too, before they return.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Final, Self

_CHUNK: Final = 65_536
_QUEUED_CHUNKS: Final = 64  # what the line holds in flight; beyond it the sender feels back-pressure
_RST_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds


class FaultProxy:
    """Listens on 127.0.0.1 and passes each connection on to ``host``:``port``, with the faults of the moment."""

    def __init__(self, host: str, port: int) -> None:
        self.connections = 0  # accepted so far
        self.port = 0
        self._target = (host, port)
        self._latency_s = 0.0
        self._bytes_per_s = 0.0
        self._slice_bytes = _CHUNK
        self._reset_after: int | None = None
        self._flowing = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.heal()
        self.accept()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.refuse()
        self.reset()
        asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    # --- faults -------------------------------------------------------------------------------------------------

    def shape(self, *, latency_s: float = 0.0, bytes_per_s: float = 0.0, slice_bytes: int = _CHUNK) -> None:
        """Make the line slow, each way.

        Args:
            latency_s: How long each byte is under way.
            bytes_per_s: How many pass a second; 0 for no limit.
            slice_bytes: The largest piece passed on at once; 1 cuts every message everywhere.
        """

        def set_shape() -> None:
            self._latency_s, self._bytes_per_s, self._slice_bytes = latency_s, bytes_per_s, slice_bytes

        self._on_loop(set_shape)

    def stall(self) -> None:
        """Pass nothing on, not even the end of a connection. New ones are accepted, and hear nothing either."""
        self._on_loop(self._flowing.clear)

    def heal(self) -> None:
        """End every fault; what was held back by :meth:`stall` goes on its way."""

        def end_faults() -> None:
            self._latency_s, self._bytes_per_s, self._slice_bytes, self._reset_after = 0.0, 0.0, _CHUNK, None
            self._flowing.set()

        self._on_loop(end_faults)

    def reset(self) -> None:
        """Send RST to both ends of every open connection."""
        self._on_loop(self._reset_all)

    def reset_after(self, count: int) -> None:
        """Do so once ``count`` more bytes have gone to the clients, in the middle of whatever message that is."""

        def set_count() -> None:
            self._reset_after = count

        self._on_loop(set_count)

    def refuse(self) -> None:
        """Refuse new connections; open ones live on."""

        def close_listener() -> None:
            if self._listener is not None:
                self._loop.remove_reader(self._listener)
                self._listener.close()
                self._listener = None

        self._on_loop(close_listener)

    def accept(self) -> None:
        """Accept connections, after :meth:`refuse` on the same port."""

        def open_listener() -> None:
            if self._listener is None:
                self._listener = socket.create_server(("127.0.0.1", self.port))
                self._listener.setblocking(False)
                self.port = self._listener.getsockname()[1]
                self._loop.add_reader(self._listener, self._accept_one, self._listener)

        self._on_loop(open_listener)

    # --- on the loop --------------------------------------------------------------------------------------------

    def _on_loop(self, action: Callable[[], None]) -> None:
        async def act() -> None:
            action()

        asyncio.run_coroutine_threadsafe(act(), self._loop).result(timeout=10)

    def _accept_one(self, listener: socket.socket) -> None:
        # Not asyncio's own server or sock_accept: what those hold half accepted when they end is never closed.
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            accepted, _ = listener.accept()
            accepted.setblocking(False)
            self.connections += 1
            task = self._loop.create_task(self._carry(accepted))
            self._tasks.add(task)
            task.add_done_callback(partial(self._carried, accepted))

    def _carried(self, accepted: socket.socket, task: asyncio.Task[None]) -> None:
        accepted.close()  # a task that was cancelled before its first step has closed nothing
        self._tasks.discard(task)

    async def _carry(self, accepted: socket.socket) -> None:
        client_reader, client = await asyncio.open_connection(sock=accepted)
        self._writers.add(client)
        server: asyncio.StreamWriter | None = None
        try:
            await self._flowing.wait()
            server_reader, server = await asyncio.open_connection(*self._target)
            self._writers.add(server)
            async with asyncio.TaskGroup() as group:
                for reader, writer in ((client_reader, server), (server_reader, client)):
                    line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUED_CHUNKS)
                    group.create_task(self._receive(reader, line))
                    group.create_task(self._deliver(line, writer, to_client=writer is client))
        except* (OSError, asyncio.CancelledError):
            _reset(client, server)  # what one end suffers the other end learns
        finally:
            for end in (client, server):
                if end is not None:
                    self._writers.discard(end)
                    end.close()
                    with contextlib.suppress(OSError):
                        await end.wait_closed()

    async def _receive(self, reader: asyncio.StreamReader, line: asyncio.Queue[tuple[float, bytes]]) -> None:
        data = b"-"
        while data:  # the empty one, which is the end, goes along the line too
            data = await reader.read(_CHUNK)
            await line.put((self._loop.time(), data))

    async def _deliver(
        self, line: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, *, to_client: bool
    ) -> None:
        while True:
            sent_at, data = await line.get()
            await asyncio.sleep(max(0.0, sent_at + self._latency_s - self._loop.time()))
            await self._flowing.wait()
            if not data:
                with contextlib.suppress(OSError):  # the other end may have gone meanwhile
                    writer.write_eof()
                return
            while data:
                piece, data = data[: self._slice_bytes], data[self._slice_bytes :]
                await self._send(piece, writer, to_client=to_client)

    async def _send(self, piece: bytes, writer: asyncio.StreamWriter, *, to_client: bool) -> None:
        if to_client and self._reset_after is not None:
            piece = piece[: self._reset_after]
            self._reset_after -= len(piece)
        writer.write(piece)
        await writer.drain()
        if to_client and self._reset_after == 0:
            self._reset_after = None
            self._reset_all()
        # Small pieces leave one by one: the peer gets a turn between them.
        await asyncio.sleep(len(piece) / self._bytes_per_s if self._bytes_per_s else 0)
        await self._flowing.wait()

    def _reset_all(self) -> None:
        _reset(*self._writers)
        for task in self._tasks:
            task.cancel()

    async def _finish(self) -> None:
        while self._tasks:
            await asyncio.sleep(0)
        for _ in range(3):  # transports say goodbye in callbacks that are still to run
            await asyncio.sleep(0)


def _reset(*writers: asyncio.StreamWriter | None) -> None:
    for writer in writers:
        raw = writer.get_extra_info("socket") if writer is not None else None
        if writer is not None and raw is not None and raw.fileno() >= 0:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
            # Nagle's leftovers would be flushed by a polite close; an abort drops them.
            writer.transport.abort()
