"""pgvector's HNSW index on a column, built beside running work: progress, leftovers, and what to search with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import psycopg
from psycopg import sql

from cdc.errors import ConfigError, PipelineFault
from cdc.jobs import IndexSpec
from cdc.ports.indexes import Indexed
from cdc.postgres import expressions
from cdc.postgres.connect import classify
from cdc.postgres.queries import bound, query
from cdc.postgres.vectors import INDEX_LIMITS
from cdc.rows import Table

Connection = psycopg.AsyncConnection[Any]
Progress = Callable[[int], Awaitable[None]]

OPCLASSES: Final = {"l2": "l2", "l2sq": "l2", "cosine": "cosine", "ip": "ip"}
LIMITS: Final = {**INDEX_LIMITS, "bit": 64_000}

_M: Final = (2, 100)
_EF_CONSTRUCTION: Final = (4, 1000)
_LOOK_S: Final = 1.0


def opclass(base: str, metric: str) -> str:
    """Return pgvector's operator class for a column type and a metric, empty where there is none."""
    if metric == "hamming":
        return "bit_hamming_ops" if base == "bit" else ""
    return f"{base}_{OPCLASSES[metric]}_ops" if base in INDEX_LIMITS else ""


async def build_index(
    params: dict[str, Any], table: Table, indexed: Indexed, spec: IndexSpec, progress: Progress
) -> str:
    """Build the index ``spec.name`` unless it is there and whole; return in a sentence what was done.

    An invalid index of that name, the rest of a build that failed, is removed first. Writers are not locked out.
    Cancelling ends the build in the server, too.

    Args:
        params: How to connect.
        table: The table.
        indexed: Its column.
        spec: Name, metric, m, ef_construction and ef.
        progress: Told the per cent.

    Raises:
        ConfigError: another relation has the name, or the parameters are out of pgvector's range.
        Unavailable: the server is out of reach.
    """
    operators = opclass(indexed.base_type, spec.metric)
    if not operators:
        return f"No index was built in the database: pgvector has none for a {indexed.base_type} column."
    if indexed.dimension is None or indexed.dimension > LIMITS[indexed.base_type]:
        return (
            f"No index was built in the database: pgvector indexes {indexed.base_type} columns of a declared width of "
            f"up to {LIMITS[indexed.base_type]}."
        )
    try:
        async with await psycopg.AsyncConnection.connect(autocommit=True, **params) as connection:
            found = await (
                await connection.execute(bound("external_index", "opclass"), {"opclass": operators})
            ).fetchone()
            if found is None:
                return "No index was built in the database: pgvector is not installed there."
            if not await _is_missing(connection, table, indexed, spec.name):
                await _note(connection, table, spec)
                return f"The index {spec.name} is there. {_advice(spec)}"
            return await _build(params, connection, table, spec, sql.Identifier(found[0], operators), progress)
    except psycopg.Error as exc:
        raise classify(exc) from exc


async def _is_missing(connection: Connection, table: Table, indexed: Indexed, name: str) -> bool:
    """Whether the index must be built; a leftover of its name is removed."""
    names = {"schema": table.schema, "index": name}
    row = await (await connection.execute(bound("external_index", "index_state"), names)).fetchone()
    if row is None:
        return True
    valid, of, definition = row
    if of != indexed.oid or " USING hnsw " not in definition:
        raise ConfigError(
            f"There is another relation {table.schema}.{name} already.", "Give the job's index another name."
        )
    if valid:
        return False
    index = sql.Identifier(table.schema, name)
    await connection.execute(query("external_index", "drop_index", index=index))
    return True


async def _build(
    params: dict[str, Any],
    connection: Connection,
    table: Table,
    spec: IndexSpec,
    operators: sql.Identifier,
    progress: Progress,
) -> str:
    m, efc = spec.m, max(spec.ef_construction, 2 * spec.m)  # pgvector asks for twice m at least
    if not (_M[0] <= m <= _M[1] and _EF_CONSTRUCTION[0] <= efc <= _EF_CONSTRUCTION[1]):
        raise PipelineFault(
            f"pgvector builds with m of {_M[0]} to {_M[1]} and ef_construction of {_EF_CONSTRUCTION[0]} to "
            f"{_EF_CONSTRUCTION[1]}; the job asks for {m} and {efc}.",
            "Correct the job's row.",
        )
    statement = query(
        "external_index",
        "make_index",
        index=sql.Identifier(spec.name),
        table=expressions.identifier(table),
        column=sql.Identifier(spec.column),
        opclass=operators,
        m=sql.Literal(m),
        efc=sql.Literal(efc),
    )
    watcher = asyncio.create_task(_watch(params, connection.info.backend_pid, progress))
    try:
        await connection.execute(statement)
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
    await _note(connection, table, spec)
    raised = f" (ef_construction {efc}, the least for m {m})" if efc != spec.ef_construction else ""
    return f"Built the index {spec.name}{raised}. {_advice(spec)}"


async def _watch(params: dict[str, Any], pid: int, progress: Progress) -> None:
    """Tell how far the build of session ``pid`` is, until cancelled."""
    async with await psycopg.AsyncConnection.connect(autocommit=True, **params) as connection:
        while True:
            await asyncio.sleep(_LOOK_S)
            row = await (await connection.execute(bound("external_index", "index_progress"), {"pid": pid})).fetchone()
            if row is not None:
                await progress(int(row[0]))


def _advice(spec: IndexSpec) -> str:
    return f"Search it with SET hnsw.ef_search = {min(max(spec.ef, 1), 1000)};"


async def _note(connection: Connection, table: Table, spec: IndexSpec) -> None:
    """Leave with the index what to search it with."""
    note = sql.Literal(f"walvec: {_advice(spec)}")
    index = sql.Identifier(table.schema, spec.name)
    await connection.execute(query("external_index", "note_index", index=index, note=note))
