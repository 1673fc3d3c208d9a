"""Which machine a figure belongs to."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path


def cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> str:
    """Return the load average of the last minute: what else the machine is doing."""
    return f"{os.getloadavg()[0]:.1f}"


def describe(postgres: str) -> str:
    """Return one line that names the machine, the interpreter and the server version ``postgres``."""
    return (
        f"{cores()} cores of {_processor()}, {_memory_gib():.0f} GiB, Python {platform.python_version()}, "
        f"PostgreSQL {postgres}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or sys.platform


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
