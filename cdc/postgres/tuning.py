"""A search for HNSW parameters at home in PostgreSQL: its session, what it reads, and how it leaves nothing behind.

Blocking: a search for parameters runs in a thread of its own, with one session. What it makes on the way is dropped at
its end, also where it is cancelled; what a killed process leaves behind is dropped by the next run, which knows it by
the advisory lock that nobody holds any more.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from cdc.errors import ConfigError, PipelineFault, Unavailable, WalvecError
from cdc.flow.keycodec import KeyCodec
from cdc.flow.vectorformat import VectorFormat
from cdc.postgres import expressions
from cdc.postgres.connect import classify, connect_sync
from cdc.postgres.queries import bound, query
from cdc.postgres.tuning_indexes import Claim, hold, settle, settle_all
from cdc.postgres.vector_copy import VectorChunk, copy_vectors
from cdc.rows import Column, Table

Conn = psycopg.Connection[TupleRow]

LIMITS: Final = {"vector": 2_000, "halfvec": 4_000, "bit": 64_000}
"""The widest that pgvector's HNSW takes (https://github.com/pgvector/pgvector#hnsw)."""
KINDS: Final = {"vector": "vector", "halfvec": "halfvec", "_float4": "vector", "_float8": "vector", "bit": "bit"}
"""What pgvector indexes a column of a type as; arrays by a cast."""
_IN_THE_WAY: Final = "5s"
"""How long a transaction may keep a leftover from being dropped, before it is left to the next run."""
_ENDING_S: Final = 10.0
_OTHERS: Final = {"v": "view", "f": "foreign table"}
TEMPORARY: Final = "pg_temp"
"""The schema of a session's temporary tables."""
_NO_KEY: Final = KeyCodec((Column("n", "integer", "int4"),))


@dataclass(frozen=True, slots=True)
class Place:
    """Where to connect; ``slot`` is the first word of the session's ``application_name``."""

    database_url: str
    slot: str = "walvec"


@dataclass(frozen=True, slots=True)
class Subject:
    """The column to tune for. ``base`` is the ``typname`` of its type, ``width`` the dimension it declares, else -1."""

    table: Table
    column: str
    oid: int
    base: str
    width: int
    partitioned: bool
    rows: int  # with a vector


@dataclass(frozen=True, slots=True)
class Existing:
    """A vector index of the user's table."""

    name: str
    valid: bool
    of: str  # the column or expression
    options: tuple[str, ...]  # m=16 …
    comment: str
    opclass: str


class TuningSession:
    """One session with the target database, and what one search makes in it. A context manager.

    Args:
        place: Where to connect.
        schema: The control schema: scratch tables live in it where it is there and ours, else they are temporary.
        owner: Names them; two searches of one owner cannot run at once.

    Raises:
        Unavailable: the server is away, or another search of this owner runs.
        ConfigError: the role may not do what is needed.
    """

    def __init__(self, place: Place, schema: str, owner: str) -> None:
        self.connection = connect_sync(place, "autotune")
        self.claim: Claim | None = None
        """An index of the user's table that is worked on: settled at the end, whatever happened."""
        self.place = place
        self._schema = schema
        self.scratch = scratch_table(schema, owner)
        """The table for a copy of the vectors; made by who needs it."""
        self.pgvector = ""
        """pgvector's version; empty: there is none with HNSW."""
        self.operators = ""
        """pgvector's schema."""

    def __enter__(self) -> TuningSession:
        try:
            self._open()
        except BaseException:
            self.connection.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.temporary and self.connection.info.transaction_status == TransactionStatus.IDLE:
            with suppress(WalvecError):  # it goes with the session anyway, a moment later
                self.drop_scratch()
        self.connection.close()
        clean(self.place, None if self.temporary else self.scratch, self.claim)

    @property
    def temporary(self) -> bool:
        """Whether the scratch table goes with the session."""
        return self.scratch.schema == TEMPORARY

    def _open(self) -> None:
        if not self.one("lock", name=self.scratch.name)[0]:
            raise Unavailable("Another search for index parameters of the same job is running in this database.")
        row = self.rows(bound("tuning", "pgvector"))
        if row:
            self.operators, self.pgvector = row[0]
        ours, *_ = self.one("scratch_place", schema=self._schema)
        if not ours:
            self.scratch = Table(TEMPORARY, self.scratch.name)

    def require_scratch(self) -> None:
        """Check that copies and queries can be kept for the session's time.

        Raises:
            ConfigError: the role may make no temporary tables.
        """
        _, may, user, database = self.one("scratch_place", schema=self._schema)
        if not may:
            grant = sql.SQL("GRANT TEMPORARY ON DATABASE {} TO {};").format(
                sql.Identifier(database), sql.Identifier(user)
            )
            raise ConfigError(
                f'The role "{user}" may make no temporary tables, in which autotune keeps its queries.',
                f"Let a DBA run: {grant.as_string(self.connection)}",
            )

    # --- what there is --------------------------------------------------------------------------------------------

    def subject(self, table: Table, column: str) -> Subject:
        """Return what is known of the column.

        Raises:
            PipelineFault: there is no such column, or it holds no vectors.
        """
        found = self.rows(bound("tuning", "column"), {"schema": table.schema, "table": table.name, "column": column})
        if found and found[0][1] in _OTHERS:
            raise PipelineFault(
                f"{table} is a {_OTHERS[found[0][1]]}, of which no index can be made.", "Name the table behind it."
            )
        if not found or found[0][1] not in ("r", "p", "m"):
            raise PipelineFault(f"There is no table {table} in this database.")
        oid, relation, bare, modifier = found[0]
        if bare is None:
            raise PipelineFault(f"{table} has no column {column}.")
        counted = self.rows(
            query("tuning", "count", table=expressions.identifier(table), column=sql.Identifier(column))
        )
        return Subject(table, column, oid, bare, modifier, relation == "p", counted[0][0])

    def vectors(
        self, subject: Subject, metric: str, width: int, share: float, seed: int, stop: threading.Event
    ) -> Iterator[VectorChunk]:
        """Return the column's vectors of ``width`` components (0: as many as the first): all, or a random ``share``.

        Raises:
            PipelineFault: it holds no vectors of which there is such a distance.
        """
        layout = VectorFormat.of(subject.table, subject.column, subject.base, metric)
        statement = query(
            "tuning", "vectors", table=expressions.identifier(subject.table), column=sql.Identifier(subject.column),
            sample=sample_of(share, seed),
        )  # fmt: skip
        copy = sql.SQL(statement.as_string(None))
        return copy_vectors(self.connection, copy, _NO_KEY, layout, width or None, stop)

    def unindexable(self, subject: Subject, metric: str, dimension: int) -> str:
        """Return why pgvector cannot index the column, as half a sentence; empty: it can."""
        kind = KINDS.get(subject.base, "")
        if not self.pgvector:
            return "this database has no pgvector with HNSW (CREATE EXTENSION vector)"
        if not kind or (metric == "hamming") != (kind == "bit"):
            return f"pgvector has no index of a column of type {subject.base} by {metric} distance"
        if kind in ("halfvec", "bit") and _version(self.pgvector) < (0, 7):
            return f"pgvector {self.pgvector} has no HNSW for {kind}; 0.7 has"
        if dimension > LIMITS[kind]:
            return f"pgvector indexes a {kind} of at most {LIMITS[kind]} dimensions, and there are {dimension}"
        return ""

    def indexes(self, subject: Subject) -> list[Existing]:
        """Return the table's vector indexes."""
        found = self.rows(bound("tuning", "indexes"), {"table": subject.oid})
        return [Existing(name, valid, of, tuple(opts), comment, cls) for name, valid, of, opts, comment, cls in found]

    # --- sessions -------------------------------------------------------------------------------------------------

    def set(self, name: str, value: str) -> None:
        """Change a setting of the session."""
        self.one("setting", name=name, value=value)

    def execute(self, statement: sql.SQL | sql.Composed) -> None:
        """Run a statement; what goes wrong is said in walvec's words."""
        try:
            self.connection.execute(statement)
        except psycopg.Error as exc:
            raise classify(exc) from exc

    def rows(self, statement: sql.SQL | sql.Composed, params: dict[str, Any] | None = None) -> list[TupleRow]:
        """Return a statement's rows."""
        try:
            return self.connection.execute(statement, params).fetchall()
        except psycopg.Error as exc:
            raise classify(exc) from exc

    def one(self, named: str, /, **params: object) -> TupleRow:
        """Return the first row of a query of ``sql/tuning.sql``."""
        return self.rows(bound("tuning", named), params)[0]

    def drop_scratch(self) -> None:
        """Drop the scratch table, if it is there."""
        self.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(expressions.identifier(self.scratch)))

    def hold_index(self, subject: Subject, name: str, check: Callable[[], None]) -> Claim:
        """Return when no other search works on the table's indexes, with what is left of others settled."""
        hold(self.connection, subject.oid, check)
        self.claim = Claim(subject.oid, Table(subject.table.schema, name))
        settle(self.connection, subject.oid)
        return self.claim

    def remove_leftovers(self) -> None:
        """Drop what killed searches have left in this database: scratch tables, and indexes that are not finished."""
        for (name,) in self.rows(bound("tuning", "scratch_tables"), {"schema": self.scratch.schema}):
            if self.one("lock", name=name)[0]:
                table = Table(self.scratch.schema, name)
                self.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(expressions.identifier(table)))
                self.one("unlock", name=name)
        before = self.one("get_setting", name="lock_timeout")[0]
        self.set("lock_timeout", _IN_THE_WAY)
        settle_all(self.connection)
        self.set("lock_timeout", before)


def clean(place: Place, scratch: Table | None, claim: Claim | None) -> None:
    """Drop a search's scratch table, and settle its index; a server that is away is left to the next run."""
    if scratch is None and claim is None:
        return
    with suppress(WalvecError, psycopg.Error), connect_sync(place, "autotune") as conn:
        conn.execute("SET lock_timeout = '20s'")
        if scratch is not None:
            with suppress(psycopg.Error):
                conn.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(expressions.identifier(scratch)))
        # The search's own session may still be ending; who else has the table settles it before it builds.
        if claim is not None and hold(conn, claim.oid, lambda: None, _ENDING_S):
            settle(conn, claim.oid)


def sweep(place: Place, schema: str, owner: str) -> None:
    """Drop what a killed search of ``owner``, or of anybody, has left behind.

    Raises:
        Unavailable: the server is away, or a search of this owner is running.
    """
    with TuningSession(place, schema, owner) as session:
        session.remove_leftovers()


def scratch_table(schema: str, owner: str) -> Table:
    """Return the scratch table of a search."""
    return Table(schema, f"autotune_scratch_{hashlib.sha256(owner.encode()).hexdigest()[:16]}")


def sample_of(share: float, seed: int) -> sql.SQL:
    """Return the clause that takes a random ``share`` of a table's rows; empty: all of them."""
    clause = f"TABLESAMPLE BERNOULLI ({100 * share:.6f}) REPEATABLE ({seed % 1_000_000})"
    return sql.SQL(clause if share < 1 else "")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
