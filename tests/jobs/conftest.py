"""Tables of jobs as Lantern documents them, and the daemon over them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from cdc.testing.cluster import Cluster
from cdc.testing.daemon import Daemon
from cdc.testing.database import Database

EMBEDDING_TABLE = """
CREATE TABLE "public"."embedding_generation_jobs" (
    "id" SERIAL PRIMARY KEY,
    "database_id" text NOT NULL,
    "db_connection" text NOT NULL,
    "schema" text NOT NULL,
    "table" text NOT NULL,
    "runtime" text NOT NULL,
    "runtime_params" jsonb,
    "src_column" text NOT NULL,
    "dst_column" text NOT NULL,
    "embedding_model" text NOT NULL,
    "created_at" timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updated_at" timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "canceled_at" timestamp,
    "init_started_at" timestamp,
    "init_finished_at" timestamp,
    "init_failed_at" timestamp,
    "init_failure_reason" text,
    "init_progress" int2 DEFAULT 0
);
"""

INDEX_TABLE = """
CREATE TABLE "public"."external_index_jobs" (
    "id" SERIAL PRIMARY KEY,
    "database_id" text NOT NULL,
    "db_connection" text NOT NULL,
    "schema" text NOT NULL,
    "table" text NOT NULL,
    "column" text NOT NULL,
    "index" text,
    "operator" text NOT NULL,
    "efc" INT NOT NULL,
    "ef" INT NOT NULL,
    "m" INT NOT NULL,
    "created_at" timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updated_at" timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "canceled_at" timestamp,
    "started_at" timestamp,
    "finished_at" timestamp,
    "failed_at" timestamp,
    "failure_reason" text,
    "progress" INT2 DEFAULT 0
);
"""

AUTOTUNE_TABLE = """
CREATE TABLE "public"."index_autotune_jobs" (
    "id" SERIAL PRIMARY KEY,
    "database_id" text NOT NULL,
    "db_connection" text NOT NULL,
    "schema" text NOT NULL,
    "table" text NOT NULL,
    "column" text NOT NULL,
    "metric_kind" text NOT NULL,
    "target_recall" int NOT NULL,
    "k" int NOT NULL,
    "create_index" bool NOT NULL,
    "embedding_model" text NULL,
    "created_at" timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updated_at" timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "canceled_at" timestamp,
    "started_at" timestamp,
    "finished_at" timestamp,
    "failed_at" timestamp,
    "failure_reason" text,
    "progress" INT2 DEFAULT 0
);
"""


def eventually(ask: Callable[[], Any], timeout_s: float = 20.0, why: str = "") -> Any:
    """Return the first true answer of ``ask``, asking again and again.

    Raises:
        AssertionError: there was none in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        answer = ask()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {timeout_s} s. {why}"
        time.sleep(0.02)


class Jobs:
    """One database that is control and target at once, with a table of texts and Lantern's table of embedding jobs."""

    def __init__(self, database: Database, connection: psycopg.Connection[Any]) -> None:
        self.database = database
        self.db = connection
        connection.execute(EMBEDDING_TABLE)
        connection.execute("ALTER TABLE embedding_generation_jobs ALTER database_id SET DEFAULT 'x', ADD label text")

    def texts(self, table: str, rows: int = 0, key: str = "id serial") -> None:
        """Make a table with a column ``body`` and so many rows."""
        self.db.execute(f"CREATE TABLE {table} ({key} PRIMARY KEY, body text)")
        self.db.execute(f"INSERT INTO {table} (body) SELECT 'text ' || i FROM generate_series(1, {rows}) AS i")

    def add(self, table: str = "articles", **columns: Any) -> int:
        """Insert a job and return its id."""
        values = {
            "db_connection": self.database.url, "schema": "public", "table": table, "runtime": "hash",
            "src_column": "body", "dst_column": "v", "embedding_model": "hash-8", **columns,
        }  # fmt: skip
        names = ", ".join(f'"{name}"' for name in values)
        row = self.db.execute(
            f"INSERT INTO embedding_generation_jobs ({names}) VALUES ({', '.join(['%s'] * len(values))}) RETURNING id",
            list(values.values()),
        ).fetchone()
        return int(row[0])

    def set(self, id: int, **columns: Any) -> None:
        """Change columns of a job."""
        changes = ", ".join(f'"{name}" = %s' for name in columns)
        self.db.execute(f"UPDATE embedding_generation_jobs SET {changes} WHERE id = %s", [*columns.values(), id])

    def row(self, id: int) -> dict[str, Any]:
        """Return a job's row."""
        row = self.db.execute("SELECT to_jsonb(j) FROM embedding_generation_jobs AS j WHERE id = %s", [id]).fetchone()
        return dict(row[0])

    def daemon(self, *arguments: str, **environment: str) -> Daemon:
        """Return a daemon over the table, not yet started."""
        return Daemon(self.database.url, "--embedding-table", "embedding_generation_jobs", *arguments, **environment)

    def missing(self, table: str = "articles", column: str = "v") -> int:
        """Return how many rows have a text and no vector."""
        return int(self.db.execute(f"SELECT count(*) FROM {table} WHERE body <> '' AND {column} IS NULL").fetchone()[0])

    def until(self, id: int, column: str, timeout_s: float = 20.0) -> dict[str, Any]:
        """Return a job's row once ``column`` is set."""
        eventually(lambda: self.row(id)[column] is not None, timeout_s, f"{column} of job {id}")
        return self.row(id)


@pytest.fixture
def jobs(database18: Database) -> Any:
    with database18.connect() as connection:
        yield Jobs(database18, connection)


@pytest.fixture
def other18(pg18: Cluster) -> Iterator[Database]:
    """A second database of the server that ``jobs`` are on."""
    database = pg18.create_database(f"t_{secrets.token_hex(6)}")
    yield database
    database.drop()
