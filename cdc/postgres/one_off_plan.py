"""What a one-off reads and writes: names checked against the catalogue, the column made where that is asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql

from cdc.errors import ConfigError, PipelineFault, Unavailable
from cdc.postgres import columns, expressions
from cdc.postgres.columns import ColumnKind
from cdc.postgres.connect import classify
from cdc.postgres.queries import bound, query
from cdc.rows import Column, Table

Connection = psycopg.AsyncConnection[Any]

ARRAYS: Final = {
    "real[]": "real[]",
    "float4[]": "real[]",
    "double precision[]": "double precision[]",
    "float8[]": "double precision[]",
    "float[]": "double precision[]",
    "numeric[]": "numeric[]",
}
"""Types of arrays that vectors can be kept in, as people write them and as SQL does."""
_ARRAY_BASES: Final = ("_float4", "_float8", "_numeric")
_VECTOR: Final = re.compile(r"(?:\w+\.)?(vector|halfvec)(?:\((\d+)\))?")


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody asks for. ``key`` empty: the primary key. ``filter`` empty: all rows.

    ``type`` is the type of a column that is made, empty: ``usual`` (``vector``, ``halfvec`` or ``real[]``) where
    pgvector is, else ``real[]``; for answers text. ``failures`` is the table that refused rows are kept in.
    """

    source: Table
    text: str
    target: Table
    column: str
    key: tuple[str, ...] = ()
    filter: str = ""
    replace: bool = False
    make: bool = False
    type: str = ""
    usual: str = "vector"
    answers: bool = False
    failures: Table | None = None
    job: int = 0


@dataclass(frozen=True, slots=True)
class Value:
    """How results are sent: the SQL ``expression`` of one, the ``array`` parameter behind it (empty: none of its own).

    ``kind`` is ``vector``, ``halfvec``, ``array`` or ``answer``, ``type`` the column's, ``element`` pgvector's OID.
    """

    kind: str
    type: str
    expression: str
    array: str
    element: int = 0

    @property
    def answers(self) -> bool:
        """Whether they are words."""
        return self.kind == "answer"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is read and written, checked. ``row_filter`` is SQL over the source's columns, or empty."""

    source: Table
    key: tuple[Column, ...]
    text: Column
    row_filter: str
    target: Table
    column: str
    value: Value
    replace: bool
    failures: Table | None
    failures_key: str
    job: int

    @property
    def is_beside(self) -> bool:
        """Whether results go into another table."""
        return self.target != self.source

    @property
    def open_beside(self) -> sql.Composable:
        """The condition that another table has a row for this one, which has no value; empty for the source itself."""
        if not self.is_beside:
            return sql.SQL("")
        still = sql.SQL("") if self.replace else sql.SQL("AND o.{} IS NULL").format(sql.Identifier(self.column))
        return sql.SQL("AND EXISTS (SELECT FROM {} AS o WHERE {} {})").format(
            expressions.identifier(self.target), expressions.same_key(self.key, "o", "r"), still
        )


@dataclass(frozen=True, slots=True)
class Found:
    """The source as the catalogue has it."""

    key: tuple[Column, ...]
    text: Column


async def look(connection: Connection, asked: Asked) -> Found:
    """Check the names, before any model is asked.

    Raises:
        ConfigError: a table or a column is not there, or rows cannot be told apart.
    """
    found = await _columns(connection, asked.source)
    by_name = {column.name: column for column, _, _ in found}
    if asked.text not in by_name:
        raise ConfigError(f"{asked.source} has no column {asked.text}.", f"It has {', '.join(by_name)}.")
    primary = [column.name for column, _, place in sorted(found, key=lambda row: row[2] or 0) if place is not None]
    names = asked.key or tuple(primary) or ("id",)
    for name in names:
        if name not in by_name:
            raise ConfigError(f"{asked.source} has no column {name} to tell rows apart by.", "Name its key with --pk.")
    required = {column.name for column, required, _ in found if required}
    for table in dict.fromkeys((asked.source, asked.target)):
        await _require_unique(connection, table, names)
    if not required.issuperset(names):
        raise ConfigError(f"Column {names[0]} of {asked.source} may be NULL, so it does not tell rows apart.")
    if asked.target != asked.source:
        others = {column.name for column, _, _ in await _columns(connection, asked.target)}
        if missing := [name for name in names if name not in others]:
            raise ConfigError(f"{asked.target} has no column {missing[0]}, which is the key of {asked.source}.")
    if asked.column in (*names, asked.text) and asked.target == asked.source:
        raise ConfigError(f"Column {asked.column} of {asked.source} is read, so it is not written.")
    return Found(tuple(by_name[name] for name in names), by_name[asked.text])


async def _columns(connection: Connection, table: Table) -> list[tuple[Column, bool, int | None]]:
    params = {"schema": table.schema, "table": table.name}
    rows = await (await connection.execute(bound("one_off", "columns"), params)).fetchall()
    if not rows:
        raise ConfigError(f"There is no table {table}.", "Correct --schema and --table.")
    return [(Column(name, type, base), required, place) for name, type, base, required, place in rows]


async def _require_unique(connection: Connection, table: Table, names: Sequence[str]) -> None:
    params = {"schema": table.schema, "table": table.name, "names": sorted(names)}
    row = await (await connection.execute(bound("one_off", "unique"), params)).fetchone()
    if row is None or not row[0]:
        listed = ", ".join(names)
        raise ConfigError(
            f"{table} has no unique index on ({listed}), so its rows cannot be told apart by that.",
            "Name its key with --pk (several columns with commas between), or make such an index.",
        )


async def settle(connection: Connection, asked: Asked, found: Found, dimension: int) -> Plan:
    """Check the column that is written for results of ``dimension`` (0: answers), and make it where that is asked for.

    Raises:
        ConfigError: it is not there or will not do.
        Unavailable: the table's lock was not to be had.
    """
    try:
        value = await _value(connection, asked, dimension)
        key_type = "text"
        if asked.failures is not None:
            key_type = await _failures(connection, asked.failures)
    except PipelineFault as exc:
        raise ConfigError(exc.message, exc.remedy) from exc
    except psycopg.Error as exc:
        raise classify(exc) from exc
    filters = [f"({asked.filter}\n)"] if asked.filter else []
    if asked.target == asked.source and not asked.replace:
        filters.append(f"{sql.Identifier(asked.column).as_string(None)} IS NULL")
    return Plan(
        asked.source, found.key, found.text, " AND ".join(filters), asked.target, asked.column, value, asked.replace,
        asked.failures, key_type, asked.job,
    )  # fmt: skip


async def _value(connection: Connection, asked: Asked, dimension: int) -> Value:
    there = await columns.look_at(connection, asked.target, asked.column)
    if there is None:
        raise ConfigError(f"There is no table {asked.target}.", "Correct --out-table.")
    if there.type and there.generated:
        raise ConfigError(f"Column {asked.column} of {asked.target} is generated, so nothing can be written into it.")
    if there.type and not there.updatable:
        raise ConfigError(
            f'The role "{there.role}" may not update column {asked.column} of {asked.target}.',
            f'GRANT UPDATE ON {expressions.identifier(asked.target).as_string(None)} TO "{there.role}";',
        )
    if not there.type and not asked.make:
        raise ConfigError(f"{asked.target} has no column {asked.column}.", "Give --create-column to have it made.")
    if asked.answers:
        kind = ColumnKind(asked.column, answers=True, value_type=asked.type)
        type = (await columns.answer_type(connection, asked.target, kind, there)).sql
        value = Value("answer", type, f"u.walvec_value::{type.replace('%', '%%')}", ", %(values)s::pg_catalog.text[]")
    elif there.type:
        value = await _vector(connection, asked, there.bare, there.type, there.dimension, dimension)
    else:
        value = await _new_vector(connection, asked, dimension)
    if not there.type:
        await _make(connection, asked, value.type)
    return value


async def _new_vector(connection: Connection, asked: Asked, dimension: int) -> Value:
    written = " ".join(asked.type.lower().split())
    if written in ARRAYS:
        return _array(ARRAYS[written], dimension)
    sized = _VECTOR.fullmatch(written or asked.usual)
    if sized is None:
        if written:
            raise ConfigError(
                f"--column-type {asked.type[:40]!r} holds no vectors.", f"Use vector, halfvec or {', '.join(ARRAYS)}."
            )
        return _array("real[]", dimension)
    if written or await _extension(connection, sized[1]) is not None:
        width = int(sized[2]) if sized[2] else dimension
        return await _vector(connection, asked, sized[1], "", width, dimension)
    return _array("real[]", dimension)


async def _vector(connection: Connection, asked: Asked, base: str, declared: str, width: int, dimension: int) -> Value:
    if base in _ARRAY_BASES:
        return _array(declared, dimension)
    if base not in ("vector", "halfvec"):
        raise ConfigError(
            f"Column {asked.column} of {asked.target} is of type {declared}, which holds no vectors.",
            f"Use a column of type vector, halfvec or {', '.join(ARRAYS)}.",
        )
    if width not in (-1, dimension):
        raise ConfigError(
            f"Column {asked.column} of {asked.target} holds vectors of {width} dimensions; the model makes {dimension}."
        )
    extension = await _extension(connection, base)
    if extension is None:
        raise ConfigError(f"There is no type {base} in this database.", "CREATE EXTENSION vector;")
    schema, oid = extension
    name = sql.Identifier(schema, base).as_string(None)
    array = f", %(values)s::{name.replace('%', '%%')}[]"
    return Value(base, f"{name}({dimension})", "u.walvec_value", array, oid)


def _array(type: str, dimension: int) -> Value:
    """Return how vectors become values of an array type: cut out of one long array of all their numbers."""
    cut = f"(u.walvec_ord - 1) * {dimension} + 1 : u.walvec_ord * {dimension}"
    return Value("array", type, f"((%(values)s::pg_catalog.float4[])[{cut}])::{type}", "")


async def _extension(connection: Connection, kind: str) -> tuple[str, int] | None:
    row = await (await connection.execute(bound("catalog", "vector_extension"), {"type": kind})).fetchone()
    return None if row is None else (row[0], row[1])


async def _make(connection: Connection, asked: Asked, type: str) -> None:
    statement = sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} {}").format(
        expressions.identifier(asked.target), sql.Identifier(asked.column), sql.SQL(type)
    )
    try:
        async with connection.transaction():
            await connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(columns.LOCK_TIMEOUT)))
            await connection.execute(statement)
    except psycopg.errors.LockNotAvailable as exc:
        raise Unavailable(
            f"Column {asked.column} cannot be added to {asked.target} while others use the table.", "Try again later."
        ) from exc
    except psycopg.errors.InsufficientPrivilege as exc:
        raise ConfigError(
            f"The role may not add column {asked.column} to {asked.target}: it does not own the table.",
            f"Let its owner run: {statement.as_string(None)};",
        ) from exc


async def _failures(connection: Connection, table: Table) -> str:
    """Make the table of failures where it is missing; return the type of its row_id.

    Raises:
        ConfigError: it is another table.
    """
    await connection.execute(query("one_off", "make_failures", failures=expressions.identifier(table)))
    types = {column.name: column.type for column, _, _ in await _columns(connection, table)}
    missing = [name for name in ("job_id", "row_id", "value") if name not in types]
    if missing:
        raise ConfigError(
            f"{table} has no column {missing[0]}: refused rows are kept as (job_id, row_id, value).",
            "Name another table with --failed-rows-table.",
        )
    return types["row_id"]
