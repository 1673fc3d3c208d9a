"""The pool of ordinary sessions that pipelines read and write with."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool

from cdc.postgres.binary import ArrayLiteral, ArrayLiteralDumper, BinaryArray, BinaryArrayDumper
from cdc.postgres.connect import ConnectionSettings, connection_params

Pool = AsyncConnectionPool[psycopg.AsyncConnection[Any]]

SESSIONS = 6
"""Most sessions at once: enough for a write, a read and a scan side by side, few beside an application's own."""

LOCK_TIMEOUT = "5s"
"""How long a statement waits for a lock that somebody else holds before it is put off."""


PLANNER_OFF = ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "enable_material")
"""What never suits rows looked up by key: a plan may be made while a table is empty, and kept while it grows."""


async def open_pool(settings: ConnectionSettings) -> Pool:
    """Return an open pool in autocommit mode. Sessions are made as they are needed."""
    params = connection_params(settings, "work")
    pool: Pool = AsyncConnectionPool(
        kwargs={**params, "autocommit": True, "prepare_threshold": 0},
        min_size=1,
        max_size=SESSIONS,
        timeout=15.0,
        max_idle=300.0,
        reconnect_timeout=5.0,
        configure=_configure,
        check=AsyncConnectionPool.check_connection,
        open=False,
        name="walvec",
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
