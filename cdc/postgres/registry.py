"""The pipelines of a consumer: what the publication and the control schema say should run, made ready to run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from cdc.errors import ConfigError, ModelUnknown, PipelineFault, PublicationMissing, WalvecError
from cdc.ports import Followed, PipelineReport, Route, ScanPoint, Wanted
from cdc.postgres import catalog, setup
from cdc.postgres.catalog import Publication, PublishedTable
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
    """Implements :class:`cdc.ports.Registry`. Not thread-safe: one event loop uses it."""

    def __init__(self, control: ControlSession) -> None:
        self._control = control
        self._publication: Publication | None = None
        self._tables: dict[str, tuple[PublishedTable | None, Stored | None]] = {}

    async def wanted(self) -> list[Wanted]:
        """Return the pipelines that should run."""
        publication, tables = await self._discover()
        if publication is None or (self._publication is not None and publication.oid != self._publication.oid):
            self._publication, name = None, self._control.settings.publication
            raise PublicationMissing(
                f'The publication "{name}" was dropped.',
                f"Everything is reconciled once it is back: {setup.publication_sql(name, [])}",
            )
        self._publication = publication
        stored = [
            Stored.of(row) for row in await self._control.rows("pipelines", {"slot": self._control.settings.slot})
        ]
        targets = {Table(*row) for row in await self._control.rows("targets", {})}
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
            publication = self._control.settings.publication
            warning = (
                f'The publication "{publication}" leaves out inserts, updates, deletes or truncates, so embeddings '
                "fall behind until the next reconcile. "
                f"ALTER PUBLICATION {publication} SET (publish = 'insert, update, delete, truncate');"
            )
        errors = row.errors if row else 0
        return Wanted(name, digest, table.storage, mode, paused, fault, id, target_gone, warning, errors)

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
        await self._control.run("set_epoch", {"pipeline": row.id, "epoch": self._control.epoch})
        width = dimension or (row.dimension if row.model == self._control.settings.model else None)
        if width is None:
            raise ModelUnknown(f"Pipeline {name} waits for the model, which has not answered yet.")
        destination = await self._destination(row, source, width)
        config = fingerprint(self._control.settings.recipe, width)
        reason = why_scan(row, table, config)
        if destination.made and not reason:
            reason = "the destination was missing"
        if reason is not None and row.scan.reason is None:
            await self.need_reconcile(reason, row.id)
        await self._redefine(row, table, source, destination, config, width)
        kind = destination.vector.name
        self._tables[name] = (table, replace(row, dimension=width, vector_type=kind))
        settings = self._control.settings
        definition = Definition(
            row.id, name, source, row.target, row.column, destination.vector, settings.model, width, config,
            self._control.epoch, settings.schema,
        )  # fmt: skip
        scan = ScanPoint(reason) if reason is not None and row.scan.reason is None else row.scan
        return Followed(
            id=row.id,
            name=name,
            model=self._control.settings.model,
            target=PostgresTarget(self._control.work, definition),
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
                    row.column,
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
        rows = [Stored.of(row) for row in await self._control.rows("pipelines", {"slot": self._control.settings.slot})]
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
            "model": self._control.settings.model,
            "dimension": width,
            "fingerprint": config,
            "shape": table.shape,
            "storage": table.storage,
        }
        await self._control.run("redefine", params)

    async def detach(self, name: str) -> None:
        """Note that the table of ``name`` left the publication."""
        _, row = self._tables.get(name, (None, None))
        if row is not None:
            await self._control.run("attach", {"pipeline": row.id, "attached": False})

    async def gone(self) -> list[str]:
        """Return the pipelines whose tables have left the publication since the last look."""
        return [name for name, (table, _) in self._tables.items() if table is None]

    async def need_reconcile(self, reason: str, id: int | None = None) -> None:
        """Make it durable that one pipeline, or all, must be scanned from the start."""
        await self._control.need_reconcile(reason, id)

    async def moved(self, name: str, storage: str) -> None:
        """Note that the storage of ``name`` has been looked at as it is now."""
        _, row = self._tables.get(name, (None, None))
        if row is not None:
            await self._control.run("moved", {"pipeline": row.id, "storage": storage})

    async def requests(self) -> list[int]:
        """Take up the manual runs that were asked for; return their pipelines' ids."""
        rows = await self._control.rows("requests", {"slot": self._control.settings.slot})
        if rows:
            await self._control.run("start_requests", {"ids": [row[0] for row in rows]})
        return sorted({row[1] for row in rows})

    async def finish_requests(self, id: int) -> None:
        """Note that the manual runs of a pipeline are done."""
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
        table, _ = self._tables.get(name, (None, None))
        if table is None:
            return frozenset()
        async with self._control.lend() as connection:
            tree = await connection.execute(bound("catalog", "tree"), {"oid": table.oid})
            oids = [row[0] for row in await tree.fetchall()]
            cursor = await connection.execute(bound("catalog", "writers"), {"oids": oids})
            return frozenset(row[0] for row in await cursor.fetchall())

    async def build_index(self, name: str) -> str:
        """Build the approximate index of ``name`` if it is wanted and missing; say in a word what was done."""
        _, row = self._tables.get(name, (None, None))
        if self._control.settings.index == "off" or row is None or row.dimension is None or row.column is not None:
            return "off"  # an index on the user's own table would tax every update of it
        return await ensure_index(self._control.settings, row.target, row.vector_type, row.dimension)

    async def _discover(self) -> tuple[Publication | None, list[PublishedTable]]:
        settings = self._control.settings
        async with self._control.lend() as connection:
            return await catalog.discover(connection, settings.publication, settings.schema)


def _target_name(table: str) -> str:
    """Return the embeddings table's name: within PostgreSQL's 63 bytes, and unique where it had to be cut."""
    name = f"{table}_embeddings"
    if len(name.encode()) <= 63:
        return name
    digest = hashlib.sha256(table.encode()).hexdigest()[:8]
    cut = table.encode()[: 63 - len(f"_{digest}_embeddings")].decode("utf-8", "ignore")
    return f"{cut}_{digest}_embeddings"
