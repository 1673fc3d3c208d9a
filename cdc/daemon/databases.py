"""Databases that hold tables of jobs of their own: each is served by a director, as long as it is named."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from cdc.config import Settings
from cdc.daemon.plan import Plan
from cdc.errors import ConfigError, WalvecError
from cdc.flow.disposition import backoff_s
from cdc.ports.books import BookName
from cdc.postgres.job_registry import COLUMN, Databases, find_books
from cdc.postgres.job_usage import Extras
from cdc.services.director import UNREAD, Director
from cdc.services.tasks import end
from cdc.telemetry import logs

log = structlog.get_logger()

AGAIN_S: Final = 5.0
"""The longest pause before a database that could not be served is tried again."""

LOOK_S: Final = 5.0
"""The longest that a database which is named no more is waited for, where its jobs have not been read yet."""


class Directing(Protocol):
    """What is needed of the daemon."""

    def at(self, url: str) -> Settings:
        """Return the settings of the database at ``url``."""
        ...

    async def own(self, connection: str, called: str) -> tuple[str, str]:
        """Return URL and place of what the daemon was given as ``called``. Raises ConfigError."""
        ...

    def director(self, url: str, place: str, books: Sequence[BookName], extras: Extras) -> Director:
        """Return a director of the books in one database."""
        ...

    async def direct(self, director: Director, url: str, books: Sequence[BookName]) -> None:
        """Run a director until it is stopped."""
        ...


@dataclass(slots=True, eq=False)
class _Served:
    """One connection string that is named; ``director`` is None while another one of the same database is served."""

    place: str
    director: Director | None
    task: asyncio.Task[None] | None = None
    identity: str = ""  # of the database that it serves, or waits for
    waits: bool = False


class OwnTables:
    """Serves the databases that are named, and those of the registry as it changes.

    Args:
        plan: What to do.
        daemon: What a database is served with.
        stopping: Set when the daemon is to end.
    """

    def __init__(self, plan: Plan, daemon: Directing, stopping: asyncio.Event) -> None:
        self.troubles: dict[str, tuple[str, str]] = {}  # by connection string: a name for people, why it is not served
        self._plan = plan
        self._daemon = daemon
        self._stopping = stopping
        self._served: dict[str, _Served] = {}
        self._leaving: set[str] = set()  # databases that are being left
        self._left = asyncio.Event()

    def directors(self) -> list[Director]:
        """Return the directors of now."""
        return [served.director for served in list(self._served.values()) if served.director is not None]

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return what serves the databases; each ends soon after its director is stopped."""
        return [served.task for served in self._served.values() if served.task is not None]

    def stop(self) -> None:
        """Stop the directors. What jobs keep stays."""
        for director in self.directors():
            director.stop()
        self._left.set()

    async def follow(self) -> None:
        """Serve them until cancelled.

        Raises:
            ConfigError: at the start, the registry will not do.
        """
        for target in self._plan.targets:
            await self._add(target, "--target-db")
        if self._plan.master is None:
            await asyncio.Event().wait()
            return
        url, _ = await self._daemon.own(self._plan.master[0], "--master-db")
        registry = Databases(self._daemon.at(url), self._plan.master[1])
        async for wanted in registry.follow():
            named = {*wanted, *self._plan.targets}
            for gone in [connection for connection in self._served if connection not in named]:
                await self._remove(gone)
            for refused in [connection for connection in self.troubles if connection not in named]:
                del self.troubles[refused]
            for connection in sorted(named - self._served.keys()):
                await self._add(connection, COLUMN)

    async def _add(self, connection: str, called: str) -> None:
        if connection in self._served:
            return
        try:
            url, place = await self._daemon.own(connection, called)
        except ConfigError as exc:
            name = "a database of the registry" if called == COLUMN else f"a database of {called}"
            self._say(connection, name, exc)
            return
        served = self._served[connection] = _Served(place, self._daemon.director(url, place, (), Extras()))
        served.task = asyncio.create_task(self._serve(connection, served, url), name=f"director {place}")
        log.info("database_added", database=place)

    def _say(self, connection: str, name: str, exc: Exception) -> None:
        """Say once why a database is not served: of a fault that is none of ours only the type may be shown."""
        said = str(exc) if isinstance(exc, WalvecError) else f"An unexpected fault: {type(exc).__name__}."
        trouble = (name, logs.clean(said))
        if self.troubles.get(connection) != trouble:
            log.error("database_refused", database=name, message=trouble[1])
        self.troubles[connection] = trouble

    # -- one database -----------------------------------------------------------------------------------------------

    async def _serve(self, connection: str, served: _Served, url: str) -> None:
        """Direct the jobs of one target database. Whatever is wrong with it is said, and tried again."""
        attempt = 0
        while not self._stopping.is_set():
            attempt += 1
            try:
                await self._serve_once(connection, served, url)
                return
            except Exception as exc:  # whatever goes wrong here, it stops no other database
                self._say(connection, served.place, exc)
            if served.director is not None:
                with contextlib.suppress(Exception):
                    await served.director.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff_s(attempt, first=0.5, most=AGAIN_S))

    async def _serve_once(self, connection: str, served: _Served, url: str) -> None:
        schema = self._plan.schema or self._daemon.at(url).schema
        books, results, identity = await asyncio.to_thread(find_books, self._daemon.at(url), schema, self._plan.kinds)
        await self._turn(served, identity)
        served.director = self._daemon.director(
            url, served.place, books, Extras(results, (schema, self._daemon.at(url).schema))
        )
        self.troubles.pop(connection, None)
        await self._daemon.direct(served.director, url, books)

    async def _turn(self, served: _Served, identity: str) -> None:
        """Wait until no other connection string serves this very database: two directors would stop each other."""
        served.identity, served.waits = identity, True
        if self._is_served(identity):
            served.director = None
            log.warning("database_listed_twice", database=served.place)
        while self._is_served(identity) and not self._stopping.is_set():
            self._left.clear()
            await self._left.wait()
        served.waits = False

    def _is_served(self, identity: str) -> bool:
        if identity in self._leaving:
            return True
        return any(served.identity == identity and not served.waits for served in self._served.values())

    def _is_waited_for(self, identity: str) -> bool:
        return any(served.identity == identity and served.waits for served in self._served.values())

    @staticmethod
    async def _first_look(served: _Served) -> None:
        """Let a director that has only begun read its jobs: what it does not know of it cannot clear away."""
        for _ in range(int(LOOK_S / 0.05)):
            director = served.director
            if director is None or not served.identity or served.waits or director.trouble != UNREAD:
                return
            await asyncio.sleep(0.05)

    async def _remove(self, connection: str) -> None:
        """Serve a database no more: its slot must not keep its WAL, unless it is named another way, too."""
        served = self._served.pop(connection)
        if served.director is not None:
            await self._first_look(served)
            served.director.stop()
        if served.task is not None:
            await end([served.task])
        if served.director is not None:
            self._leaving.add(served.identity)
            try:
                await served.director.close(discard=not self._is_waited_for(served.identity))
            finally:
                self._leaving.discard(served.identity)
        self.troubles.pop(connection, None)
        self._left.set()
        log.info("database_removed", database=served.place)
