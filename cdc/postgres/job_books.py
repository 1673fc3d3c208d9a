"""Books: tables of jobs in a control database, read as JSON objects and written where the columns exist."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import psycopg
import structlog
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from cdc.errors import ConfigError, Unavailable
from cdc.flow.disposition import backoff_s
from cdc.flow.jobs import control_digest
from cdc.flow.snapshots import Snapshot
from cdc.jobs import NO_CONTROL, Control, JobId, JobKind
from cdc.ports.books import BookName, Uncastable, Usage
from cdc.postgres.connect import ConnectionSettings, classify, connection_params
from cdc.postgres.job_claims import Claims, JobClaim
from cdc.postgres.job_report import WRITTEN, WRITTEN_AS_IS, BookReport
from cdc.postgres.job_tables import Conn, columns, connect, run
from cdc.postgres.job_usage import Beside, Extras
from cdc.postgres.queries import bound, query
from cdc.rows import Table

log = structlog.get_logger()
T = TypeVar("T")

SESSIONS: Final = 4
"""Most sessions with one control database: reading, writing, and the claims'."""

NEEDED: Final = {
    JobKind.EMBEDDING: ("id", "table", "src_column", "dst_column", "embedding_model"),
    JobKind.EXTERNAL_INDEX: ("id", "table", "column"),
    JobKind.AUTOTUNE: ("id", "table", "column", "target_recall"),
}
"""Columns that a book cannot do without, by its kind."""

_NUMBER_TYPES: Final = ("int2", "int4", "int8")


@dataclass(slots=True)
class _Book:
    name: BookName
    columns: frozenset[str] = frozenset()
    control: Control = NO_CONTROL
    without_id: int = 0  # rows, when they were last looked at

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.name.table.schema, self.name.table.name)

    @property
    def prefix(self) -> str:
        return "init_" if self.name.kind is JobKind.EMBEDDING else ""


class PostgresBooks:
    """Implements :class:`cdc.ports.books.Books`.

    Args:
        settings: The control database.
        place: The same as people read it.
        names: The books.
        extras: What else is written.
    """

    def __init__(self, settings: ConnectionSettings, place: str, names: Sequence[BookName], extras: Extras) -> None:
        self.place = place
        self._settings = settings
        self._books = {name.table: _Book(name) for name in names}
        self._beside = Beside(extras)
        self._stamp = ""
        self._seen: Snapshot | None = None
        self._pool: AsyncConnectionPool[Conn] | None = None
        self._claims = Claims(self._params("claims"))

    @property
    def tables(self) -> tuple[Table, ...]:
        """The books' tables."""
        return tuple(self._books)

    def _params(self, role: str) -> dict[str, Any]:
        params = connection_params(self._settings, role)
        # Times are written as the users of these tables see them: in the time zone of the server or the role.
        return {**params, "options": params["options"].replace("-c timezone=UTC", ""), "autocommit": True}

    # -- reading ----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Check the tables, and give ``database_id`` a default."""
        if self._pool is None:
            pool: AsyncConnectionPool[Conn] = AsyncConnectionPool(
                kwargs=self._params("jobs"), min_size=0, max_size=SESSIONS, timeout=10.0, max_idle=60.0,
                reconnect_timeout=1.0, check=AsyncConnectionPool.check_connection, open=False, name="walvec jobs",
            )  # fmt: skip
            # The pool says only that it has no session: why is learnt from a session of our own.
            await (await connect(self._params("jobs"))).close()
            await pool.open()
            self._pool = pool
        await self._lent(self._check)

    async def _check(self, connection: Conn) -> None:
        cursor = await connection.execute(bound("jobs", "identity"))
        row = await cursor.fetchone()
        assert row is not None
        for table, book in self._books.items():
            book.columns = await self._columns_of(connection, book)
            await self._check_rights(connection, book)
            book.control = Control(row[2], control_digest(row[0], row[1], table))
        await self._beside.look(connection, self.place)

    async def _columns_of(self, connection: Conn, book: _Book) -> frozenset[str]:
        table = book.name.table
        found = {name: (type, bool(needed)) for name, type, needed in await columns(connection, table)}
        if not found:
            raise ConfigError(
                f"The database {self.place} has no table {table}, which is to hold {book.name.kind.value} jobs.",
                "Create it, or correct the table's name or --schema.",
            )
        missing = [name for name in NEEDED[book.name.kind] if name not in found]
        if missing:
            raise ConfigError(f"{table} is no table of {book.name.kind.value} jobs: it has no column {missing[0]}.")
        type, _ = found["id"]
        if type not in _NUMBER_TYPES:
            raise _no_number(table, self.place, type)
        type, needed = found.get("database_id", ("", False))
        if needed:
            await self._give_default(connection, book, type)
        return frozenset(found)

    async def _check_rights(self, connection: Conn, book: _Book) -> None:
        """Check that rows can be read and written: a job whose row says nothing would be run in vain."""
        table, columns = book.name.table, [*(book.prefix + name for name in WRITTEN), *WRITTEN_AS_IS]
        names = {"schema": table.schema, "table": table.name, "columns": columns}
        cursor = await connection.execute(bound("jobs", "rights_on_book"), names)
        row = await cursor.fetchone()
        if row is None:
            return
        role, quoted, closed, readable = row
        if not readable:
            raise ConfigError(f"The role {role} may not read {quoted}.", f"GRANT SELECT, UPDATE ON {quoted} TO {role};")
        if closed:
            raise ConfigError(
                f"The role {role} may not write what becomes of jobs into {quoted} ({', '.join(closed)}).",
                f"GRANT UPDATE ON {quoted} TO {role};",
            )

    async def _give_default(self, connection: Conn, book: _Book, type: str) -> None:
        """Let an INSERT leave out ``database_id``, as the documented one does though the column is NOT NULL."""
        if type not in ("text", "varchar", "bpchar", *_NUMBER_TYPES):
            return
        value = sql.Literal(0) if type in _NUMBER_TYPES else sql.Literal("")
        statement = query(
            "jobs", "give_default", book=book.identifier, column=sql.Identifier("database_id"), value=value
        )
        try:
            await connection.execute(statement)
        except psycopg.Error as exc:
            text = statement.as_string(None)
            log.warning("book_default_missing", table=str(book.name.table), message=str(classify(exc)), remedy=text)
        else:
            log.info("book_default_set", table=str(book.name.table), column="database_id")

    async def read(self) -> Mapping[JobId, tuple[JobKind, Mapping[str, Any]]]:
        """Return every row of every book."""
        if self._pool is None:
            await self.open()
        return await self._lent(self._read)

    async def _read(self, connection: Conn) -> dict[JobId, tuple[JobKind, Mapping[str, Any]]]:
        names = {"schemas": [t.schema for t in self._books], "tables": [t.name for t in self._books]}
        cursor = await connection.execute(bound("jobs", "stamp"), names)
        row = await cursor.fetchone()
        assert row is not None
        if row[1] != self._stamp:  # the first time, or a table was altered, or dropped and made anew
            await self._check(connection)
            self._stamp = row[1]
        rows: dict[JobId, tuple[JobKind, Mapping[str, Any]]] = {}
        for table, book in self._books.items():
            cursor = await connection.execute(query("jobs", "rows", book=book.identifier))
            found = [job for (job,) in await cursor.fetchall()]
            known = [job for job in found if job["id"] is not None]  # one that is no key may be NULL
            if any(not isinstance(job["id"], int) for job in known):  # the type was changed since it was checked
                raise _no_number(table, self.place)
            rows |= {JobId(self.place, table, job["id"], book.control): (book.name.kind, job) for job in known}
            self._tell_of_rows_without_id(book, len(found) - len(known))
        self._seen = Snapshot.parse(row[0])
        return rows

    def _tell_of_rows_without_id(self, book: _Book, rows: int) -> None:
        """Say once that rows are left out: they can be told neither from each other nor what became of them."""
        if rows > book.without_id:
            log.warning("job_rows_skipped", table=str(book.name.table), rows=rows, database=self.place)
        book.without_id = rows

    def covers(self, xid: int) -> bool:
        """Tell whether the last :meth:`read` could see what transaction ``xid`` committed."""
        return self._seen is not None and self._seen.covers(xid)

    # -- writing ----------------------------------------------------------------------------------------------------

    def report(self, id: JobId, kind: JobKind) -> BookReport:
        """Return what writes into a job's row."""
        book = self._books[id.table]
        return BookReport(
            book.prefix,
            partial(self._write, book, id.id),
            partial(self._add_result, id.id),
            partial(self._remove_results, id.id),
        )

    async def _write(self, book: _Book, id: int, changes: Mapping[str, sql.Composable], only: str = "") -> None:
        """Set columns of one row, those that the book has. Waits while the database is away."""

        async def once(connection: Conn) -> None:
            statement = _update(book, changes, only)
            if statement is not None:
                await run(connection, statement, {"id": id})

        async def written(connection: Conn) -> None:
            try:
                await once(connection)
            except psycopg.errors.UndefinedColumn:  # it was dropped a moment ago
                await self._check(connection)
                await once(connection)

        await self._patiently(written)

    async def _add_result(self, id: int, row: Mapping[str, object]) -> None:
        """Add a row to the results table, the columns that it has."""
        await self._patiently(lambda connection: self._beside.add_result(connection, id, row))

    async def _remove_results(self, id: int) -> None:
        """Remove a job's rows of the results table."""
        await self._patiently(lambda connection: self._beside.remove_results(connection, id))

    async def experiments(self, model: str) -> list[Mapping[str, object]]:
        """Return the winners of earlier autotune jobs for a model; none where the results table does not tell."""
        return await self._lent(lambda connection: self._beside.experiments(connection, model))

    async def use(self, usage: Sequence[Usage], uncastable: Sequence[Uncastable]) -> None:
        """Write down what jobs used, in one transaction."""
        book = next((book for book in self._books.values() if book.name.kind is JobKind.EMBEDDING), None)
        counted = (book.identifier, book.columns) if book is not None else None
        await self._lent(lambda connection: self._beside.use(connection, usage, uncastable, counted))

    # -- claims -----------------------------------------------------------------------------------------------------

    async def claim(self, id: JobId) -> JobClaim | None:
        """Return the right to run a job; None while another daemon has it."""
        return await self._claims.claim(f"walvec job {id.table}/{id.id}")

    async def close(self) -> None:
        """Let go of the connections."""
        await self._claims.close()
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    # -- sessions ---------------------------------------------------------------------------------------------------

    async def _lent(self, work: Callable[[Conn], Awaitable[T]]) -> T:
        pool = self._pool
        if pool is None:
            raise Unavailable(f"The control database {self.place} has not been reached yet.")
        try:
            async with pool.connection() as connection:
                return await work(connection)
        except psycopg.Error as exc:
            raise classify(exc) from exc

    async def _patiently(self, work: Callable[[Conn], Awaitable[None]]) -> None:
        attempt = 0
        while True:
            attempt += 1
            try:
                await self._lent(work)
            except Unavailable as exc:
                log.warning("database_unavailable", message=str(exc))
                await asyncio.sleep(backoff_s(attempt))
            else:
                return


def _update(book: _Book, changes: Mapping[str, sql.Composable], only: str) -> sql.SQL | None:
    """Return the statement that sets the columns of ``changes`` that the book has; None: it has none of them."""
    known = {name: value for name, value in changes.items() if name in book.columns}
    if not known:
        return None
    assignments = sql.SQL(", ").join(sql.SQL("{} = {}").format(sql.Identifier(n), v) for n, v in known.items())
    condition = sql.SQL("AND {} IS NULL").format(sql.Identifier(only)) if only in book.columns else sql.SQL("")
    return bound("jobs", "write", book=book.identifier, changes=assignments, only=condition)


def _no_number(table: Table, place: str, type: str = "") -> ConfigError:
    """Return what is said of a table whose ids are no whole numbers."""
    what = f"is of type {type}" if type else "is no whole number any more"
    return ConfigError(
        f'The column "id" of {table} in {place} {what}: jobs are known by whole numbers.',
        "Make it an integer or bigint, such as bigserial.",
    )
