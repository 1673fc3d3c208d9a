"""The preflight's parts: what a check is, what it finds, and the facts it looks at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final, Literal

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow, dict_row

from cdc.postgres import control
from cdc.postgres.catalog import PublishedTable
from cdc.postgres.published import published
from cdc.postgres.queries import bound
from cdc.postgres.setup import SetupSettings

Status = Literal["ok", "skip", "warn", "fail"]
LONG_S = 120
"""Seconds after which an open transaction is worth a word."""

Conn = psycopg.Connection[TupleRow]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that a check found: how bad, what, and what mends it (empty: the check's own remedy)."""

    status: Status
    what: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    code: str
    status: Status
    what: str
    why: str
    fix: str

    def to_json(self) -> dict[str, str]:
        """Return the object of ``doctor --json``."""
        return asdict(self)


Look = Callable[["Facts"], Iterator[Problem]]


@dataclass(frozen=True, slots=True)
class Check:
    """One requirement.

    ``title`` says what holds when all is well; ``fix`` is the usual remedy; ``needs`` names the fact of :class:`Facts`
    without which there is nothing to check.
    """

    code: str
    title: str
    why: str
    fix: str
    look: Look
    needs: str = ""


class Checks:
    """A list of checks that functions add themselves to."""

    def __init__(self) -> None:
        self.all: list[Check] = []

    def add(self, code: str, title: str, *, why: str, fix: str, needs: str = "") -> Callable[[Look], Look]:
        """Return a decorator that makes a function the check ``code``."""

        def decorate(look: Look) -> Look:
            self.all.append(Check(code, title, why, fix, look, needs))
            return look

        return decorate


def fail(what: str, fix: str = "") -> Problem:
    """Return a problem that walvec cannot work with."""
    return Problem("fail", what, fix)


def warn(what: str, fix: str = "") -> Problem:
    """Return a problem that will hurt some day."""
    return Problem("warn", what, fix)


class Facts:
    """What is asked of the server, each query once. The session is read-only.

    Args:
        conn: A connection in autocommit mode.
        settings: The names of things.
    """

    def __init__(self, conn: Conn, settings: SetupSettings) -> None:
        self.conn: Final = conn
        self.settings: Final = settings
        conn.execute("SET default_transaction_read_only = on")

    def rows(self, name: str, **params: Any) -> list[dict[str, Any]]:
        """Return the rows of a query of ``sql/doctor.sql``."""
        names = {name: getattr(self.settings, name) for name in ("publication", "slot", "schema")}
        statement = bound("doctor", name, None, schema=sql.Identifier(self.settings.schema))
        with self.conn.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(statement, {"long_s": LONG_S, **names, **params}).fetchall()

    @cached_property
    def server(self) -> dict[str, Any]:
        """The server and this session, with ``skew_s``: how far its clock is from ours, in seconds."""
        before = time.time()
        row = self.rows("server")[0]
        middle = datetime.fromtimestamp((before + time.time()) / 2, UTC)
        return {**row, "skew_s": (row["clock"] - middle).total_seconds()}

    @cached_property
    def parameters(self) -> dict[str, str]:
        """The server's configuration by name, in its base units."""
        return {row["name"]: row["setting"] for row in self.rows("settings")}

    def number(self, name: str) -> int | None:
        """Return a parameter as a number, in its base unit; None where the server has none of this name."""
        value = self.parameters.get(name)
        return None if value is None else int(value)

    @cached_property
    def role(self) -> dict[str, Any]:
        """The role we are."""
        return self.rows("role")[0]

    @cached_property
    def publication(self) -> dict[str, Any] | None:
        """The publication's row of ``pg_publication``."""
        rows = self.rows("publication")
        return rows[0]["publication"] if rows else None

    @cached_property
    def tables(self) -> list[PublishedTable]:
        """The published tables, as the consumer sees them, without what looks like a destination."""
        if self.publication is None:
            return []
        found = published(self.conn, self.settings.publication, self.settings.schema)
        own = {row["table"] for row in self.rows("own_tables")}
        return [table for table in found if str(table.table) not in own]

    @cached_property
    def access(self) -> dict[int, dict[str, Any]]:
        """Our rights on the published tables, by OID."""
        return {row["oid"]: row for row in self.rows("access", oids=[table.oid for table in self.tables])}

    @cached_property
    def slot(self) -> dict[str, Any] | None:
        """The slot's row of ``pg_replication_slots``, with ``here``, ``holder`` and ``retained`` (bytes of WAL)."""
        rows = self.rows("slot")
        if not rows:
            return None
        return {**rows[0]["slot"], **{name: rows[0][name] for name in ("here", "holder", "retained")}}

    @cached_property
    def schema_version(self) -> int:
        """The control schema's version, 0 where there is none."""
        return control.installed_version(self.conn, self.settings.schema)

    @cached_property
    def pipelines(self) -> list[dict[str, Any]]:
        """The pipelines and how they stand."""
        return self.rows("pipelines") if self.schema_version else []

    @cached_property
    def destinations(self) -> list[dict[str, Any]]:
        """The destinations that exist: those of pipelines, and the default ones of tables that have none yet."""
        names = {(row["schema"], row["table"]) for row in self.pipelines}
        names |= {(table.table.schema, f"{table.table.name}_embeddings") for table in self.tables}
        wanted = sorted(names)
        return self.rows("destinations", schemas=[name[0] for name in wanted], tables=[name[1] for name in wanted])
