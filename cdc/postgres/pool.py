"""The pool of ordinary sessions that pipelines read and write with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool

from cdc.postgres.binary import ArrayLiteral, ArrayLiteralDumper, BinaryArray, BinaryArrayDumper
from cdc.postgres.connect import ConnectionSettings, connection_params

Pool = AsyncConnectionPool[psycopg.AsyncConnection[Any]]

WORK_SESSIONS = 6
"""Most sessions of pipelines: enough for writes and reads side by side, few beside an application's own."""

SCAN_SESSIONS = 2
"""Most sessions that count, scan or empty whole tables: such statements can take minutes, and wait for their turn."""

CONTROL_SESSIONS = 2
"""Most sessions of the engine itself, apart, so that long scans of many tables never keep it waiting."""

LOCK_TIMEOUT = "5s"
"""How long a statement waits for a lock that somebody else holds before it is put off."""


@dataclass(frozen=True, slots=True)
class WorkPools:
    """The sessions that pipelines share: ``quick`` for statements by key, ``slow`` for those over whole tables."""

    quick: Pool
    slow: Pool


PLANNER_OFF = ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "enable_material")
"""What never suits rows looked up by key: a plan may be made while a table is empty, and kept while it grows."""


async def open_pool(settings: ConnectionSettings, role: str, sessions: int, patience_s: float) -> Pool:
    """Return an open pool in autocommit mode. Sessions are made as they are needed.

    Args:
        settings: Where to connect.
        role: What the sessions are for, shown in ``pg_stat_activity``.
        sessions: How many there may be at once.
        patience_s: How long to wait for a free or a new one, in seconds.
    """
    params = connection_params(settings, role)
    pool: Pool = AsyncConnectionPool(
        kwargs={**params, "autocommit": True, "prepare_threshold": 0},
        min_size=1,
        max_size=sessions,
        timeout=patience_s,
        max_idle=300.0,
        reconnect_timeout=5.0,
        configure=_configure,
        check=AsyncConnectionPool.check_connection,
        open=False,
        name=f"walvec {role}",
    )
    await pool.open()
    return pool


async def _configure(connection: psycopg.AsyncConnection[Any]) -> None:
    connection.adapters.register_dumper(BinaryArray, BinaryArrayDumper)
    connection.adapters.register_dumper(ArrayLiteral, ArrayLiteralDumper)
    await connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
    # Plans of statements over arrays do not depend on the arrays' contents.
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    await connection.execute("SET jit = off")
    for method in PLANNER_OFF:
        await connection.execute(f"SET {method} = off")
