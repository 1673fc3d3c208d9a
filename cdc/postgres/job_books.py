"""Books: tables of jobs in a control database, read as JSON objects and written where the columns exist."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import psycopg
import structlog
from psycopg import sql
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool

from cdc.errors import ConfigError, Unavailable
from cdc.flow.disposition import backoff_s
from cdc.flow.snapshots import Snapshot
from cdc.jobs import JobId, JobKind
from cdc.ports.books import BookName, Uncastable, Usage
from cdc.postgres.connect import ConnectionSettings, classify, connection_params
from cdc.postgres.queries import bound, query
from cdc.rows import Table

log = structlog.get_logger()
Conn = psycopg.AsyncConnection[Any]
T = TypeVar("T")

SESSIONS: Final = 4
"""Most sessions with one control database: reading, writing, and the claims'."""

CLAIM_LOOK_S: Final = 2.0
"""Seconds between looks at the session that holds the claims."""

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

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.name.table.schema, self.name.table.name)

    @property
    def prefix(self) -> str:
        return "init_" if self.name.kind is JobKind.EMBEDDING else ""


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
        self._extras = extras
        self._found = _Found()
        self._stamp = ""
        self._seen: Snapshot | None = None
        self._pool: AsyncConnectionPool[Conn] | None = None
        self._claims = _Claims(self._params("claims"))

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
            await (await _connect(self._params("jobs"))).close()
            await pool.open()
            self._pool = pool
        await self._lent(self._check)

    async def _check(self, connection: Conn) -> None:
        for book in self._books.values():
            book.columns = await self._columns_of(connection, book)
        self._found = await self._look_beside(connection)

    async def _columns_of(self, connection: Conn, book: _Book) -> frozenset[str]:
        table = book.name.table
        found = {name: (type, bool(needed)) for name, type, needed in await _columns(connection, table)}
        if not found:
            raise ConfigError(
                f"The database {self.place} has no table {table}, which is to hold {book.name.kind.value} jobs.",
                "Create it, or correct the table's name or --schema.",
            )
        missing = [name for name in NEEDED[book.name.kind] if name not in found]
        if missing:
            raise ConfigError(f"{table} is no table of {book.name.kind.value} jobs: it has no column {missing[0]}.")
        type, needed = found.get("database_id", ("", False))
        if needed:
            await self._give_default(connection, book, type)
        return frozenset(found)

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

    async def _look_beside(self, connection: Conn) -> _Found:
        found = _Found()
        if self._extras.results is not None:
            columns = await _columns(connection, self._extras.results)
            if not columns:
                raise ConfigError(
                    f"The database {self.place} has no table {self._extras.results} for the results of autotune jobs.",
                    "Create it, or correct --autotune-results-table.",
                )
            found.results = (self._extras.results, frozenset(name for name, _, _ in columns))
        for schema in reversed(self._extras.schemas):
            for name, kind in (("embedding_usage_info", "usage"), ("embedding_failure_info", "failures")):
                if await _columns(connection, Table(schema, name)):
                    setattr(found, kind, Table(schema, name))
            cursor = await connection.execute(bound("jobs", "usage_functions"), {"schema": schema})
            found.functions |= {name: schema for (name,) in await cursor.fetchall()}
        return found

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
        if row[1] != self._stamp:  # the first time, or a table was dropped and made anew
            await self._check(connection)
            self._stamp = row[1]
        rows: dict[JobId, tuple[JobKind, Mapping[str, Any]]] = {}
        for table, book in self._books.items():
            cursor = await connection.execute(query("jobs", "rows", book=book.identifier))
            for (job,) in await cursor.fetchall():
                rows[JobId(self.place, table, int(job["id"]))] = (book.name.kind, job)
        self._seen = Snapshot.parse(row[0])
        return rows

    def covers(self, xid: int) -> bool:
        """Tell whether the last :meth:`read` could see what transaction ``xid`` committed."""
        return self._seen is not None and self._seen.covers(xid)

    # -- writing ----------------------------------------------------------------------------------------------------

    def report(self, id: JobId, kind: JobKind) -> BookReport:
        """Return what writes into a job's row."""
        return BookReport(self, self._books[id.table], id.id)

    async def write(self, book: _Book, id: int, changes: Mapping[str, sql.Composable], only: str = "") -> None:
        """Set columns of one row, those that the book has. Waits while the database is away."""
        known = {name: value for name, value in changes.items() if name in book.columns}
        if not known:
            return
        assignments = sql.SQL(", ").join(sql.SQL("{} = {}").format(sql.Identifier(n), v) for n, v in known.items())
        condition = sql.SQL("AND {} IS NULL").format(sql.Identifier(only)) if only in book.columns else sql.SQL("")
        statement = bound("jobs", "write", book=book.identifier, changes=assignments, only=condition)
        await self._patiently(lambda connection: _run(connection, statement, {"id": id}))

    async def add_result(self, id: int, row: Mapping[str, object]) -> None:
        """Add a row to the results table, the columns that it has."""
        if self._found.results is None:
            return
        table, columns = self._found.results
        known = {n: v for n, v in {"experiment_id": id, **row}.items() if n in columns}
        await self._patiently(lambda connection: _insert(connection, table, known))

    async def experiments(self, model: str) -> list[Mapping[str, object]]:
        """Return the winners of earlier autotune jobs for a model; none where the results table does not tell."""
        if self._found.results is None or not {"id", "model", "best"} <= self._found.results[1]:
            return []
        table, _ = self._found.results
        statement = bound("jobs", "experiments", book=sql.Identifier(table.schema, table.name))

        async def look(connection: Conn) -> list[Mapping[str, object]]:
            cursor = await connection.execute(statement, {"model": model})
            return [row[0] for row in await cursor.fetchall()]

        return await self._lent(look)

    async def use(self, usage: Sequence[Usage], uncastable: Sequence[Uncastable]) -> None:
        """Write down what jobs used, in one transaction."""

        async def write(connection: Conn) -> None:
            async with connection.transaction():
                for used in usage:
                    await self._use(connection, used)
                for answer in uncastable:
                    if self._found.failures is not None:
                        values = {"job_id": answer.job, "row_id": answer.row, "value": answer.value}
                        await _insert(connection, self._found.failures, values)

        await self._lent(write)

    async def _use(self, connection: Conn, used: Usage) -> None:
        if self._found.usage is not None:
            if used.rows:
                values = {"job_id": used.job, "rows": used.rows, "tokens": min(used.tokens, 2**31 - 1)}
                await _insert(connection, self._found.usage, {**values, "failed": False})
            if used.failed_rows:
                values = {"job_id": used.job, "rows": used.failed_rows, "tokens": 0}
                await _insert(connection, self._found.usage, {**values, "failed": True})
        params = {"job": used.job, "rows": used.rows, "tokens": used.tokens}
        if used.rows and (schema := self._found.functions.get("increment_embedding_usage_and_tokens")):
            await connection.execute(bound("jobs", "call_usage", schema=sql.Identifier(schema)), params)
        if used.failed_rows and (schema := self._found.functions.get("increment_embedding_failures")):
            failed = {**params, "rows": used.failed_rows}
            await connection.execute(bound("jobs", "call_failures", schema=sql.Identifier(schema)), failed)
        book = next((book for book in self._books.values() if book.name.kind is JobKind.EMBEDDING), None)
        counts = {"failed_requests": used.failed_requests, "failed_rows": used.failed_rows}
        counted = {name: n for name, n in counts.items() if n and book is not None and name in book.columns}
        if book is not None and counted:
            parts = [
                sql.SQL("{0} = coalesce({0}, 0) + {1}").format(sql.Identifier(name), sql.Literal(n))
                for name, n in counted.items()
            ]
            changes = sql.SQL(", ").join(parts)
            statement = bound("jobs", "write", book=book.identifier, changes=changes, only=sql.SQL(""))
            await connection.execute(statement, {"id": used.job})

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


class BookReport:
    """Implements :class:`cdc.ports.jobs.JobReport` over one row of a book."""

    def __init__(self, books: PostgresBooks, book: _Book, id: int) -> None:
        self._books = books
        self._book = book
        self._id = id
        self._percent = 0

    async def started(self) -> None:
        """Note that work has begun: ``started_at`` where it is empty, failures struck out."""
        p = self._book.prefix
        await self._books.write(
            self._book,
            self._id,
            {
                f"{p}started_at": sql.SQL("coalesce({}, now())").format(sql.Identifier(f"{p}started_at")),
                f"{p}failed_at": sql.NULL,
                f"{p}failure_reason": sql.NULL,
            },
        )

    async def progress(self, percent: int) -> None:
        """Note how much is done; written only when it has risen."""
        if percent > self._percent:
            self._percent = min(percent, 100)
            await self._books.write(
                self._book, self._id, {f"{self._book.prefix}progress": sql.Literal(self._percent)},
                f"{self._book.prefix}finished_at",
            )  # fmt: skip

    async def finished(self) -> None:
        """Note that it is done: ``finished_at`` where it is empty, progress 100."""
        p = self._book.prefix
        await self._books.write(
            self._book,
            self._id,
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
        p = self._book.prefix
        await self._books.write(
            self._book,
            self._id,
            {
                f"{p}failed_at": sql.SQL("now()"),
                f"{p}failure_reason": sql.Literal(reason),
                "updated_at": sql.SQL("now()"),
            },
        )

    async def result(self, row: Mapping[str, object]) -> None:
        """Add a row to the results table."""
        await self._books.add_result(self._id, row)


class _Claims:
    """Advisory locks, all held by one session: when it ends, every claim is lost at once."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._params = params
        self._connection: Conn | None = None
        self._ended = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._held: set[str] = set()

    async def claim(self, name: str) -> JobClaim | None:
        async with self._turn:
            if self._connection is None or self._connection.closed:
                self._connection = await _connect(self._params)
                self._ended = asyncio.Event()
                self._held = set()
                self._watch = asyncio.create_task(self._look(self._connection, self._ended), name="claims")
            if name in self._held:  # of one session a second lock would be granted, too
                return None
            try:
                cursor = await self._connection.execute(bound("jobs", "claim"), {"name": name})
                row = await cursor.fetchone()
            except psycopg.Error as exc:
                raise classify(exc) from exc
            if row is None or not row[0]:
                return None
            self._held.add(name)
            return JobClaim(self, name, self._ended)

    async def release(self, name: str, ended: asyncio.Event) -> None:
        async with self._turn:
            if self._connection is None or self._ended is not ended or ended.is_set():
                return
            self._held.discard(name)
            try:
                await self._connection.execute(bound("jobs", "unclaim"), {"name": name})
            except psycopg.Error:
                ended.set()  # the session is gone, and the lock with it

    async def _look(self, connection: Conn, ended: asyncio.Event) -> None:
        try:
            while not connection.closed:
                async with self._turn:
                    await connection.execute("SELECT")
                await asyncio.sleep(CLAIM_LOOK_S)
        except psycopg.Error as exc:
            log.warning("database_unavailable", message=str(classify(exc)))
        finally:
            ended.set()
            await connection.close()

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._connection is not None:
            await self._connection.close()


class JobClaim:
    """Implements :class:`cdc.ports.books.Claim`."""

    def __init__(self, claims: _Claims, name: str, ended: asyncio.Event) -> None:
        self._claims = claims
        self._name = name
        self._ended = ended

    async def lost(self) -> None:
        """Return when the right is lost."""
        await self._ended.wait()

    async def release(self) -> None:
        """Give the right back."""
        await self._claims.release(self._name, self._ended)


async def _connect(params: Mapping[str, Any]) -> Conn:
    try:
        return await psycopg.AsyncConnection.connect(**params)
    except psycopg.Error as exc:
        raise classify(exc) from exc


async def _columns(connection: Conn, table: Table) -> list[tuple[str, str, bool]]:
    cursor = await connection.execute(bound("jobs", "columns"), {"schema": table.schema, "table": table.name})
    return [(row[0], row[1], row[2]) for row in await cursor.fetchall()]


async def _run(connection: Conn, statement: sql.SQL, params: Mapping[str, Any]) -> None:
    await connection.execute(statement, params)


async def _insert(connection: Conn, table: Table, values: Mapping[str, object]) -> None:
    statement = bound(
        "jobs", "add", {"values": ", ".join(f"%({name})s" for name in values)},
        book=sql.Identifier(table.schema, table.name), columns=sql.SQL(", ").join(map(sql.Identifier, values)),
    )  # fmt: skip
    plain = {name: Jsonb(value) if isinstance(value, dict | list) else value for name, value in values.items()}
    await connection.execute(statement, plain)
