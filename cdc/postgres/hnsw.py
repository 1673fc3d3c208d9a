"""pgvector's HNSW index on a column, built beside running work: progress, leftovers, and what to search with."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql

from cdc.errors import ConfigError
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
_MARK: Final = "walvec: "  # what the comment of an index of ours begins with
_NOT_BUILT: Final = "No index was built in the database"


def opclass(base: str, metric: str) -> str:
    """Return pgvector's operator class for a column type and a metric, empty where there is none."""
    if metric == "hamming":
        return "bit_hamming_ops" if base == "bit" else ""
    return f"{base}_{OPCLASSES[metric]}_ops" if base in INDEX_LIMITS else ""


async def build_index(
    params: dict[str, Any], table: Table, indexed: Indexed, spec: IndexSpec, progress: Progress
) -> str:
    """Build the index ``spec.name`` unless it is there as it should be; return in a sentence what was done.

    It is built under another name, and takes its own, with a comment, once it is whole. So an index of that name with
    our comment is ours: where it was built for something else, the new one takes its place. Rests of a build that
    failed are removed first. Writers are not locked out. Cancelling ends the build in the server, too.

    Args:
        params: How to connect.
        table: The table.
        indexed: Its column.
        spec: Name, metric, m, ef_construction and ef.
        progress: Told the per cent.

    Raises:
        ConfigError: another relation or index has the name.
        Unavailable: the server is out of reach.
    """
    operators = opclass(indexed.base_type, spec.metric)
    if why := _why_not(table, indexed, spec, operators):
        return f"{_NOT_BUILT}: {why}"
    try:
        async with await psycopg.AsyncConnection.connect(autocommit=True, **params) as connection:
            found = await (
                await connection.execute(bound("external_index", "opclass"), {"opclass": operators})
            ).fetchone()
            if found is None:
                return f"{_NOT_BUILT}: pgvector is not installed there."
            schema, oid = found
            there = await _state(connection, table, spec.name)
            if there is None or not there.is_as(indexed, spec, oid):
                if there is not None:
                    _check_ours(there, table, indexed, spec.name)
                names = sql.Identifier(schema, operators)
                return await _build(params, connection, table, indexed, spec, names, there is not None, progress)
            if there.is_ours:
                await _note(connection, table, spec)
            return f"The index {spec.name} is there. {_advice(spec)}"
    except psycopg.Error as exc:
        raise classify(exc) from exc


def _why_not(table: Table, indexed: Indexed, spec: IndexSpec, operators: str) -> str:
    """Return why pgvector has no such index, empty where it has."""
    if not operators:
        return f"pgvector has none for a {indexed.base_type} column."
    if indexed.dimension is None or indexed.dimension > LIMITS[indexed.base_type]:
        most = LIMITS[indexed.base_type]
        return f"pgvector indexes {indexed.base_type} columns of a declared width of up to {most}."
    if indexed.partitioned:
        return f"{table} is partitioned, and such an index cannot be built beside running work."
    m, efc = spec.m, _ef_construction(spec)
    if not (_M[0] <= m <= _M[1] and _EF_CONSTRUCTION[0] <= efc <= _EF_CONSTRUCTION[1]):
        return (
            f"pgvector builds with m of {_M[0]} to {_M[1]} and ef_construction of {_EF_CONSTRUCTION[0]} to "
            f"{_EF_CONSTRUCTION[1]}; the job asks for {m} and {efc}."
        )
    return ""


def _ef_construction(spec: IndexSpec) -> int:
    return max(spec.ef_construction, 2 * spec.m)  # pgvector asks for twice m at least


@dataclass(frozen=True, slots=True)
class _There:
    """What has the index's name."""

    valid: bool
    table: int | None
    method: str | None
    definition: str | None
    column: str | None
    operators: int | None
    options: list[str]
    comment: str | None

    @property
    def is_ours(self) -> bool:
        return self.table is not None and (self.comment or "").startswith(_MARK)

    def is_as(self, indexed: Indexed, spec: IndexSpec, operators: int) -> bool:
        """Whether it is the index that the job asks for."""
        options = {"m": "16", "ef_construction": "64"} | dict(option.split("=", 1) for option in self.options)
        wanted = {"m": str(spec.m), "ef_construction": str(_ef_construction(spec))}
        return (
            self.valid
            and (self.table, self.method) == (indexed.oid, "hnsw")
            and (self.column, self.operators) == (spec.column, operators)
            and options == wanted
        )


async def _state(connection: Connection, table: Table, name: str) -> _There | None:
    names = {"schema": table.schema, "index": name}
    row = await (await connection.execute(bound("external_index", "index_state"), names)).fetchone()
    return _There(*row) if row is not None else None


def _check_ours(there: _There, table: Table, indexed: Indexed, name: str) -> None:
    """Refuse to replace what somebody else has made."""
    if there.table != indexed.oid:
        raise ConfigError(
            f"{_NOT_BUILT}: there is another relation {table.schema}.{name} already.",
            "Give the job's index another name.",
        )
    if not there.is_ours:
        invalid = "" if there.valid else ", which is invalid"
        raise ConfigError(
            f"{_NOT_BUILT}: {table.schema}.{name} is another index{invalid}: {there.definition}.",
            "Drop it, or give the job's index another name.",
        )


async def _build(
    params: dict[str, Any],
    connection: Connection,
    table: Table,
    indexed: Indexed,
    spec: IndexSpec,
    operators: sql.Identifier,
    replace: bool,
    progress: Progress,
) -> str:
    """Build the index under a name of its own; then let it take its name, from the one before where there is one."""
    digest = hashlib.sha256(f"{table.schema}\0{spec.name}".encode()).hexdigest()[:16]
    new, old = f"walvec_{digest}_new", f"walvec_{digest}_old"
    for name in (new, old):
        await _drop(connection, table, indexed, name)
    m, efc = spec.m, _ef_construction(spec)
    statement = query(
        "external_index",
        "make_index",
        index=sql.Identifier(new),
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
    async with connection.transaction():
        if replace:
            await _rename(connection, table, spec.name, old)
        await _rename(connection, table, new, spec.name)
        await _note(connection, table, spec)
    if replace:
        await _drop(connection, table, indexed, old)
    raised = f" (ef_construction {efc}, the least for m {m})" if efc != spec.ef_construction else ""
    return f"Built the index {spec.name}{raised}. {_advice(spec)}"


async def _drop(connection: Connection, table: Table, indexed: Indexed, name: str) -> None:
    """Drop the table's index of a name that only we give."""
    there = await _state(connection, table, name)
    if there is not None and there.table == indexed.oid:
        index = sql.Identifier(table.schema, name)
        await connection.execute(query("external_index", "drop_index", index=index))


async def _rename(connection: Connection, table: Table, name: str, to: str) -> None:
    index = sql.Identifier(table.schema, name)
    await connection.execute(query("external_index", "rename_index", index=index, to=sql.Identifier(to)))


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
    """Leave with our index what to search it with, which marks it as ours."""
    note = sql.Literal(f"{_MARK}{_advice(spec)}")
    index = sql.Identifier(table.schema, spec.name)
    await connection.execute(query("external_index", "note_index", index=index, note=note))
