"""Tables beside and among the books: their columns, and rows put into them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from cdc.postgres.connect import classify
from cdc.postgres.queries import bound
from cdc.rows import Table

Conn = psycopg.AsyncConnection[Any]


async def connect(params: Mapping[str, Any]) -> Conn:
    """Open a session; what goes wrong is said in this package's words."""
    try:
        return await psycopg.AsyncConnection.connect(**params)
    except psycopg.Error as exc:
        raise classify(exc) from exc


async def columns(connection: Conn, table: Table) -> list[tuple[str, str, bool]]:
    """Return the columns of a table: name, type, whether an INSERT must name it. None of them: there is no table."""
    cursor = await connection.execute(bound("jobs", "columns"), {"schema": table.schema, "table": table.name})
    return [(row[0], row[1], row[2]) for row in await cursor.fetchall()]


async def run(connection: Conn, statement: sql.SQL, params: Mapping[str, Any]) -> None:
    """Run a statement for what it does."""
    await connection.execute(statement, params)


async def insert(connection: Conn, table: Table, values: Mapping[str, object]) -> None:
    """Put a row into a table."""
    statement = bound(
        "jobs", "add", {"values": ", ".join(f"%({name})s" for name in values)},
        book=sql.Identifier(table.schema, table.name), columns=sql.SQL(", ").join(map(sql.Identifier, values)),
    )  # fmt: skip
    plain = {name: Jsonb(value) if isinstance(value, dict | list) else value for name, value in values.items()}
    await connection.execute(statement, plain)
