"""Databases that hold tables of jobs of their own: which tables those are, and the registry that lists databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Final

import psycopg
import structlog
from psycopg import sql
from psycopg.rows import TupleRow

from cdc.errors import ConfigError, Unavailable
from cdc.flow.disposition import backoff_s
from cdc.flow.snapshots import Snapshot
from cdc.jobs import JobKind
from cdc.ports.books import BookName
from cdc.postgres import control
from cdc.postgres.connect import ConnectionSettings, classify, connect_sync
from cdc.postgres.job_feed import JobFeed
from cdc.postgres.queries import bound, query
from cdc.postgres.setup import SetupSettings
from cdc.rows import Table

log = structlog.get_logger()

COLUMN = "db_uri"


NAMES: Final[Mapping[JobKind, tuple[str, ...]]] = {
    JobKind.EMBEDDING: ("embedding_generation_jobs",),
    JobKind.EXTERNAL_INDEX: ("external_index_jobs",),
    JobKind.AUTOTUNE: ("index_autotune_jobs", "autotune_jobs"),
}
"""What tables of jobs are called in databases that hold their own."""


def ensure_own_tables(settings: SetupSettings) -> bool:
    """Make the control schema in a control database, where the role may; return whether it is there.

    It holds what jobs used. Without it, that is written only where tables for it exist.
    """
    with connect_sync(settings, "init") as connection:
        try:
            control.ensure(connection, settings.schema)
        except ConfigError as exc:
            log.warning("usage_not_kept", message=str(exc))
            return False
    return True


def find_books(
    settings: SetupSettings, schema: str, kinds: Collection[JobKind]
) -> tuple[list[BookName], Table | None, str]:
    """Return the tables of jobs of ``kinds`` in a schema, the one of results, and what tells the database from others.

    Makes the control schema first.

    Raises:
        ConfigError: there is none.
    """
    with connect_sync(settings, "init") as connection:
        control.ensure(connection, settings.schema)
        found = [
            BookName(kind, table)
            for kind, names in NAMES.items()
            if kind in kinds and (table := _first(connection, schema, names)) is not None
        ]
        results = _first(connection, schema, ("autotune_results",))
        if not found:
            raise ConfigError(
                f'The schema "{schema}" of {connection.info.dbname} has no table of jobs.', "Correct --schema."
            )
        row = connection.execute(bound("jobs", "identity")).fetchone()
        assert row is not None
    return found, results, f"{row[0]}/{row[1]}"


def _first(connection: psycopg.Connection[TupleRow], schema: str, names: Sequence[str]) -> Table | None:
    for name in names:
        if connection.execute(bound("jobs", "columns"), {"schema": schema, "table": name}).fetchall():
            return Table(schema, name)
    return None


class Databases:
    """The registry: a table whose column ``db_uri`` names one database per row."""

    def __init__(self, settings: ConnectionSettings, table: Table) -> None:
        self._settings = settings
        self._table = table
        self._wake = asyncio.Event()
        self._heard: set[int] = set()

    async def follow(self) -> AsyncIterator[frozenset[str]]:
        """Yield the databases that are listed, now and whenever that has changed.

        Raises:
            ConfigError: at the start, the registry will not do.
        """
        feed: asyncio.Task[None] | None = None
        last: frozenset[str] | None = None
        attempt = 0
        try:
            while True:
                self._wake.clear()
                heard = frozenset(self._heard)
                try:
                    listed, seen = await asyncio.to_thread(self._read)
                except (ConfigError, Unavailable) as exc:
                    if last is None and isinstance(exc, ConfigError):
                        raise
                    attempt += 1
                    log.warning("database_unavailable", message=str(exc))
                    await asyncio.sleep(backoff_s(attempt))
                    continue
                attempt = 0
                self._heard -= {xid for xid in heard if seen.covers(xid)}
                feed = feed or asyncio.create_task(self._feed().run(), name="feed of the registry")
                if listed != last:
                    last = listed
                    yield listed
                if self._heard:
                    await asyncio.sleep(0.002)
                else:
                    await self._wake.wait()
        finally:
            if feed is not None:
                feed.cancel()
                await asyncio.gather(feed, return_exceptions=True)

    def _feed(self) -> JobFeed:
        return JobFeed(self._settings.database_url, [self._table], self._changed)

    def _changed(self, xid: int | None) -> None:
        if xid is not None:
            self._heard.add(xid)
        self._wake.set()

    def _read(self) -> tuple[frozenset[str], Snapshot]:
        with connect_sync(self._settings, "registry") as connection:
            try:
                names = {"schema": self._table.schema, "table": self._table.name}
                columns = {row[0] for row in connection.execute(bound("jobs", "columns"), names).fetchall()}
                if COLUMN not in columns:
                    what = f"no column {COLUMN}" if columns else "no such table"
                    raise ConfigError(
                        f"The registry of databases {self._table} cannot be read: there is {what}.",
                        f"CREATE TABLE {self._table} ({COLUMN} text PRIMARY KEY);",
                    )
                row = connection.execute("SELECT pg_catalog.pg_current_snapshot()::text").fetchone()
                assert row is not None
                book = sql.Identifier(self._table.schema, self._table.name)
                rows = connection.execute(query("jobs", "targets", book=book)).fetchall()
            except psycopg.Error as exc:
                raise classify(exc) from exc
        return frozenset(uri.strip() for (uri,) in rows if uri.strip()), Snapshot.parse(row[0])
