"""The control schema as the consumer uses it: epochs, pipelines, requests, and the slot."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from cdc.errors import (
    ConfigError,
    Fenced,
    ModelUnknown,
    PipelineFault,
    PublicationMissing,
    SlotInUse,
    SlotLost,
    Unavailable,
    WalvecError,
)
from cdc.flow.counts import Counted
from cdc.flow.snapshots import Snapshot
from cdc.lsn import format_lsn, parse_lsn
from cdc.ports import Followed, PipelineReport, Route, ScanPoint, SlotView, Wanted
from cdc.postgres import catalog, control, setup
from cdc.postgres.catalog import Publication, PublishedTable
from cdc.postgres.connect import classify, connect_sync
from cdc.postgres.expressions import Source
from cdc.postgres.pool import Pool, open_pool
from cdc.postgres.queries import bound
from cdc.postgres.statements import Definition
from cdc.postgres.target import PostgresTarget
from cdc.postgres.vectors import Destination, ensure_destination, ensure_index
from cdc.prepare.text import fingerprint
from cdc.rows import Table

OUT_OF_BAND = "the slot was moved or made anew by somebody else"


class RegistrySettings(setup.SetupSettings, Protocol):
    """What the registry needs to know."""

    @property
    def model(self) -> str:
        """The model's name."""

    @property
    def index(self) -> str:
        """``hnsw`` or ``off``."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A row of the control schema's pipelines, with its progress."""

    id: int
    name: str
    source: Table
    target: Table
    column: str | None
    text_columns: tuple[str, ...]
    vector_type: str
    model: str
    dimension: int | None
    fingerprint: bytes | None
    shape: str | None
    storage: str | None
    mode: str
    paused: bool
    attached: bool
    counted: Counted
    written_lsn: int
    embeddings: int
    scan: ScanPoint
    backfilled: bool
    errors: int
    target_gone: bool

    @classmethod
    def of(cls, row: TupleRow) -> Stored:
        """Return what a row of the query ``pipelines`` holds."""
        (id, name, schema, table, _oid, _key, text, target_schema, target_table, column, vector_type, model, dimension,
         config, shape, storage, mode, paused, attached, records, counted_lsn, snapshot, written, embeddings,
         reason, phase, cursor, done, total, backfilled, errors, now,
         target_gone) = row  # fmt: skip
        base = Snapshot.parse(snapshot) if snapshot else None
        return cls(
            id, name, Table(schema, table), Table(target_schema, target_table), column, tuple(text), vector_type, model,
            dimension, config, shape, storage, mode, paused, attached,
            Counted(records, parse_lsn(counted_lsn), base, parse_lsn(now)), parse_lsn(written), embeddings,
            ScanPoint(reason, phase or "rows", tuple(cursor) if cursor else None, done, total), backfilled, errors,
            target_gone,
        )  # fmt: skip


class PostgresRegistry:
    """Implements :class:`cdc.ports.Registry`. Not thread-safe: one event loop uses it."""

    def __init__(self, settings: RegistrySettings) -> None:
        self._settings = settings
        self._control = sql.Identifier(settings.schema)
        self._pool: Pool | None = None
        self._epoch = 0
        self._publication: Publication | None = None
        self._tables: dict[str, tuple[PublishedTable | None, Stored | None]] = {}
        self._incomplete = False

    # -- the slot and the epoch -------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Check the server and make what is missing: control schema, extension, slot."""
        await asyncio.to_thread(self._prepare)
        if self._pool is None:
            self._pool = await open_pool(self._settings)

    def _prepare(self) -> None:
        with connect_sync(self._settings, "setup") as connection:
            try:
                _check_server(connection)
                control.ensure(connection, self._settings.schema)
                if self._settings.vector_type != "real[]":
                    setup.ensure_vector(connection)
                self._check_slot(connection)
            except psycopg.Error as exc:
                raise classify(exc) from exc

    def _check_slot(self, connection: psycopg.Connection[TupleRow]) -> None:
        settings = self._settings
        there = connection.execute(bound("catalog", "publication"), {"publication": settings.publication}).fetchone()
        known = connection.execute(self._query("slot_row"), {"slot": settings.slot}).fetchone()
        row = connection.execute(self._query("slot_state"), {"slot": settings.slot}).fetchone()
        view = _slot_view(row)
        if there is None:
            raise PublicationMissing(
                f'The publication "{settings.publication}" does not exist, so nothing is watched.',
                setup.publication_sql(settings.publication, []),
            )
        if view.active_pid is not None:
            raise SlotInUse(f'Another consumer (pid {view.active_pid}) holds the slot "{settings.slot}".')
        if view.lost:
            raise SlotLost(f'The server has invalidated the slot "{settings.slot}": it had to keep too much WAL.')
        if not view.exists and known is not None:
            raise SlotLost(f'The slot "{settings.slot}" has been dropped.')
        setup.ensure_slot(settings, connection, lambda _: None)

    async def take_over(self, system: str, timeline: int) -> list[str]:
        """Start a new epoch, which shuts others out; return why everything must be reconciled, if it must."""
        slot = {"slot": self._settings.slot}
        before = await self._one("slot_row", slot)
        view = await self.slot()
        publication, _ = await self._discover()
        if publication is None:
            raise PublicationMissing(f'The publication "{self._settings.publication}" does not exist.')
        reasons = []
        if before is not None:
            _, oid, old_system, old_timeline, limit = before
            if oid is not None and oid != publication.oid:
                reasons.append("the publication was made anew")
            if old_system is not None and (old_system, old_timeline) != (system, timeline):
                reasons.append("the server was failed over or restored")
            if limit is not None and view.confirmed > parse_lsn(limit):
                reasons.append(OUT_OF_BAND)
        taken = {
            **slot,
            "publication": self._settings.publication,
            "publication_oid": publication.oid,
            "system": system,
            "timeline": timeline,
            "instance": f"{socket.gethostname()}:{os.getpid()}",
        }
        row = await self._one("take_over", taken)
        self._epoch = int(row[0]) if row else 0
        await self._run("adopt", {**slot, "epoch": self._epoch})
        await self._run("release_leases", slot)
        await self._run("restart_requests", slot)
        await self.reserve(view.confirmed)
        if reasons:
            await self.need_reconcile("; ".join(reasons))
        return reasons

    async def renew_slot(self) -> None:
        """Drop what is left of a lost slot, make a new one, and have everything reconciled."""
        if self._pool is None:
            self._pool = await open_pool(self._settings)
        if (await self.slot()).exists:
            await self._run("drop_slot", {"slot": self._settings.slot})
        # First the promise to reconcile, then the slot: a crash in between must not leave a gap that looks whole.
        await self.need_reconcile("the slot was lost")
        await asyncio.to_thread(self._make_slot)
        view = await self.slot()
        await self._run("reserve_any", {"slot": self._settings.slot, "limit": format_lsn(view.confirmed)})

    def _make_slot(self) -> None:
        with connect_sync(self._settings, "setup") as connection:
            setup.ensure_slot(self._settings, connection, lambda _: None)

    async def slot(self) -> SlotView:
        """Return the slot as it is now."""
        return _slot_view(await self._one("slot_state", {"slot": self._settings.slot}))

    async def reserve(self, limit: int) -> None:
        """Make it durable that nothing beyond ``limit`` has been acknowledged."""
        params = {"slot": self._settings.slot, "limit": format_lsn(limit), "epoch": self._epoch}
        if await self._one("reserve", params) is None:
            raise Fenced("Another consumer has taken over the slot.")

    # -- pipelines --------------------------------------------------------------------------------------------------

    async def wanted(self) -> list[Wanted]:
        """Return the pipelines that should run."""
        publication, tables = await self._discover()
        if publication is None or (self._publication is not None and publication.oid != self._publication.oid):
            self._publication = None
            raise PublicationMissing(
                f'The publication "{self._settings.publication}" was dropped.',
                f"Everything is reconciled once it is back: {setup.publication_sql(self._settings.publication, [])}",
            )
        self._publication = publication
        stored = [Stored.of(row) for row in await self._rows("pipelines", {"slot": self._settings.slot})]
        targets = {Table(*row) for row in await self._rows("targets", {})}
        named = {row.source: row for row in stored}
        found = [(table, named.get(table.table)) for table in tables if table.table not in targets]
        published = {table.table for table in tables}
        gone = [row for row in stored if row.source not in published and row.attached]
        self._tables = {(row.name if row else str(table.table)): (table, row) for table, row in found} | {
            row.name: (None, row) for row in gone
        }
        return [self._want(name, table, row) for name, (table, row) in self._tables.items() if table is not None]

    def _want(self, name: str, table: PublishedTable | None, row: Stored | None) -> Wanted:
        assert table is not None
        fault: WalvecError | None = None
        try:
            self._source(table, row)
        except PipelineFault as exc:
            fault = exc
        parts = (table.shape, table.streamed_as, row.column if row else None, str(fault or ""))
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()
        mode, paused = (row.mode, row.paused) if row else ("Background", False)
        id, target_gone = (row.id, row.target_gone) if row else (None, False)
        warning = ""
        if not table.complete:
            warning = (
                f'The publication "{self._settings.publication}" leaves out inserts, updates, deletes or truncates, so '
                "embeddings fall behind until the next reconcile. "
                f"ALTER PUBLICATION {self._settings.publication} SET (publish = 'insert, update, delete, truncate');"
            )
        return Wanted(name, digest, table.storage, mode, paused, fault, id, target_gone, warning)

    @staticmethod
    def _source(table: PublishedTable, row: Stored | None) -> Source:
        return table.source(row.text_columns or None if row is not None and row.column is not None else None)

    async def follow(self, name: str, dimension: int | None) -> Followed:
        """Make pipeline ``name`` ready: its row, its destination, its statements."""
        table, row = self._tables[name]
        if table is None:
            raise PipelineFault(f"{name} has left the publication.")
        source = self._source(table, row)
        if row is None:
            await self._register(name, table.table)
        row = await self._stored(name)  # as it is now: what it says of scans and counts may have changed meanwhile
        await self._run("set_epoch", {"pipeline": row.id, "epoch": self._epoch})
        width = dimension or (row.dimension if row.model == self._settings.model else None)
        if width is None:
            raise ModelUnknown(f"Pipeline {name} waits for the model, which has not answered yet.")
        destination = await self._destination(row, source, width)
        config = fingerprint(self._settings.model, width)
        reason = _why_scan(row, table, config)
        if destination.made and not reason:
            reason = "the destination was missing"
        if reason is not None and row.scan.reason is None:
            await self.need_reconcile(reason, row.id)
        await self._redefine(row, table, source, destination, config, width)
        kind = destination.vector.name
        self._tables[name] = (table, replace(row, dimension=width, vector_type=kind))
        definition = Definition(
            row.id, name, source, row.target, row.column, destination.vector, self._settings.model, width, config,
            self._epoch, self._settings.schema,
        )  # fmt: skip
        scan = ScanPoint(reason) if reason is not None and row.scan.reason is None else row.scan
        return Followed(
            id=row.id,
            name=name,
            model=self._settings.model,
            target=PostgresTarget(self._open_pool, definition),
            route=Route(table.streamed_as, source.key, source.text),
            scan=scan,
            counted=row.counted,
            written_lsn=row.written_lsn,
            embeddings=row.embeddings,
            errors=row.errors,
            backfilled=row.backfilled,
        )

    async def _destination(self, row: Stored, source: Source, width: int) -> Destination:
        try:
            async with self._session() as connection:
                return await ensure_destination(
                    connection, self._settings.schema, row.target, row.column, source, self._settings.vector_type, width
                )
        except ConfigError as exc:  # a grant that is missing concerns this pipeline alone
            raise PipelineFault(exc.message, exc.remedy) from exc

    async def _register(self, name: str, table: Table) -> None:
        target = Table(table.schema, _target_name(table.name))
        params = {
            "name": name,
            "slot": self._settings.slot,
            "source_schema": table.schema,
            "source_table": table.name,
            "target_schema": target.schema,
            "target_table": target.name,
            "target_column": None,
            "vector_type": self._settings.vector_type,
        }
        await self._run("register", params)

    async def _stored(self, name: str) -> Stored:
        rows = [Stored.of(row) for row in await self._rows("pipelines", {"slot": self._settings.slot})]
        found = next((row for row in rows if row.name == name), None)
        if found is None:
            raise PipelineFault(f"Pipeline {name} was removed from the control schema.")
        self._tables[name] = (self._tables[name][0], found)
        return found

    async def _redefine(
        self, row: Stored, table: PublishedTable, source: Source, to: Destination, config: bytes, width: int
    ) -> None:
        params = {
            "pipeline": row.id,
            "oid": table.oid,
            "key": [column.name for column in source.key],
            "text": [column.name for column in source.text],
            "vector_type": to.vector.name,
            "model": self._settings.model,
            "dimension": width,
            "fingerprint": config,
            "shape": table.shape,
            "storage": table.storage,
        }
        await self._run("redefine", params)

    async def detach(self, name: str) -> None:
        """Note that the table of ``name`` left the publication."""
        _, row = self._tables.get(name, (None, None))
        if row is not None:
            await self._run("attach", {"pipeline": row.id, "attached": False})

    async def gone(self) -> list[str]:
        """Return the pipelines whose tables have left the publication since the last look."""
        return [name for name, (table, _) in self._tables.items() if table is None]

    async def need_reconcile(self, reason: str, id: int | None = None) -> None:
        """Make it durable that one pipeline, or all, must be scanned from the start."""
        await self._run("need_reconcile", {"slot": self._settings.slot, "reason": reason, "pipeline": id})

    async def moved(self, name: str, storage: str) -> None:
        """Note that the storage of ``name`` has been looked at as it is now."""
        _, row = self._tables.get(name, (None, None))
        if row is not None:
            await self._run("moved", {"pipeline": row.id, "storage": storage})

    async def requests(self) -> list[int]:
        """Take up the manual runs that were asked for; return their pipelines' ids."""
        rows = await self._rows("requests", {"slot": self._settings.slot})
        if rows:
            await self._run("start_requests", {"ids": [row[0] for row in rows]})
        return sorted({row[1] for row in rows})

    async def finish_requests(self, id: int) -> None:
        """Note that the manual runs of a pipeline are done."""
        await self._run("finish_requests", {"pipeline": id})

    async def publish(self, reports: Sequence[PipelineReport]) -> None:
        """Write what the pipelines say about themselves."""
        for report in reports:
            params = {
                "pipeline": report.id,
                "state": report.state,
                "reason": report.reason,
                "unprocessed": report.unprocessed,
                "lag": report.lag_seconds,
                "epoch": self._epoch,
            }
            await self._run("publish", params)

    async def publish_slot(self, state: str, reason: str) -> None:
        """Write where the consumer stands with its slot."""
        if self._pool is not None:
            await self._run("publish_slot", {"slot": self._settings.slot, "state": state, "reason": reason})

    async def writers(self, name: str) -> frozenset[str]:
        """Return the open transactions that have written the table of ``name``."""
        table, _ = self._tables.get(name, (None, None))
        if table is None:
            return frozenset()
        async with self._session() as connection:
            tree = await connection.execute(bound("catalog", "tree"), {"oid": table.oid})
            oids = [row[0] for row in await tree.fetchall()]
            cursor = await connection.execute(bound("catalog", "writers"), {"oids": oids})
            return frozenset(row[0] for row in await cursor.fetchall())

    async def build_index(self, name: str) -> str:
        """Build the approximate index of ``name`` if it is wanted and missing; say in a word what was done."""
        _, row = self._tables.get(name, (None, None))
        if self._settings.index == "off" or row is None or row.dimension is None or row.column is not None:
            return "off"  # an index on the user's own table would tax every update of it
        return await ensure_index(self._settings, row.target, row.vector_type, row.dimension)

    async def close(self) -> None:
        """Let go of the connections."""
        if self._pool is not None:
            await self._pool.close()
            self._pool = None

    # -- inside -----------------------------------------------------------------------------------------------------

    @property
    def _open_pool(self) -> Pool:
        assert self._pool is not None, "open() comes first"
        return self._pool

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """Lend a session of the pool; what goes wrong with it is said in this package's words."""
        try:
            async with self._open_pool.connection() as connection:
                yield connection
        except psycopg.Error as exc:
            raise classify(exc) from exc

    async def _discover(self) -> tuple[Publication | None, list[PublishedTable]]:
        async with self._session() as connection:
            return await catalog.discover(connection, self._settings.publication, self._settings.schema)

    def _query(self, name: str) -> sql.SQL:
        return bound("registry", name, schema=self._control)

    async def _rows(self, name: str, params: dict[str, Any]) -> list[TupleRow]:
        async with self._session() as connection:
            cursor = await connection.execute(self._query(name), params)
            return await cursor.fetchall() if cursor.description else []

    async def _one(self, name: str, params: dict[str, Any]) -> TupleRow | None:
        rows = await self._rows(name, params)
        return rows[0] if rows else None

    async def _run(self, name: str, params: dict[str, Any]) -> None:
        await self._rows(name, params)


def _check_server(connection: psycopg.Connection[TupleRow]) -> None:
    info = connection.info
    if info.server_version < 140000:
        raise ConfigError(f"The server is PostgreSQL {info.server_version // 10000}; walvec needs 14 or newer.")
    row = connection.execute(bound("registry", "server")).fetchone()
    wal_level, encoding, recovering = row if row else ("", "", False)
    if recovering:
        raise Unavailable("The server is a standby; walvec follows the primary.", "Point WALVEC_DATABASE_URL at it.")
    if wal_level != "logical":
        raise ConfigError(
            f"The server's wal_level is {wal_level}; logical replication needs logical.",
            "ALTER SYSTEM SET wal_level = 'logical'; then restart PostgreSQL.",
        )
    if encoding != "UTF8":
        raise ConfigError(
            f"The database's encoding is {encoding}; walvec hashes text as UTF-8 and needs a UTF8 database.",
            "Create the database with ENCODING 'UTF8'.",
        )


def _slot_view(row: TupleRow | None) -> SlotView:
    if row is None:
        return SlotView(exists=False)
    _, _, pid, wal_status, restart, confirmed, safe, retained, lag, _ = row
    return SlotView(
        exists=True,
        lost=wal_status == "lost" or restart is None,
        active_pid=pid,
        confirmed=parse_lsn(confirmed) if confirmed else 0,
        lag_bytes=max(0, int(lag or 0)),
        retained_bytes=max(0, int(retained or 0)),
        safe_bytes=None if safe is None else int(safe),
    )


def _why_scan(row: Stored, table: PublishedTable, config: bytes) -> str | None:
    if row.scan.reason is not None:
        return row.scan.reason
    if not row.attached:
        return "the table came back into the publication"
    if row.fingerprint is not None and bytes(row.fingerprint) != config:
        return "the model changed"
    if row.shape is not None and row.shape != table.shape:
        return "the table's columns, key or filter changed"
    if row.storage is not None and row.storage != table.storage:
        return "the table was rewritten, truncated, or its partitions changed"
    return None


def _target_name(table: str) -> str:
    """Return the embeddings table's name: within PostgreSQL's 63 bytes, and unique where it had to be cut."""
    name = f"{table}_embeddings"
    if len(name.encode()) <= 63:
        return name
    digest = hashlib.sha256(table.encode()).hexdigest()[:8]
    cut = table.encode()[: 63 - len(f"_{digest}_embeddings")].decode("utf-8", "ignore")
    return f"{cut}_{digest}_embeddings"
