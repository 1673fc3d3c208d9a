"""Tables and functions beside the books, each used where it exists: results, usage, answers that could not be cast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from psycopg import sql

from cdc.errors import ConfigError
from cdc.flow.trial_rows import TrialRows
from cdc.ports.books import Uncastable, Usage
from cdc.postgres.job_tables import Conn, columns, insert
from cdc.postgres.queries import bound
from cdc.rows import Table

Counted = tuple[sql.Identifier, frozenset[str]]
"""The book whose rows count failures themselves, and its columns."""


@dataclass(frozen=True, slots=True)
class Extras:
    """Tables beside the books. Each is used where it exists.

    ``results`` takes the trials of autotune jobs; ``schemas`` are looked through, in order, for the tables
    embedding_usage_info and embedding_failure_info and for Lantern's functions for usage.
    """

    results: Table | None = None
    schemas: tuple[str, ...] = ()


@dataclass(slots=True)
class _Found:
    """The tables and functions beside the books that exist."""

    results: tuple[Table, frozenset[str]] | None = None
    usage: Table | None = None
    failures: Table | None = None
    functions: dict[str, str] = field(default_factory=dict)  # name → schema


class Beside:
    """What is beside the books of one control database."""

    def __init__(self, extras: Extras) -> None:
        self._extras = extras
        self._found = _Found()
        self._trials = TrialRows()

    async def look(self, connection: Conn, place: str) -> None:
        """See what there is.

        Raises:
            ConfigError: the results table that was named is not there.
        """
        found = _Found()
        if self._extras.results is not None:
            there = await columns(connection, self._extras.results)
            if not there:
                raise ConfigError(
                    f"The database {place} has no table {self._extras.results} for the results of autotune jobs.",
                    "Create it, or correct --autotune-results-table.",
                )
            found.results = (self._extras.results, frozenset(name for name, _, _ in there))
        for schema in reversed(self._extras.schemas):
            for name, kind in (("embedding_usage_info", "usage"), ("embedding_failure_info", "failures")):
                if await columns(connection, Table(schema, name)):
                    setattr(found, kind, Table(schema, name))
            cursor = await connection.execute(bound("jobs", "usage_functions"), {"schema": schema})
            found.functions |= {name: schema for (name,) in await cursor.fetchall()}
        self._found = found

    async def add_result(self, connection: Conn, id: int, row: Mapping[str, object]) -> None:
        """Add a row to the results table, the columns that it has."""
        if self._found.results is not None:
            table, known = self._found.results
            for each in self._trials.take(id, row, known):
                values = {"experiment_id": id, **each}
                await insert(connection, table, {name: value for name, value in values.items() if name in known})

    async def remove_results(self, connection: Conn, id: int) -> None:
        """Remove a job's rows of the results table, where that says which they are."""
        if self._found.results is not None and "experiment_id" in self._found.results[1]:
            table, _ = self._found.results
            statement = bound("jobs", "remove_results", book=sql.Identifier(table.schema, table.name))
            await connection.execute(statement, {"id": id})

    async def experiments(self, connection: Conn, model: str) -> list[Mapping[str, object]]:
        """Return the winners of earlier autotune jobs for a model; none where the results table does not tell."""
        if self._found.results is None or not {"id", "model", "best"} <= self._found.results[1]:
            return []
        table, _ = self._found.results
        statement = bound("jobs", "experiments", book=sql.Identifier(table.schema, table.name))
        cursor = await connection.execute(statement, {"model": model})
        return [row[0] for row in await cursor.fetchall()]

    async def use(
        self, connection: Conn, usage: Sequence[Usage], uncastable: Sequence[Uncastable], book: Counted | None
    ) -> None:
        """Write down what jobs used, in one transaction."""
        async with connection.transaction():
            for used in usage:
                await self._note(connection, used)
                await self._tell(connection, used)
                if book is not None:
                    await _count(connection, used, *book)
            for answer in uncastable:
                if self._found.failures is not None:
                    values = {"job_id": answer.job, "row_id": answer.row, "value": answer.value}
                    await insert(connection, self._found.failures, values)

    async def _note(self, connection: Conn, used: Usage) -> None:
        if self._found.usage is None:
            return
        if used.rows:
            values = {"job_id": used.job, "rows": used.rows, "tokens": min(used.tokens, 2**31 - 1), "failed": False}
            await insert(connection, self._found.usage, values)
        if used.failed_rows:
            values = {"job_id": used.job, "rows": used.failed_rows, "tokens": 0, "failed": True}
            await insert(connection, self._found.usage, values)

    async def _tell(self, connection: Conn, used: Usage) -> None:
        """Call Lantern's functions, where a schema has them."""
        params = {"job": used.job, "rows": used.rows, "tokens": used.tokens}
        if used.rows and (schema := self._found.functions.get("increment_embedding_usage_and_tokens")):
            await connection.execute(bound("jobs", "call_usage", schema=sql.Identifier(schema)), params)
        if used.failed_rows and (schema := self._found.functions.get("increment_embedding_failures")):
            failed = {**params, "rows": used.failed_rows}
            await connection.execute(bound("jobs", "call_failures", schema=sql.Identifier(schema)), failed)


async def _count(connection: Conn, used: Usage, book: sql.Identifier, known: frozenset[str]) -> None:
    """Count failures in the job's own row, where it has the columns."""
    counts = {"failed_requests": used.failed_requests, "failed_rows": used.failed_rows}
    parts = [
        sql.SQL("{0} = coalesce({0}, 0) + {1}").format(sql.Identifier(name), sql.Literal(n))
        for name, n in counts.items()
        if n and name in known
    ]
    if parts:
        changes = sql.SQL(", ").join(parts)
        statement = bound("jobs", "write", book=book, changes=changes, only=sql.SQL(""))
        await connection.execute(statement, {"id": used.job})
