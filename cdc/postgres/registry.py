"""The pipelines of a consumer: what is declared to run, made ready to run."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace

from cdc.errors import ConfigError, ModelUnknown, PipelineFault, PublicationMissing, WalvecError
from cdc.ports import Followed, ModelChoice, PipelineReport, Request, Route, ScanPoint, Wanted
from cdc.postgres import catalog, setup
from cdc.postgres.catalog import Publication, PublishedTable
from cdc.postgres.columns import ColumnKind
from cdc.postgres.declared import Declared, Entry, by_publication
from cdc.postgres.expressions import Source
from cdc.postgres.queries import bound
from cdc.postgres.session import ControlSession
from cdc.postgres.statements import Definition
from cdc.postgres.stored import Stored, why_scan
from cdc.postgres.target import PostgresTarget
from cdc.postgres.vectors import Destination, ensure_destination, ensure_index
from cdc.prepare.text import fingerprint
from cdc.rows import Table


class PostgresRegistry:
    """Implements :class:`cdc.ports.Registry`. Not thread-safe: one event loop uses it.

    Args:
        control: The sessions.
        declared: Says which pipelines the publication and the rows come to.
    """

    def __init__(self, control: ControlSession, declared: Declared = by_publication) -> None:
        self._control = control
        self._declared = declared
        self._publication: Publication | None = None
        self._entries: dict[str, Entry] = {}
        self._gone: list[str] = []
        self._above: dict[Table, Table] = {}  # partitions that a published table has the changes of
        self._turns: dict[Table, asyncio.Lock] = {}  # by table that pipelines write into, so that they do so by turns

    async def wanted(self) -> list[Wanted]:
        """Return the pipelines that should run."""
        # The rows first: a row that is attached together with its table's publication is not seen without it.
        stored = await self._rows()
        publication, tables = await self._discover()
        if publication is None or (self._publication is not None and publication.oid != self._publication.oid):
            self._publication, name = None, self._control.settings.publication
            raise PublicationMissing(
                f'The publication "{name}" was dropped.',
                f"Everything is reconciled once it is back: {setup.publication_sql(name, [])}",
            )
        self._publication = publication
        targets = {Table(*row) for row in await self._control.rows("targets", {})}
        declaration = self._declared([table for table in tables if table.table not in targets], stored)
        self._entries = {**declaration.pipelines, **declaration.gone}
        self._gone = list(declaration.gone)
        self._above = await self._published_above({table.table for table in tables})
        return [self._want(name, entry) for name, entry in declaration.pipelines.items()]

    def _want(self, name: str, entry: Entry) -> Wanted:
        table, row = entry.table, entry.row
        fault: WalvecError | None = None
        try:
            self._source(entry)
        except PipelineFault as exc:
            fault = exc
        parts = (
            table and (table.shape(row.shape_columns if row else None), table.streamed_as),
            (row.column, row.text_columns if row.is_job else (), row.revision) if row else (None, (), 0),
            str(fault or ""),
        )
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()
        mode, paused = (row.mode, row.paused) if row else ("Background", False)
        id, target_gone = (row.id, row.target_gone) if row else (None, False)
        warning = ""
        if table is not None and not table.complete:
            publication = self._control.settings.publication
            warning = (
                f'The publication "{publication}" leaves out inserts, updates, deletes or truncates, so embeddings '
                "fall behind until the next reconcile. "
                f"ALTER PUBLICATION {publication} SET (publish = 'insert, update, delete, truncate');"
            )
        errors, storage = row.errors if row else 0, table.storage if table is not None else ""
        queued = row is not None and row.queued
        return Wanted(name, digest, storage, mode, paused, fault, id, target_gone, warning, errors, queued)

    def _source(self, entry: Entry) -> Source:
        table, row = entry.table, entry.row
        if table is not None:
            return table.source(row.named_columns if row is not None else None)
        publication = self._control.settings.publication
        if row is not None and (above := self._above.get(row.source)) is not None:
            raise PipelineFault(
                f'{row.source} is a partition of {above}, which is in the publication "{publication}" too: its changes '
                f"are published as those of {above}.",
                f"Follow {above} instead, or take it out of the publication: for a job, cancel those on {above}.",
            )
        raise PipelineFault(
            f"{row.source if row is not None else 'The table'} is not in the publication "
            f'"{publication}": it was dropped, renamed, or taken out of it.'
        )

    async def _published_above(self, published: set[Table]) -> dict[Table, Table]:
        """Return the topmost published table above each source that the publication does not show by itself."""
        entries = self._entries.values()
        missing = {entry.row.source for entry in entries if entry.table is None and entry.row is not None}
        if not missing:
            return {}
        params = {"schemas": [table.schema for table in missing], "tables": [table.name for table in missing]}
        found = [(Table(*row[:2]), Table(*row[2:])) for row in await self._control.rows("ancestors", params)]
        return {table: above for table, above in found if above in published}

    async def follow(self, name: str, choice: ModelChoice, dimension: int | None) -> Followed:
        """Make pipeline ``name`` ready: its row, its destination, its statements."""
        entry = self._entries[name]
        source, table, row = self._source(entry), entry.table, entry.row
        assert table is not None, "a source has a table"
        if row is None:
            await self._register(name, table.table)
        row = await self._stored(name)  # as it is now: what it says of scans and counts may have changed meanwhile
        await self._control.run("set_epoch", {"pipeline": row.id, "epoch": self._control.epoch})
        await self._control.run("release_leases", {"pipeline": row.id})
        width = dimension if dimension is not None else _known_dimension(row, choice)
        if width is None:
            raise ModelUnknown(f"Pipeline {name} waits for the model, which has not answered yet.")
        destination = await self._destination(row, source, width)
        config = fingerprint(choice.recipe, width)
        shape = table.shape(row.shape_columns)
        reason = why_scan(row, shape, table.storage, config)
        if destination.made and not reason:
            reason = "the destination was missing"
        if reason is not None and row.scan.reason is None:
            await self.need_reconcile(reason, row.id)
        kind = destination.vector.name
        definition = Definition(
            row.id, name, source, row.target, row.column, destination.vector, choice.name, width, config,
            self._control.epoch, self._control.settings.schema,
        )  # fmt: skip
        await self._redefine(table, shape, definition)
        self._entries[name] = Entry(table, replace(row, dimension=width, vector_type=kind))
        scan = ScanPoint(reason) if reason is not None and row.scan.reason is None else row.scan
        return Followed(
            id=row.id,
            name=name,
            model=choice.name,
            target=PostgresTarget(self._control.work, definition, self._turns.setdefault(source.table, asyncio.Lock())),
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
            async with self._control.lend() as connection:
                return await ensure_destination(
                    connection,
                    self._control.settings.schema,
                    row.target,
                    _column_kind(row),
                    source,
                    self._control.settings.vector_type,
                    width,
                )
        except ConfigError as exc:  # a grant that is missing concerns this pipeline alone
            raise PipelineFault(exc.message, exc.remedy) from exc

    async def _register(self, name: str, table: Table) -> None:
        target = Table(table.schema, _target_name(table.name))
        params = {
            "name": name,
            "slot": self._control.settings.slot,
            "source_schema": table.schema,
            "source_table": table.name,
            "target_schema": target.schema,
            "target_table": target.name,
            "target_column": None,
            "vector_type": self._control.settings.vector_type,
        }
        await self._control.run("register", params)

    async def _stored(self, name: str) -> Stored:
        found = next((row for row in await self._rows() if row.name == name), None)
        if found is None:
            raise PipelineFault(f"Pipeline {name} was removed from the control schema.")
        self._entries[name] = Entry(self._entries[name].table, found)
        return found

    async def _rows(self) -> list[Stored]:
        slot = {"slot": self._control.settings.slot}
        return [Stored.of(row) for row in await self._control.rows("pipelines", slot)]

    async def _redefine(self, table: PublishedTable, shape: str, definition: Definition) -> None:
        params = {
            "pipeline": definition.id,
            "oid": table.oid,
            "key": [column.name for column in definition.source.key],
            "text": [column.name for column in definition.source.text],
            "vector_type": definition.vector.name,
            "model": definition.model,
            "dimension": definition.dimension,
            "fingerprint": definition.fingerprint,
            "shape": shape,
            "storage": table.storage,
        }
        await self._control.run("redefine", params)

    async def detach(self, name: str) -> None:
        """Note that the table of ``name`` left the publication."""
        row = self._row(name)
        if row is not None and not row.is_job:  # a job's row says what its job says
            await self._control.run("attach", {"pipeline": row.id, "attached": False})

    async def gone(self) -> list[str]:
        """Return the pipelines whose tables have left the publication since the last look."""
        return self._gone

    def _row(self, name: str) -> Stored | None:
        entry = self._entries.get(name)
        return entry.row if entry is not None else None

    async def need_reconcile(self, reason: str, id: int | None = None) -> None:
        """Make it durable that one pipeline, or all, must be scanned from the start."""
        await self._control.need_reconcile(reason, id)

    async def moved(self, name: str, storage: str) -> None:
        """Note that the storage of ``name`` has been looked at as it is now."""
        row = self._row(name)
        if row is not None:
            await self._control.run("moved", {"pipeline": row.id, "storage": storage})

    async def requests(self) -> list[Request]:
        """Return the manual runs that were asked for and that nobody has taken up."""
        rows = await self._control.rows("requests", {"slot": self._control.settings.slot})
        return [Request(id, pipeline) for id, pipeline in rows]

    async def start_requests(self, requests: Sequence[int]) -> None:
        """Note that these manual runs are taken up: the scan that answers them is due, and has not begun."""
        await self._control.run("start_requests", {"ids": list(requests)})

    async def finish_requests(self, id: int) -> None:
        """Note that those manual runs of a pipeline that were taken up are done."""
        await self._control.run("finish_requests", {"pipeline": id})

    async def publish(self, reports: Sequence[PipelineReport]) -> None:
        """Write what the pipelines say about themselves."""
        for report in reports:
            params = {
                "pipeline": report.id,
                "state": report.state,
                "reason": report.reason,
                "unprocessed": report.unprocessed,
                "lag": report.lag_seconds,
                "epoch": self._control.epoch,
            }
            await self._control.run("publish", params)

    async def writers(self, name: str) -> frozenset[str]:
        """Return the open transactions that have written the table of ``name``."""
        entry = self._entries.get(name)
        table = entry.table if entry is not None else None
        if table is None:
            return frozenset()
        async with self._control.lend() as connection:
            tree = await connection.execute(bound("catalog", "tree"), {"oid": table.oid})
            oids = [row[0] for row in await tree.fetchall()]
            cursor = await connection.execute(bound("catalog", "writers"), {"oids": oids})
            return frozenset(row[0] for row in await cursor.fetchall())

    async def build_index(self, name: str) -> str:
        """Build the approximate index of ``name`` if it is wanted and missing; say in a word what was done."""
        row = self._row(name)
        if self._control.settings.index == "off" or row is None or row.dimension is None or row.column is not None:
            return "off"  # an index on the user's own table would tax every update of it
        return await ensure_index(self._control.settings, row.target, row.vector_type, row.dimension)

    async def _discover(self) -> tuple[Publication | None, list[PublishedTable]]:
        settings = self._control.settings
        async with self._control.lend() as connection:
            return await catalog.discover(connection, settings.publication, settings.schema)


def _known_dimension(row: Stored, choice: ModelChoice) -> int | None:
    """Return the dimension that the pipeline's vectors have, where they were made by the very same recipe."""
    if row.dimension is None or row.fingerprint is None:
        return None
    same = bytes(row.fingerprint) == fingerprint(choice.recipe, row.dimension)
    return row.dimension if same else None


def _column_kind(row: Stored) -> ColumnKind | None:
    """Return how the source's own column is to be written; None where the embeddings have a table of their own."""
    if row.column is None:
        return None
    return ColumnKind(row.column, make=row.is_job, answers=row.is_completion, value_type=row.value_type)


def _target_name(table: str) -> str:
    """Return the embeddings table's name: within PostgreSQL's 63 bytes, and unique where it had to be cut."""
    name = f"{table}_embeddings"
    if len(name.encode()) <= 63:
        return name
    digest = hashlib.sha256(table.encode()).hexdigest()[:8]
    cut = table.encode()[: 63 - len(f"_{digest}_embeddings")].decode("utf-8", "ignore")
    return f"{cut}_{digest}_embeddings"
