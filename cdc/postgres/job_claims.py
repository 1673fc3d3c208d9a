"""Who runs a job: advisory locks in the control database, all held by one session."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import psycopg
import structlog

from cdc.postgres.connect import classify
from cdc.postgres.job_tables import Conn, connect
from cdc.postgres.queries import bound

log = structlog.get_logger()

LOOK_S: Final = 2.0
"""Seconds between looks at the session that holds the claims."""


class Claims:
    """Advisory locks, all held by one session: when it ends, every claim is lost at once."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._params = params
        self._connection: Conn | None = None
        self._ended = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._held: set[str] = set()

    async def claim(self, name: str) -> JobClaim | None:
        async with self._turn:
            if self._connection is None or self._connection.closed:
                self._connection = await connect(self._params)
                self._ended = asyncio.Event()
                self._held = set()
                self._watch = asyncio.create_task(self._look(self._connection, self._ended), name="claims")
            if name in self._held:  # of one session a second lock would be granted, too
                return None
            try:
                cursor = await self._connection.execute(bound("jobs", "claim"), {"name": name})
                row = await cursor.fetchone()
            except psycopg.Error as exc:
                raise classify(exc) from exc
            if row is None or not row[0]:
                return None
            self._held.add(name)
            return JobClaim(self, name, self._ended)

    async def release(self, name: str, ended: asyncio.Event) -> None:
        async with self._turn:
            if self._connection is None or self._ended is not ended or ended.is_set():
                return
            self._held.discard(name)
            try:
                await self._connection.execute(bound("jobs", "unclaim"), {"name": name})
            except psycopg.Error:
                ended.set()  # the session is gone, and the lock with it

    async def _look(self, connection: Conn, ended: asyncio.Event) -> None:
        try:
            while not connection.closed:
                async with self._turn:
                    await connection.execute("SELECT")
                await asyncio.sleep(LOOK_S)
        except psycopg.Error as exc:
            log.warning("database_unavailable", message=str(classify(exc)))
        finally:
            ended.set()
            await connection.close()

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._connection is not None:
            await self._connection.close()


class JobClaim:
    """Implements :class:`cdc.ports.books.Claim`."""

    def __init__(self, claims: Claims, name: str, ended: asyncio.Event) -> None:
        self._claims = claims
        self._name = name
        self._ended = ended

    async def lost(self) -> None:
        """Return when the right is lost."""
        await self._ended.wait()

    async def release(self) -> None:
        """Give the right back."""
        await self._claims.release(self._name, self._ended)
