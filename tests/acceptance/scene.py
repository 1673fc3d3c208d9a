"""Lantern's tables of jobs, a daemon over them, a model behind a web API, and an oracle that trusts neither."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import psycopg
from psycopg import sql

from cdc.testing.daemon import Daemon
from cdc.testing.database import Database
from inference.testing_api import FakeApi

BOOKS: Final = ("embedding_generation_jobs", "external_index_jobs", "index_autotune_jobs")

TABLES: Final = """
CREATE TABLE embedding_generation_jobs (
    id serial PRIMARY KEY, database_id text NOT NULL, db_connection text NOT NULL,
    schema text NOT NULL DEFAULT 'public', "table" text NOT NULL,
    pk text NOT NULL DEFAULT 'id', label text, job_type text DEFAULT 'embedding_generation',
    column_type text DEFAULT 'REAL[]', batch_size int, runtime text NOT NULL DEFAULT 'ort', runtime_params jsonb,
    src_column text NOT NULL, dst_column text NOT NULL, embedding_model text NOT NULL,
    created_at timestamp NOT NULL DEFAULT current_timestamp, updated_at timestamp NOT NULL DEFAULT current_timestamp,
    canceled_at timestamp, init_started_at timestamp, init_finished_at timestamp, init_failed_at timestamp,
    init_failure_reason text, init_progress int2 DEFAULT 0);
CREATE TABLE external_index_jobs (
    id serial PRIMARY KEY, database_id text NOT NULL DEFAULT '', db_connection text NOT NULL, schema text NOT NULL,
    "table" text NOT NULL, "column" text NOT NULL, index text, operator text NOT NULL, efc int NOT NULL,
    ef int NOT NULL, m int NOT NULL, label text,
    created_at timestamp NOT NULL DEFAULT current_timestamp, updated_at timestamp NOT NULL DEFAULT current_timestamp,
    canceled_at timestamp, started_at timestamp, finished_at timestamp, failed_at timestamp, failure_reason text,
    progress int2 DEFAULT 0);
CREATE TABLE index_autotune_jobs (
    id serial PRIMARY KEY, database_id text NOT NULL DEFAULT '', db_connection text NOT NULL, schema text NOT NULL,
    "table" text NOT NULL, "column" text NOT NULL, metric_kind text NOT NULL, target_recall int NOT NULL,
    k int NOT NULL, create_index bool NOT NULL, embedding_model text, label text,
    created_at timestamp NOT NULL DEFAULT current_timestamp, updated_at timestamp NOT NULL DEFAULT current_timestamp,
    canceled_at timestamp, started_at timestamp, finished_at timestamp, failed_at timestamp, failure_reason text,
    progress int2 DEFAULT 0);
"""
"""Lantern's tables with every column that any version of it had, as far as the daemon's users fill them."""

Connection = psycopg.Connection[Any]


def vector_of(text: str, dimension: int = 8) -> np.ndarray[Any, Any]:
    """Return the vector that the runtime ``hash`` is documented to give, from its definition alone."""
    numbers = np.frombuffer(hashlib.shake_256(text.encode()).digest(2 * dimension), "<i2").astype("float32")
    return np.asarray(numbers / np.linalg.norm(numbers))


def eventually(ask: Callable[[], Any], timeout_s: float = 20.0, why: Callable[[], str] | str = "") -> Any:
    """Return the first true answer of ``ask``, asking again and again.

    Raises:
        AssertionError: there was none in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s. {why() if callable(why) else why}")
        time.sleep(0.02)


def wrong(
    db: Connection, table: str, source: str = "body", target: str = "v", dimension: int = 8, within: float = 1e-5
) -> list[str]:
    """Return what is not as it should be: a row with a text and without its vector, or with one and without a text."""
    names = {"table": sql.Identifier(table), "source": sql.Identifier(source), "target": sql.Identifier(target)}
    query = sql.SQL("SELECT ctid::text, {source}::text, {target}::real[] FROM {table}").format(**names)
    try:
        rows = db.execute(query).fetchall()
    except psycopg.errors.UndefinedColumn:
        return [f"{table} has no column {target} yet"]
    found = []
    for place, text, vector in rows:
        if text is None or not text.strip():
            if vector is not None:
                found.append(f"{table} {place} has no text, but a vector")
        elif vector is None:
            found.append(f"{table} {place} ({text!r}) has no vector")
        elif not np.allclose(vector, vector_of(text, dimension), atol=within):
            found.append(f"{table} {place} ({text!r}) has the vector of another text")
    return found


def converged(
    db: Connection,
    table: str,
    *,
    source: str = "body",
    target: str = "v",
    dimension: int = 8,
    within: float = 1e-5,
    timeout_s: float = 20.0,
) -> None:
    """Wait until every row has exactly the vector of its text, and rows without a text have none."""
    eventually(
        lambda: not wrong(db, table, source, target, dimension, within),
        timeout_s,
        lambda: "; ".join(wrong(db, table, source, target, dimension, within)[:5]),
    )


@contextmanager
def served(api: FakeApi) -> Iterator[FakeApi]:
    """Serve an API in a thread of its own."""
    ready, end = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with api:
            ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(5)
        yield api
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def free_address() -> str:
    """Return an address of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class World:
    """A control database with Lantern's tables, a target database, and daemons.

    Args:
        control: Where the tables of jobs are made.
        target: Where jobs run unless they say otherwise; by default the control database.
    """

    def __init__(self, control: Database, target: Database | None = None) -> None:
        self.control, self.target = control, target or control
        self.jobs = control.connect()
        self.jobs.execute(TABLES)
        self.db = self.target.connect()
        self.http = ""
        self._made: list[tuple[str, int]] = []
        self._names = 0
        self._indexes = tempfile.TemporaryDirectory(prefix="walvec-indexes-")

    def reconnect(self) -> None:
        """Make the sessions anew, after a server's restart."""
        self.jobs.close()
        self.db.close()
        self.jobs, self.db = self.control.connect(), self.target.connect()

    def close(self) -> None:
        """Let go of the sessions, and remove the index files."""
        self.jobs.close()
        self.db.close()
        self._indexes.cleanup()

    # -- the daemon -------------------------------------------------------------------------------------------------

    def daemon(self, *arguments: str, **environment: str) -> Daemon:
        """Return a daemon over the three tables, not yet started, and remember where it serves HTTP."""
        self.http = free_address()
        tables = ["--embedding-table", BOOKS[0], "--external-index-table", BOOKS[1], "--autotune-table", BOOKS[2]]
        settings = {"WALVEC_HTTP": self.http, "WALVEC_INDEX_DIR": self._indexes.name, **environment}
        return Daemon(self.control.url, *tables, *arguments, **settings)

    def get(self, path: str) -> str:
        """Return what the daemon's HTTP server answers, whatever its status."""
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=10) as reply:
                return str(reply.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()

    def search(self, pipeline: str, vector: Any, k: int = 5, **more: Any) -> list[dict[str, Any]]:
        """Ask ``POST /v1/search`` and return its results.

        Raises:
            AssertionError: it refused; with its words.
        """
        body = {"pipeline": pipeline, "vector": [float(x) for x in vector], "k": k, **more}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{self.http}/v1/search", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                return list(json.load(reply)["results"])
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None

    # -- tables -----------------------------------------------------------------------------------------------------

    def texts(self, rows: int = 0, key: str = "id serial PRIMARY KEY", more: str = "") -> str:
        """Make a table with a key, a column ``body`` and so many rows in the target database; return its name."""
        self._names += 1
        table = f"texts_{self._names}"
        self.db.execute(f"CREATE TABLE {table} ({key}, body text{more})")
        if rows:
            self.db.execute(f"INSERT INTO {table} (body) SELECT 'text ' || i FROM generate_series(1, {rows}) AS i")
        return table

    def add(self, table: str, *texts: str | None) -> None:
        """Insert rows in one transaction."""
        values = ", ".join(["(%s)"] * len(texts))
        self.db.execute(f"INSERT INTO {table} (body) VALUES {values}", list(texts))

    # -- jobs -------------------------------------------------------------------------------------------------------

    def insert(self, book: str, columns: dict[str, Any]) -> int:
        """Insert a job and return its id."""
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        marks = sql.SQL(", ").join([sql.Placeholder()] * len(columns))
        query = sql.SQL("INSERT INTO {} ({}) VALUES ({}) RETURNING id").format(sql.Identifier(book), names, marks)
        row = self.jobs.execute(query, list(columns.values())).fetchone()
        assert row is not None
        self._made.append((book, row[0]))
        return int(row[0])

    def job(self, table: str, **columns: Any) -> int:
        """Insert an embedding job of the runtime ``hash`` with 8 dimensions, from ``body`` to ``v``."""
        usual = {"runtime": "hash", "embedding_model": "hash-8", "src_column": "body", "dst_column": "v"}
        place = {"db_connection": self.target.url, "table": table}
        return self.insert(BOOKS[0], {**place, **usual, **columns})

    def api_job(self, api: FakeApi, table: str, **columns: Any) -> int:
        """Insert an embedding job whose model is behind ``api``."""
        params = {"base_url": api.url, **columns.pop("params", {})}
        usual = {"runtime": "openai", "runtime_params": json.dumps(params), "embedding_model": "m"}
        return self.job(table, **{**usual, **columns})

    def index_job(self, table: str, column: str, operator: str, **columns: Any) -> int:
        """Insert an external index job."""
        usual = {"efc": 64, "ef": 64, "m": 16, "schema": "public", "db_connection": self.target.url}
        return self.insert(BOOKS[1], {**usual, "table": table, "column": column, "operator": operator, **columns})

    def set(self, id: int, book: str = BOOKS[0], **columns: Any) -> None:
        """Change columns of a job."""
        parts = [sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder()) for name in columns]
        query = sql.SQL("UPDATE {} SET {} WHERE id = %s").format(sql.Identifier(book), sql.SQL(", ").join(parts))
        self.jobs.execute(query, [*columns.values(), id])

    def cancel(self, id: int, book: str = BOOKS[0]) -> None:
        """Set ``canceled_at``."""
        self.jobs.execute(f"UPDATE {book} SET canceled_at = now() WHERE id = %s", [id])

    def resume(self, id: int) -> None:
        """Take ``canceled_at`` back."""
        self.set(id, canceled_at=None)

    def row(self, id: int, book: str = BOOKS[0]) -> dict[str, Any]:
        """Return a job's row."""
        row = self.jobs.execute(f"SELECT to_jsonb(j) FROM {book} AS j WHERE id = %s", [id]).fetchone()
        assert row is not None
        return dict(row[0])

    def until(self, id: int, column: str, timeout_s: float = 20.0, book: str = BOOKS[0]) -> dict[str, Any]:
        """Return a job's row once ``column`` is set."""
        eventually(
            lambda: self.row(id, book)[column] is not None, timeout_s, lambda: f"{column} of {self.row(id, book)}"
        )
        return self.row(id, book)

    def done(self, id: int, timeout_s: float = 20.0) -> dict[str, Any]:
        """Return an embedding job's row once its initial rows are embedded."""
        return self.until(id, "init_finished_at", timeout_s)

    def cancel_all(self) -> None:
        """Cancel the jobs that were made since the last time."""
        for book, id in self._made:
            self.cancel(id, book)
        self._made.clear()

    def letters(self) -> list[Any]:
        """Return the target database's dead letters: pipeline, key, category."""
        return self.db.execute("SELECT pipeline, key, category FROM walvec.pipeline_errors").fetchall()
