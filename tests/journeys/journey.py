"""A database with a publication and a running consumer, and an oracle that knows walvec only from its contract."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import numpy as np
import psycopg
from psycopg import sql

from cdc.postgres.sync import Sync
from cdc.testing.cluster import Cluster
from cdc.testing.consumer import Consumer
from cdc.testing.database import Database

DIMENSION = 16


@dataclass(frozen=True)
class Watched:
    """A source table, its key, its text columns in column order, and where its embeddings are."""

    name: str
    key: tuple[str, ...] = ("id",)
    text: tuple[str, ...] = ("body",)
    schema: str = "public"
    rows: str = ""  # the SQL condition of a row filter

    @property
    def source(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    @property
    def target(self) -> sql.Identifier:
        return sql.Identifier(self.schema, f"{self.name}_embeddings")

    @property
    def pipeline(self) -> str:
        return f"{self.schema}.{self.name}"


def text_of(names: Sequence[str], values: Sequence[str | None]) -> str | None:
    """The source text as CONTRACT 1 says it, written down a second time."""
    kept = [(name, value) for name, value in zip(names, values, strict=True) if value is not None and value.strip()]
    if len(names) == 1:
        return kept[0][1] if kept else None
    return "\n".join(f"{name}: {value}" for name, value in kept) or None


def vector_of(text: str) -> np.ndarray[Any, Any]:
    """The ``hash`` runtime as CONTRACT 3 defines it."""
    digest = hashlib.shake_256(text.encode()).digest(2 * DIMENSION)
    vector = np.frombuffer(digest, "<i2").astype("float32")
    unit: np.ndarray[Any, Any] = vector / np.linalg.norm(vector)
    return unit


def expected(conn: psycopg.Connection[Any], table: Watched) -> dict[tuple[str, ...], np.ndarray[Any, Any]]:
    """The vectors that should be there, by key in text form."""
    columns = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in (*table.key, *table.text))
    where = sql.SQL("WHERE " + table.rows) if table.rows else sql.SQL("")
    found = conn.execute(sql.SQL("SELECT {} FROM {} {}").format(columns, table.source, where)).fetchall()
    width = len(table.key)
    texts = {row[:width]: text_of(table.text, row[width:]) for row in found}
    return {key: vector_of(text) for key, text in texts.items() if text is not None}


def stored(conn: psycopg.Connection[Any], table: Watched) -> dict[tuple[str, ...], np.ndarray[Any, Any]]:
    """The vectors that are there, by key in text form."""
    keys = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in table.key)
    found = conn.execute(
        sql.SQL("SELECT {}, chunk, embedding::real[] FROM {}").format(keys, table.target), binary=True
    ).fetchall()
    assert all(row[-2] == 0 for row in found)
    vectors = {row[:-2]: np.array(row[-1], "float32") for row in found}
    assert len(vectors) == len(found), f"{table.name}: a key has two embeddings"
    return vectors


def differences(conn: psycopg.Connection[Any], table: Watched) -> list[str]:
    """What the embeddings of ``table`` lack, have too much or wrong; empty when they are exactly right."""
    want, have = expected(conn, table), stored(conn, table)
    found = [f"missing {key}" for key in want.keys() - have.keys()]
    found += [f"orphaned {key}" for key in have.keys() - want.keys()]
    for key in want.keys() & have.keys():
        if not np.allclose(want[key], have[key], atol=1e-6):
            found.append(f"stale {key}")
    return found


def eventually(check: Callable[[], Any], timeout_s: float = 15.0, why: Callable[[], str] = lambda: "") -> Any:
    """Return the first true value of ``check``, asked again and again for ``timeout_s`` seconds."""
    deadline = time.monotonic() + timeout_s

    def ask() -> Any:
        try:
            return check()
        except psycopg.errors.UndefinedTable:  # not made yet
            return None

    while not (value := ask()):
        if time.monotonic() > deadline:
            raise AssertionError(f"still {value!r} after {timeout_s} s; {why()}")
        time.sleep(0.05)
    return value


class Journey:
    """A fresh database and its consumer.

    Args:
        cluster: The server.
        name: The database's name, also the slot's: slots are shared by all databases of a server.
        settings: Further ``WALVEC_*`` settings of the consumer.
    """

    def __init__(self, cluster: Cluster, name: str, **settings: str) -> None:
        self.cluster = cluster
        self.database: Database = cluster.create_database(name)
        self.slot = name
        self.settings = {"WALVEC_SLOT": name, "WALVEC_MODEL": f"hash-{DIMENSION}", **settings}
        self.consumer = Consumer(self.database.url, **self.settings)
        self.others: list[Consumer] = []
        self.conn = self.database.connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for consumer in (*self.others, self.consumer):
            consumer.__exit__(kind, exc, trace)
        self.conn.close()
        self.cluster.start()  # nothing to do, unless a test failed between a stop and a start
        self.database.drop()

    def use(self, url: str) -> None:
        """Have the consumer connect as this says."""
        self.consumer.environment["WALVEC_DATABASE_URL"] = url

    def reconnect(self) -> None:
        """Connect anew, after the server was away."""
        self.conn.close()
        self.conn = self.database.connect()

    def forget_role(self, role: str) -> None:
        """Drop a role and what it owns in this database, its sessions first."""
        self.consumer.__exit__(None, None, None)
        self.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [role])
        self.sql(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")

    def sql(self, statement: str, params: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        cursor = self.conn.execute(statement, params)
        return cursor.fetchall() if cursor.description else []

    def value(self, statement: str, params: Sequence[Any] | None = None) -> Any:
        return self.sql(statement, params)[0][0]

    def another(self, **settings: str) -> Consumer:
        """A second consumer of the same slot, ended with the journey."""
        consumer = Consumer(self.database.url, **{**self.settings, **settings})
        self.others.append(consumer)
        return consumer

    def run(self) -> Self:
        """Start the consumer, and wait until it streams."""
        self.consumer.start()
        self.streaming()
        return self

    def streaming(self, timeout_s: float = 20.0) -> None:
        eventually(
            lambda: self.sql("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active", [self.slot]),
            timeout_s, lambda: self.consumer.log[-3000:],
        )  # fmt: skip

    def sync(self, timeout_s: float = 30.0) -> list[str]:
        """Do as ``walvec sync``, in this process; return what it said."""
        said: list[str] = []
        names = SimpleNamespace(
            database_url=self.database.url, slot=self.slot, publication="walvec", schema="walvec", vector_type="vector",
            index="off",
        )  # fmt: skip
        if not Sync(names, said.append).wait(timeout_s):
            raise AssertionError(f"sync: {said}\n{self._standing()}\n{self.consumer.log[-4000:]}")
        return said

    def _standing(self) -> str:
        """Return what `sync` goes by, for whom it waits in vain."""
        queries = {
            "progress": """SELECT p.name, p.attached, g.state, g.reason, g.scan_reason, g.scan_phase, g.scan_cursor,
                           g.backfilled_at, g.unprocessed FROM walvec.progress g JOIN walvec.pipelines p
                           ON p.id = g.pipeline_id ORDER BY p.id""",
            "queue": "SELECT pipeline_id, count(*), min(lsn) FROM walvec.dirty GROUP BY 1",
            "requests": "SELECT * FROM walvec.requests WHERE finished_at IS NULL",
            "slot": """SELECT slot_name, active, confirmed_flush_lsn, pg_current_wal_lsn() FROM pg_replication_slots
                       WHERE database = current_database()""",
        }
        return "\n".join(f"{name}: {row}" for name, query in queries.items() for row in self.sql(query))

    def settle(self, *tables: Watched, timeout_s: float = 30.0) -> None:
        """Wait by ``walvec sync``; see every table exactly right, by the oracle."""
        self.sync(timeout_s)
        for table in tables:
            wrong = differences(self.conn, table)
            assert not wrong, f"{table.name}: {len(wrong)} wrong: {wrong[:5]}"

    def converge(self, *tables: Watched, timeout_s: float = 15.0) -> None:
        """See every table become exactly right by itself, without asking walvec."""
        for table in tables:
            eventually(partial(self._right, table), timeout_s, partial(self._why, table))

    def verified(self, *pipelines: str) -> None:
        """See ``walvec verify`` find these pipelines equal; without a name, all there are."""
        rows = [row for row in self.consumer.verify() if not pipelines or row["pipeline"] in pipelines]
        wrong = [row for row in rows if row["missing"] or row["stale"] or row["orphaned"] or row["duplicate"]]
        assert not wrong, wrong
        assert {row["pipeline"] for row in rows} >= set(pipelines)

    def _right(self, table: Watched) -> bool:
        return not differences(self.conn, table)

    def _why(self, table: Watched) -> str:
        try:
            found = differences(self.conn, table)[:5]
        except psycopg.errors.UndefinedTable:
            found = ["no destination"]
        return f"{table.name}: {found}\n{self.consumer.log[-3000:]}"

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.consumer.events if event.get("event") == name]

    def state(self, pipeline: str) -> tuple[str, str]:
        """(status, reason) as the control schema has it."""
        found = self.sql("SELECT status, reason FROM walvec.pipeline_metrics WHERE pipeline = %s", [pipeline])
        return (found[0][0], found[0][1]) if found else ("", "")
