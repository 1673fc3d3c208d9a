"""What an index outside the database is of, as the database has it now, and whether that can be followed."""

from __future__ import annotations

import hashlib
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from cdc.errors import PipelineFault
from cdc.flow.vectorformat import VectorFormat
from cdc.jobs import IndexSpec, Job
from cdc.ports.indexes import Indexed
from cdc.postgres.queries import bound
from cdc.postgres.server import check_server
from cdc.rows import Column, Table

Conn = psycopg.Connection[TupleRow]

_TYPED = ("vector", "halfvec", "bit")
"""Types whose modifier is the number of components."""


def look(conn: Conn, job: Job, spec: IndexSpec) -> Indexed:
    """Return the job's column as it is now.

    Raises:
        PipelineFault: it cannot be followed; nothing of ours may stay in the way of the table's own writes.
        ConfigError: the server will not do.
        Unavailable: the server is a standby.
    """
    table, column = job.table, spec.column
    check_server(conn)
    names = {"schema": table.schema, "table": table.name, "column": column}
    row = conn.execute(bound("external_index", "column"), names).fetchone()
    if row is None:
        raise PipelineFault(f"There is no table {table} in {job.place}.", "Correct the job's row.")
    oid, kind, persistence, identity, type_oid, modifier, base, generated, rows, storage, expression = row
    if type_oid is None:
        raise PipelineFault(f"{table} has no column {column}.", "Correct the job's row, or add the column.")
    _check_table(table, kind, persistence, identity)
    _check_generated(conn, table, column, generated)
    form = VectorFormat.of(table, column, base, spec.metric)
    key = _key(conn, table, conn.execute(bound("external_index", "key"), {"oid": oid}).fetchall())
    _check_identity(conn, table, oid)
    dimension = form.dimension(modifier) if base in _TYPED and modifier > 0 else None
    parts = (oid, type_oid, modifier, base, [(c.name, c.type, c.base_type) for c in key], expression)
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()
    return Indexed(oid, key, base, type_oid, dimension, int(rows), digest, storage, kind == "p")


def _key(conn: Conn, table: Table, found: list[Any]) -> tuple[Column, ...]:
    """Return the columns that tell rows apart in the WAL."""
    if not found:
        raise PipelineFault(
            f"{table} has no primary key and no replica identity index, so its rows cannot be told apart.",
            f"ALTER TABLE {table} ADD PRIMARY KEY (…);",
        )
    if not all(immediate for *_, immediate, _ in found):
        raise PipelineFault(
            f"The primary key of {table} is deferrable, so the table has no replica identity: published, its own "
            "UPDATEs and DELETEs would fail.",
            "Make the key NOT DEFERRABLE, or use a unique index that is: "
            f"ALTER TABLE {table} REPLICA IDENTITY USING INDEX …;",
        )
    unseen = [name for name, *_, generated in found if generated and conn.info.server_version < 180000]
    if unseen:
        raise PipelineFault(f"Key column {unseen[0]} of {table} is generated, and not in the WAL before PostgreSQL 18.")
    return tuple(Column(*each) for *each, _, _ in found)


def _check_table(table: Table, kind: str, persistence: str, identity: str) -> None:
    if kind not in ("r", "p") or persistence != "p":
        raise PipelineFault(f"{table} is not an ordinary logged table, so its changes are not in the WAL.")
    if identity == "n":
        raise PipelineFault(
            f"{table} has REPLICA IDENTITY NOTHING, so updates and deletes carry no key.",
            f"ALTER TABLE {table} REPLICA IDENTITY DEFAULT;",
        )


def _check_generated(conn: Conn, table: Table, column: str, generated: str) -> None:
    if generated == "v":
        raise PipelineFault(
            f"Column {column} of {table} is a virtual generated column, which is stored nowhere, so its changes are "
            "not in the WAL.",
            "Make it a column that is GENERATED ALWAYS AS (…) STORED.",
        )
    if generated and conn.info.server_version < 180000:
        raise PipelineFault(f"Column {column} of {table} is generated, and not in the WAL before PostgreSQL 18.")


def _check_identity(conn: Conn, table: Table, oid: int) -> None:
    """See to it that publishing the table makes no UPDATE or DELETE of it fail, nor of a partition of it."""
    row = conn.execute(bound("external_index", "unidentified"), {"oid": oid}).fetchone()
    if row is None:
        return
    found, virtual = Table(row[0], row[1]), row[2]
    if virtual:
        raise PipelineFault(
            f"{found} has REPLICA IDENTITY FULL and a virtual generated column: published, its own UPDATEs and DELETEs "
            "would fail.",
            f"ALTER TABLE {found} REPLICA IDENTITY DEFAULT;",
        )
    raise PipelineFault(
        f"{found}, a partition of {table}, has no replica identity: published, its own UPDATEs and DELETEs would fail.",
        f"ALTER TABLE {found} REPLICA IDENTITY USING INDEX …;",
    )
