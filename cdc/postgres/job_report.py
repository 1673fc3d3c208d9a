"""What a job's row tells: which columns are written when, in a table of jobs of any kind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from psycopg import sql

Row = Mapping[str, object]

WRITTEN: Final = ("started_at", "finished_at", "failed_at", "failure_reason", "progress")
"""The columns that are written, without the prefix that they have in a table of embedding jobs."""

WRITTEN_AS_IS: Final = ("updated_at", "failed_requests", "failed_rows")
"""Those that never have it."""


class Write(Protocol):
    """Sets columns of one row."""

    async def __call__(self, changes: Mapping[str, sql.Composable], only: str = "") -> None:
        """Set the columns of ``changes`` that there are; ``only``: where this one is NULL, if there is one."""
        ...


class BookReport:
    """Implements :class:`cdc.ports.jobs.JobReport` over one row of a book.

    Args:
        prefix: What the names of its columns begin with.
        write: Sets columns of the row, those that the book has.
        add_result: Adds a row to the results table.
        remove_results: Removes those that an earlier run has added.
    """

    def __init__(
        self,
        prefix: str,
        write: Write,
        add_result: Callable[[Row], Awaitable[None]],
        remove_results: Callable[[], Awaitable[None]],
    ) -> None:
        self._prefix = prefix
        self._write = write
        self._add_result = add_result
        self._remove_results = remove_results
        self._percent = 0

    async def started(self) -> None:
        """Note that work has begun: ``started_at`` where it is empty, failures struck out."""
        p = self._prefix
        await self._write(
            {
                f"{p}started_at": sql.SQL("coalesce({}, now())").format(sql.Identifier(f"{p}started_at")),
                f"{p}failed_at": sql.NULL,
                f"{p}failure_reason": sql.NULL,
            },
        )

    async def anew(self) -> None:
        """Note that what was finished is to be done again: ``started_at`` and ``finished_at`` empty, progress 0."""
        p = self._prefix
        kept = sql.SQL("CASE WHEN {} IS NULL THEN {} ELSE {} END")  # another daemon may have begun it already
        done, since, share = (sql.Identifier(f"{p}{name}") for name in ("finished_at", "started_at", "progress"))
        await self._write(
            {
                f"{p}started_at": kept.format(done, since, sql.NULL),
                f"{p}progress": kept.format(done, share, sql.Literal(0)),
                f"{p}finished_at": sql.NULL,
            },
        )

    async def progress(self, percent: int) -> None:
        """Note how much is done; written only when it has risen."""
        if percent > self._percent:
            self._percent = min(percent, 100)
            changes = {f"{self._prefix}progress": sql.Literal(self._percent)}
            await self._write(changes, f"{self._prefix}finished_at")

    async def finished(self) -> None:
        """Note that it is done: ``finished_at`` where it is empty, progress 100."""
        p = self._prefix
        await self._write(
            {
                f"{p}finished_at": sql.SQL("now()"),
                f"{p}progress": sql.Literal(100),
                f"{p}failed_at": sql.NULL,
                f"{p}failure_reason": sql.NULL,
                "updated_at": sql.SQL("now()"),
            },
            f"{p}finished_at",
        )

    async def failed(self, reason: str) -> None:
        """Note that it has failed, with one plain sentence that holds no secret."""
        p = self._prefix
        await self._write(
            {
                f"{p}failed_at": sql.SQL("now()"),
                f"{p}failure_reason": sql.Literal(reason),
                "updated_at": sql.SQL("now()"),
            },
        )

    async def waits(self, reason: str) -> None:
        """Note why it waits, where it has never begun. It has not failed: ``failed_at`` stays as it is."""
        p = self._prefix
        changes = {f"{p}failure_reason": sql.Literal(reason), "updated_at": sql.SQL("now()")}
        await self._write(changes, f"{p}started_at")

    async def result(self, row: Row) -> None:
        """Add a row to the results table."""
        await self._add_result(row)

    async def forget_results(self) -> None:
        """Remove what an earlier run has added there."""
        await self._remove_results()
