"""The indexes that autotune leaves on users' tables: their names, who may work on them, and what is finished.

An index is finished once it is valid and has its comment, which is written last: one without it is what a search that
was killed has left, also where the server went on and ended the build. A replacement is built beside the index that it
replaces, under the name ``…_new``, and takes its place when it is finished.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from cdc.errors import WalvecError
from cdc.postgres import expressions
from cdc.postgres.connect import classify
from cdc.postgres.queries import bound, query
from cdc.rows import Table

Conn = psycopg.Connection[TupleRow]

_LOOK_S: Final = 0.2
_NEW: Final = "_new"


@dataclass(frozen=True, slots=True)
class Claim:
    """An index, by the name that it has in the end, and the oid of its table."""

    oid: int
    index: Table

    @property
    def replacement(self) -> Table:
        """What is to take its place."""
        return Table(self.index.schema, f"{self.index.name}{_NEW}")


def index_name(table: Table, column: str, metric: str) -> str:
    """Return the name of the index that autotune makes: at most 59 bytes, room left for ``_new``.

    Each distance has an index of its own: one of them serves no query that orders by another.
    """
    name = f"walvec_autotune_{table.name}_{column}_{metric}"
    if len(name.encode()) <= 59:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name.encode()[:50].decode('utf-8', 'ignore')}_{digest}"


def hold(conn: Conn, oid: int, check: Callable[[], None], most_s: float = float("inf")) -> bool:
    """Return once this session alone works on the indexes of a table; False: another still does after ``most_s``.

    It is one table's and not one index's: PostgreSQL cannot build two indexes of a table side by side without each
    waiting for the other. And it is asked for again and again: a session that waits inside a statement is one that a
    build elsewhere waits for.
    """
    until = time.monotonic() + most_s
    while not _one(conn, "hold_table", table=oid):
        check()
        if time.monotonic() >= until:
            return False
        time.sleep(_LOOK_S)
    return True


def settle(conn: Conn, oid: int) -> None:
    """Drop what is unfinished on a table, and let replacements that are finished take their place. It must be held.

    Raises:
        WalvecError: the server refuses.
    """
    found = {Table(schema, name): finished for schema, name, finished in _own(conn, oid)}
    for index in [index for index, finished in found.items() if not finished]:
        drop(conn, index)
        del found[index]
    for index in found:
        if index.name.endswith(_NEW):
            place = Table(index.schema, index.name.removesuffix(_NEW))
            if place in found:
                drop(conn, place)
            _execute(conn, "rename_index", index, new_name=sql.Identifier(place.name))


def settle_all(conn: Conn) -> None:
    """Do the same to every index of ours in the database, as long as nobody works on its table or stands in the way."""
    for oid in sorted({oid for oid, _, finished in _tables(conn) if not finished}):
        if not hold(conn, oid, lambda: None, 0):
            continue
        try:
            with suppress(WalvecError):  # a transaction in the way: left to the next run
                settle(conn, oid)
        finally:
            _one(conn, "let_table_go", table=oid)


def finish(conn: Conn, claim: Claim, index: Table, comment: str) -> None:
    """Give an index its comment, with which it is finished, and its name."""
    _execute(conn, "comment", index, text=sql.Literal(comment))
    settle(conn, claim.oid)


def drop(conn: Conn, index: Table) -> None:
    """Drop an index without locking anybody out, if it is there."""
    _execute(conn, "drop_index", index)


def drop_statement(schema: str, name: str) -> str:
    """Return the statement by which a person drops an index."""
    return f"DROP INDEX CONCURRENTLY {expressions.identifier(Table(schema, name)).as_string(None)}"


def _own(conn: Conn, oid: int) -> list[tuple[str, str, bool]]:
    """Return schema and name of our indexes of a table, and whether each is finished."""
    return _rows(conn, "own_indexes", table=oid)


def _tables(conn: Conn) -> list[tuple[int, str, bool]]:
    return _rows(conn, "all_own_indexes")


def _one(conn: Conn, named: str, **params: object) -> object:
    return _rows(conn, named, **params)[0][0]


def _rows(conn: Conn, named: str, **params: object) -> list[TupleRow]:
    try:
        return conn.execute(bound("tuning", named), params).fetchall()
    except psycopg.Error as exc:
        raise classify(exc) from exc


def _execute(conn: Conn, named: str, index: Table, **parts: sql.Composable) -> None:
    try:
        conn.execute(query("tuning", named, index=expressions.identifier(index), **parts))
    except psycopg.Error as exc:
        raise classify(exc) from exc
