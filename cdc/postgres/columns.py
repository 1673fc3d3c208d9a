"""The column of the user's own table that an in-place pipeline writes: checked, and for jobs made if it is missing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from cdc.errors import PipelineFault, Unavailable
from cdc.postgres import expressions
from cdc.postgres.queries import bound
from cdc.postgres.statements import ANSWER, VectorType
from cdc.rows import Table

Connection = psycopg.AsyncConnection[Any]

LOCK_TIMEOUT = "2s"
"""How long adding a column waits for its lock: whoever comes to the table meanwhile waits behind it."""

_TEXT_OID = 25
_SIZED_TYPE = re.compile(r"[a-z_][a-z0-9_ ]*\(\d+(, ?\d+)?\)[a-z ]*(\[\])*", re.IGNORECASE)
"""A type that stands in SQL as it was written, for its size: words, numbers, brackets. Others are named as the server
does."""


@dataclass(frozen=True, slots=True)
class ColumnKind:
    """How a column is to be written: vectors or ``answers``; ``make`` it where it is missing, as ``value_type``."""

    name: str
    make: bool = False
    answers: bool = False
    value_type: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column as it is, and what the role may do with it. No ``type``: there is none yet.

    ``dimension`` is that of pgvector's types, -1 where the type has none.
    """

    type: str
    bare: str
    dimension: int
    required: bool
    generated: bool
    updatable: bool
    owner: str
    role: str


async def look_at(connection: Connection, table: Table, name: str) -> Column | None:
    """Return the column ``name`` of ``table``; None where there is no such table."""
    params = {"schema": table.schema, "table": table.name, "column": name}
    row = await (await connection.execute(bound("catalog", "column"), params)).fetchone()
    return None if row is None else Column(*row)


def check(table: Table, name: str, column: Column) -> None:
    """Check that the column may be written, with a value and with none.

    Raises:
        PipelineFault: it may not.
    """
    quoted = sql.Identifier(name).as_string(None)
    if column.generated:
        raise PipelineFault(f"Column {name} of {table} is generated, so nothing can be written into it.")
    if not column.updatable:
        raise PipelineFault(
            f'The role "{column.role}" may not update column {name} of {table}.',
            f'GRANT UPDATE ({quoted}) ON {_quoted(table)} TO "{column.role}";',
        )
    if column.required:
        raise PipelineFault(
            f"Column {name} of {table} is NOT NULL, and a row without text has nothing to keep there.",
            f"ALTER TABLE {_quoted(table)} ALTER COLUMN {quoted} DROP NOT NULL;",
        )


async def make(connection: Connection, table: Table, column: Column, name: str, type: str, hashes: Table) -> None:
    """Add the column, as SQL ``type``, and forget the hashes of what an earlier one of this name had held.

    Raises:
        PipelineFault: the role may not.
        Unavailable: the table's lock was not to be had.
    """
    holder, hashed = expressions.identifier(table), expressions.identifier(hashes)
    statement = sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} {}").format(
        holder, sql.Identifier(name), sql.SQL(type)
    )
    there = {"schema": hashes.schema, "table": hashes.name}
    try:
        async with connection.transaction():
            await connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT)))
            await connection.execute(statement)
            if await (await connection.execute(bound("catalog", "target"), there)).fetchone() is not None:
                await connection.execute(sql.SQL("TRUNCATE {}").format(hashed))
    except psycopg.errors.LockNotAvailable as exc:
        raise Unavailable(
            f"Column {name} cannot be added to {table} while others use the table; it is tried again."
        ) from exc
    except psycopg.errors.InsufficientPrivilege as exc:
        raise PipelineFault(
            f'{table} has no column {name}, and the role "{column.role}" may not add it: the table belongs to '
            f'"{column.owner}".',
            f"Let its owner run: {statement.as_string(connection)}; GRANT UPDATE ON {_quoted(table)} "
            f'TO "{column.role}";',
        ) from exc


async def answer_type(connection: Connection, table: Table, kind: ColumnKind, column: Column) -> VectorType:
    """Return how answers are written: as the column's own type, or the one it is to be made as.

    Raises:
        PipelineFault: there is no such type.
    """
    type = column.type or await _type_named(connection, table, kind.value_type or "text")
    return VectorType(ANSWER, type, "pg_catalog.text[]", _TEXT_OID, "", cast=f"::{type}")


async def _type_named(connection: Connection, table: Table, written: str) -> str:
    """Return the type that ``written`` names, as it can stand in SQL."""
    try:
        async with connection.transaction():
            row = await (await connection.execute(bound("catalog", "type_named"), {"type": written})).fetchone()
    except psycopg.Error:  # before PostgreSQL 16, a name that cannot be read is an error
        row = None
    if row is None or row[0] is None:
        raise PipelineFault(f"There is no type {written!r} for the answers that {table} is to keep.")
    return written if _SIZED_TYPE.fullmatch(written) else str(row[0])


def _quoted(table: Table) -> str:
    return expressions.identifier(table).as_string(None)
