"""The consumer's sessions with the control schema, shared by the keeper of the slot and that of the pipelines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from cdc.postgres.connect import classify
from cdc.postgres.pool import CONTROL_SESSIONS, SCAN_SESSIONS, WORK_SESSIONS, Pool, WorkPools, open_pool
from cdc.postgres.queries import bound
from cdc.postgres.setup import SetupSettings


class ConsumerSettings(SetupSettings, Protocol):
    """What the consumer's side of PostgreSQL needs to know."""

    @property
    def model(self) -> str:
        """The model's name."""

    @property
    def recipe(self) -> str:
        """The model, and all else that its vectors depend on, where it is set."""

    @property
    def index(self) -> str:
        """``hnsw`` or ``off``."""


class ControlSession:
    """Pools of sessions, the queries of ``sql/registry.sql``, and the epoch that this consumer holds."""

    def __init__(self, settings: ConsumerSettings) -> None:
        self.settings = settings
        self.epoch = 0
        self._schema = sql.Identifier(settings.schema)
        self._pool: Pool | None = None
        self._work: WorkPools | None = None

    @property
    def work(self) -> WorkPools:
        """The pipelines' own sessions; :meth:`open` comes first."""
        assert self._work is not None, "open() comes first"
        return self._work

    @property
    def is_open(self) -> bool:
        """Whether :meth:`open` has been called."""
        return self._pool is not None

    async def open(self) -> None:
        """Open the pools, unless they are."""
        if self._pool is None:
            self._pool = await open_pool(self.settings, "control", CONTROL_SESSIONS, patience_s=5.0)
        if self._work is None:
            self._work = WorkPools(
                await open_pool(self.settings, "work", WORK_SESSIONS, patience_s=30.0),
                await open_pool(self.settings, "scan", SCAN_SESSIONS, patience_s=3600.0),
            )

    async def close(self) -> None:
        """Let go of the connections."""
        pools = [self._pool, *((self._work.quick, self._work.slow) if self._work is not None else ())]
        self._pool = self._work = None
        for pool in pools:
            if pool is not None:
                await pool.close()

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """Lend a session of the pool; what goes wrong with it is said in this package's words."""
        assert self._pool is not None, "open() comes first"
        try:
            async with self._pool.connection() as connection:
                yield connection
        except psycopg.Error as exc:
            raise classify(exc) from exc

    def query(self, name: str) -> sql.SQL:
        """Return a query of ``sql/registry.sql``."""
        return bound("registry", name, schema=self._schema)

    async def rows(self, name: str, params: dict[str, Any]) -> list[TupleRow]:
        """Run a query; return its rows, none where it gives none."""
        async with self.lend() as connection:
            cursor = await connection.execute(self.query(name), params)
            return await cursor.fetchall() if cursor.description else []

    async def one(self, name: str, params: dict[str, Any]) -> TupleRow | None:
        """Run a query; return its first row."""
        rows = await self.rows(name, params)
        return rows[0] if rows else None

    async def run(self, name: str, params: dict[str, Any]) -> None:
        """Run a query for what it does."""
        await self.rows(name, params)

    async def need_reconcile(self, reason: str, id: int | None = None) -> None:
        """Make it durable that one pipeline of the slot, or all, must be scanned from the start."""
        await self.run("need_reconcile", {"slot": self.settings.slot, "reason": reason, "pipeline": id})
