"""Blocking calls into the engine, from an event loop that must never block."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from cdc.errors import TimedOut, Unavailable

T = TypeVar("T")


class Calls:
    """Runs each call in a daemon thread and waits for it so long and no longer.

    A thread that is stuck in a stuck engine cannot be ended: its caller gets an answer in time, the thread keeps its
    place until it returns, and it does not keep the process from exiting (an executor's threads would).

    Args:
        limit: Calls under way at once; beyond it a call is refused.
    """

    def __init__(self, limit: int = 16) -> None:
        self._limit = limit
        self._running = 0  # changed in the event loop's thread only

    async def run(self, function: Callable[[], T], timeout_s: float) -> T:
        """Return ``function()``.

        Raises:
            TimedOut: no result after ``timeout_s``.
            Unavailable: ``limit`` calls are under way.
            Exception: whatever ``function`` raised.
        """
        if self._running >= self._limit:
            raise Unavailable(f"{self._limit} requests are waiting for the engine.", "Try again later.")
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()

        def settle(value: T | None, fault: Exception | None) -> None:
            self._running -= 1
            if result.done():  # its caller has given up
                return
            if fault is not None:
                result.set_exception(fault)
            else:
                result.set_result(value)  # type: ignore[arg-type]

        def work() -> None:
            value, fault = None, None
            try:
                value = function()
            except Exception as raised:
                fault = raised
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server stopped, and nobody waits
                loop.call_soon_threadsafe(settle, value, fault)

        self._running += 1
        threading.Thread(target=work, name="walvec-http-call", daemon=True).start()
        try:
            return await asyncio.wait_for(result, timeout_s)
        except TimeoutError:
            raise TimedOut(f"The engine did not answer within {timeout_s:g} s.") from None
