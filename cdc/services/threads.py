"""Work in threads that is ended, and waited for, when the task that asked for it is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

from cdc.errors import WalvecError

T = TypeVar("T")


async def in_thread(
    work: Callable[[], T], interrupt: Callable[[], None] | None = None, stop: threading.Event | None = None
) -> T:
    """Run ``work`` in a thread; when cancelled, end it and wait for its end before going on.

    Args:
        work: What is done there.
        interrupt: Makes whatever blocks in ``work`` return or raise soon; called again and again until it does.
        stop: Set when cancelled, for ``work`` to look at.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if stop is not None:
            stop.set()
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                if interrupt is not None:
                    await whole(asyncio.to_thread(interrupt))
                await asyncio.wait([task], timeout=1.0)
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not report it as forgotten
        raise


async def whole(work: Awaitable[object]) -> None:
    """Await ``work`` to its end, however often we are cancelled meanwhile; then be cancelled."""
    task, cancelled = asyncio.ensure_future(work), False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    with contextlib.suppress(WalvecError):
        task.result()


def from_thread(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> Callable[[], None]:
    """Return a function that has ``call`` called in ``loop``, from whatever thread."""

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(call)

    return wake
