"""Where vectors are kept: the destination table or column, its type, and its approximate index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from cdc.errors import PipelineFault
from cdc.postgres import columns, expressions
from cdc.postgres.columns import ColumnKind
from cdc.postgres.connect import ConnectionSettings, classify, connection_params
from cdc.postgres.expressions import Source
from cdc.postgres.queries import bound, query
from cdc.postgres.statements import VectorType
from cdc.rows import Table

Connection = psycopg.AsyncConnection[Any]

INDEX_LIMITS = {"vector": 2000, "halfvec": 4000}
"""Widest vectors that pgvector's HNSW indexes (https://github.com/pgvector/pgvector#hnsw)."""

OPERATOR_CLASSES = {"vector": "vector_cosine_ops", "halfvec": "halfvec_cosine_ops"}

NEEDED = ("chunk", "source_hash", "source_lsn", "model", "embedded_at")


@dataclass(frozen=True, slots=True)
class Destination:
    """A destination that is ready; ``made``: it was not there before."""

    vector: VectorType
    made: bool


@dataclass(frozen=True, slots=True)
class _Existing:
    types: dict[str, str]  # by column, the bare type name
    declared: dict[str, str]  # by column, the type as it is written in SQL
    primary: frozenset[str]  # the primary key's columns
    dimension: int  # of the vector column, -1 where its type has none


async def ensure_destination(
    connection: Connection,
    control: str,
    target: Table,
    column: ColumnKind | None,
    source: Source,
    wanted: str,
    dimension: int,
) -> Destination:
    """Make the destination where it is missing, and check it where it is not.

    Args:
        connection: In autocommit mode.
        control: The control schema.
        target: The embeddings table, or for in-place pipelines the table of hashes.
        column: The source's own column, for in-place pipelines.
        source: What is embedded.
        wanted: ``vector``, ``halfvec`` or ``real[]``; where pgvector cannot be had, ``real[]`` is used.
        dimension: Width of the vectors, 0 for answers in words.

    Raises:
        PipelineFault: something else stands in its place, or it may not be written or made.
        Unavailable: a lock was not to be had.
    """
    books, made = await _existing(connection, target), False
    if column is not None:
        vector, made = await _column(connection, control, target, column, source.table, wanted, dimension)
    else:
        kind = wanted if books is None else _kind(books.types.get("embedding", wanted))
        if books is not None and "embedding" in books.types:
            _check_vector(target, "embedding", kind, books.dimension, dimension)
        vector = await _vector_type(connection, control, kind, dimension)
    if books is not None:
        _check_table(target, books, source, () if column is not None else ("embedding",))
        return Destination(vector, made)
    await connection.execute(
        query(
            "target",
            "create_hashes" if column is not None else "create_embeddings",
            target=expressions.identifier(target),
            keys=expressions.columns(source.key),
            key_definitions=_key_definitions(source),
            vector_type=sql.SQL(vector.sql),
        )
    )
    return Destination(vector, made=True)


async def _column(
    connection: Connection,
    control: str,
    hashes: Table,
    column: ColumnKind,
    table: Table,
    wanted: str,
    dimension: int,
) -> tuple[VectorType, bool]:
    """Return how the source's own column is written, and whether it was made because it was missing."""
    found = await columns.look_at(connection, table, column.name)
    if found is None:
        raise PipelineFault(f"There is no table {table}.")
    if found.type and column.make:
        columns.check(table, column.name, found)
    if column.answers:
        vector = await columns.answer_type(connection, table, column, found)
    elif found.type:
        kind = _kind(found.bare)
        _check_vector(table, column.name, kind, found.dimension, dimension, is_users=True)
        vector = await _vector_type(connection, control, kind, dimension)
    else:
        vector = await _vector_type(connection, control, wanted, dimension)
    if found.type:
        return vector, False
    if not column.make:
        raise PipelineFault(
            f"{table} has no vector column {column.name}.",
            f"ALTER TABLE {table} ADD COLUMN {column.name} {vector.sql};",
        )
    await columns.make(connection, table, found, column.name, vector.sql, hashes)
    return vector, True


def _key_definitions(source: Source) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(column.name), sql.SQL(column.type)) for column in source.key
    )


async def _existing(connection: Connection, table: Table) -> _Existing | None:
    cursor = await connection.execute(bound("catalog", "target"), {"schema": table.schema, "table": table.name})
    rows = await cursor.fetchall()
    if not rows:
        return None
    width = next((modifier for name, _, _, modifier, _ in rows if name == "embedding"), -1)
    return _Existing(
        {name: bare for name, _, bare, _, _ in rows},
        {name: declared for name, declared, _, _, _ in rows},
        frozenset(name for name, _, _, _, is_key in rows if is_key),
        width,
    )


def _kind(bare: str) -> str:
    return {"_float4": "real[]"}.get(bare, bare)


def _check_vector(holder: Table, column: str, kind: str, width: int, dimension: int, *, is_users: bool = False) -> None:
    """Refuse a column that cannot take the model's vectors. Nobody is told to drop a table of the user's."""
    if kind not in ("vector", "halfvec", "real[]"):
        raise PipelineFault(
            f"Column {column} of {holder} is of type {kind}, which cannot hold a vector.",
            "Use a column of type vector, halfvec or real[].",
        )
    if kind != "real[]" and width not in (-1, dimension):
        raise PipelineFault(
            f"Column {column} of {holder} holds vectors of {width} dimensions; the model makes {dimension}.",
            "Name the model that the column was made for, or another column."
            if is_users
            else f"Drop or rename {holder} to have it made anew, or set WALVEC_MODEL to the model it was made with.",
        )


def _check_table(target: Table, existing: _Existing, source: Source, more: tuple[str, ...]) -> None:
    keys = tuple(column.name for column in source.key)
    missing = [name for name in (*keys, *NEEDED, *more) if name not in existing.types]
    if missing:
        raise PipelineFault(
            f"{target} exists, but is not an embeddings table of {source.table}: it has no column {missing[0]}.",
            f"Rename or drop {target}; walvec makes its own.",
        )
    alien = existing.primary - {*keys, "chunk"}
    if alien:
        raise PipelineFault(
            f"{target} was made for another key of {source.table}: column {min(alien)} is part of its primary key.",
            f"Rename or drop {target}; walvec makes it anew.",
        )
    for column in source.key:
        if existing.declared[column.name] != column.type:
            raise PipelineFault(
                f"Column {column.name} of {target} is {existing.declared[column.name]}; in {source.table} it is "
                f"{column.type}.",
                f"ALTER TABLE {target} ALTER COLUMN {column.name} TYPE {column.type}; or drop it: it is made anew.",
            )


async def _vector_type(connection: Connection, control: str, kind: str, dimension: int) -> VectorType:
    if kind != "real[]":
        cursor = await connection.execute(bound("catalog", "vector_extension"), {"type": kind})
        row = await cursor.fetchone()
        if row is not None:
            schema, oid, _ = row
            name = sql.Identifier(schema, kind).as_string(None)
            return VectorType(kind, f"{name}({dimension})", f"{name}[]", oid, schema)
    cursor = await connection.execute(bound("catalog", "domain"), {"control": control})
    row = await cursor.fetchone()
    if row is None:
        raise PipelineFault(f"The control schema {control} lacks the type real_vector.", "Run `walvec init`.")
    return VectorType("real[]", "real[]", sql.Identifier(control, "real_vector").as_string(None) + "[]", row[0], "")


async def ensure_index(settings: ConnectionSettings, table: Table, kind: str, dimension: int) -> str:
    """Build the HNSW index of an embeddings table unless there is one; return ``built``, ``present`` or why not.

    The rest of a build that failed is removed first. The build locks no writer out, and cancelling it cancels it in the
    server too.
    """
    if kind not in OPERATOR_CLASSES:
        return "no pgvector"
    if dimension > INDEX_LIMITS[kind]:
        return f"{dimension} dimensions are more than pgvector indexes as {kind}"
    try:
        params = connection_params(settings, "index")
        async with await psycopg.AsyncConnection.connect(autocommit=True, **params) as connection:
            return await _build(connection, table, kind)
    except psycopg.Error as exc:
        raise classify(exc) from exc


async def _build(connection: Connection, table: Table, kind: str) -> str:
    found = await connection.execute(bound("registry", "indexes"), {"schema": table.schema, "table": table.name})
    for name, valid in await found.fetchall():
        if valid:
            return "present"
        await connection.execute(
            sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(table.schema, name))
        )
    extension = await (await connection.execute(bound("catalog", "vector_extension"), {"type": kind})).fetchone()
    if extension is None:
        return "no pgvector"
    await connection.execute("SET maintenance_work_mem = '256MB'")
    await connection.execute(
        sql.SQL("CREATE INDEX CONCURRENTLY ON {} USING hnsw (embedding {})").format(
            expressions.identifier(table), sql.Identifier(extension[0], OPERATOR_CLASSES[kind])
        )
    )
    return "built"
