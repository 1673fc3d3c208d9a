"""A pipeline's rows in the control schema, and why its source must be scanned."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg.rows import TupleRow

from cdc.flow.counts import Counted
from cdc.flow.snapshots import Snapshot
from cdc.jobs import JobKind
from cdc.lsn import parse_lsn
from cdc.ports import ScanPoint
from cdc.rows import Table

DEFAULT = "default"
"""The kind of the main job's pipelines."""


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
    kind: str
    value_type: str
    revision: int
    queued: bool

    @property
    def is_job(self) -> bool:
        """Whether a job asked for it, rather than the publication."""
        return self.kind != DEFAULT

    @property
    def is_completion(self) -> bool:
        """Whether the model's answers are kept rather than vectors."""
        return self.kind == JobKind.COMPLETION

    @property
    def named_columns(self) -> tuple[str, ...] | None:
        """The columns to embed where somebody has named them; None: every text column that is published."""
        return self.text_columns or None if self.is_job or self.column is not None else None

    @property
    def shape_columns(self) -> tuple[str, ...] | None:
        """The text columns whose definition matters; None: all that are published."""
        return self.text_columns if self.is_job else None

    @classmethod
    def of(cls, row: TupleRow) -> Stored:
        """Return what a row of the query ``pipelines`` holds."""
        (id, name, schema, table, _oid, _key, text, target_schema, target_table, column, vector_type, model, dimension,
         config, shape, storage, mode, paused, attached, records, counted_lsn, snapshot, written, embeddings,
         reason, phase, cursor, done, total, backfilled, errors, now,
         target_gone, kind, value_type, revision, queued) = row  # fmt: skip
        base = Snapshot.parse(snapshot) if snapshot else None
        return cls(
            id, name, Table(schema, table), Table(target_schema, target_table), column, tuple(text), vector_type, model,
            dimension, config, shape, storage, mode, paused, attached,
            Counted(records, parse_lsn(counted_lsn), base, parse_lsn(now)), parse_lsn(written), embeddings,
            ScanPoint(reason, phase or "rows", tuple(cursor) if cursor else None, done, total), backfilled, errors,
            target_gone, kind, value_type or "", revision, queued,
        )  # fmt: skip


def why_scan(row: Stored, shape: str, storage: str, config: bytes) -> str | None:
    """Return why the source must be scanned, None where it need not be.

    Args:
        row: What was known of the pipeline when it last ran.
        shape: The digest of the source's definition as it is now.
        storage: The same of its storage.
        config: The fingerprint in force.
    """
    if row.scan.reason is not None:
        return row.scan.reason
    if not row.attached:
        return "the table came back into the publication"
    if row.fingerprint is not None and bytes(row.fingerprint) != config:
        return "the model changed"
    if row.shape is not None and row.shape != shape:
        return "the table's columns, key or filter changed"
    if row.storage is not None and row.storage != storage:
        return "the table was rewritten, truncated, or its partitions changed"
    return None
