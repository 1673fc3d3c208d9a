"""What every process in the foreground needs: signals, and threads for calls that block."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

THREADS = 64
"""Most calls to databases that block at once: connecting, setting up, reading the registry."""


def use_threads() -> None:
    """Have calls that block run in enough threads. A database that does not answer keeps one waiting, and no other."""
    executor = ThreadPoolExecutor(THREADS, thread_name_prefix="walvec-database")
    asyncio.get_running_loop().set_default_executor(executor)


def until_signalled(stop: Callable[[], None]) -> None:
    """Call ``stop`` on SIGTERM or SIGINT; at the second, end the process at once."""
    loop = asyncio.get_running_loop()
    asked = 0

    def hear() -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            os._exit(1)  # asked twice: now; a restart picks up where the slots stand
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, hear)
