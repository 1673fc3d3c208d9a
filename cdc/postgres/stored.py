"""A pipeline's rows in the control schema, and why its source must be scanned."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg.rows import TupleRow

from cdc.flow.counts import Counted
from cdc.flow.snapshots import Snapshot
from cdc.lsn import parse_lsn
from cdc.ports import ScanPoint
from cdc.postgres.catalog import PublishedTable
from cdc.rows import Table


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


def why_scan(row: Stored, table: PublishedTable, config: bytes) -> str | None:
    """Return why the source must be scanned, None where it need not be; ``config`` is the fingerprint in force."""
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
