"""A table of vectors on both PostgreSQL versions, and a runner of index jobs in an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from cdc.external_indexes import HnswIndexes
from cdc.jobs import IndexSpec, Job, JobId, JobKind
from cdc.lsn import parse_lsn
from cdc.postgres.external_index import PostgresIndexSource
from cdc.rows import Table
from cdc.services.external_index import IndexRunner, IndexTuning
from cdc.testing.database import Database

WAIT_S = 30.0
TUNING = IndexTuning(check_s=0.2, idle_s=0.2)


@dataclass
class Report:
    """A job's row, as a list of what was written to it."""

    events: list[str] = field(default_factory=list)
    percents: list[int] = field(default_factory=list)
    finished_once: threading.Event = field(default_factory=threading.Event)

    async def anew(self) -> None:
        """Nothing."""

    async def started(self) -> None:
        self.events.append("started")

    async def progress(self, percent: int) -> None:
        self.percents.append(percent)

    async def finished(self) -> None:
        self.events.append("finished")
        self.finished_once.set()

    async def failed(self, reason: str) -> None:
        self.events.append(f"failed: {reason}")

    async def waits(self, reason: str) -> None:
        raise AssertionError("an index job that waits says so by Unavailable")

    async def result(self, row: Mapping[str, object]) -> None:
        raise AssertionError("an index job has no results")

    async def forget_results(self) -> None:
        raise AssertionError("an index job has no results")


class Loop:
    """An event loop in a thread, and a runner in it."""

    def __init__(self, root: Path, tuning: IndexTuning = TUNING, *, memory: int = 0, threads: int = 1) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.runner = self.call(self._make(root, tuning, memory, threads))
        self.runs: list[Future[None]] = []

    async def _make(self, root: Path, tuning: IndexTuning, memory: int, threads: int) -> IndexRunner:
        return IndexRunner(root, HnswIndexes(threads, memory), PostgresIndexSource, tuning)

    def call(self, work: Any, timeout: float = WAIT_S) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def start(self, job: Job) -> tuple[Report, Future[None]]:
        report = Report()
        run = asyncio.run_coroutine_threadsafe(self.runner.run(job, report), self.loop)
        self.runs.append(run)
        return report, run

    def ready(self, job: Job) -> Report:
        """Start a job and wait until it has been finished for the first time."""
        report, run = self.start(job)
        deadline = time.monotonic() + WAIT_S
        while not report.finished_once.wait(0.02):
            if run.done():
                run.result()
            assert time.monotonic() < deadline, report.events
        return report

    def stop(self) -> None:
        for run in self.runs:
            run.cancel()
        deadline = time.monotonic() + WAIT_S
        while any(not task.done() for task in asyncio.all_tasks(self.loop)):
            assert time.monotonic() < deadline, "a task does not end"
            time.sleep(0.01)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(WAIT_S)
        self.loop.close()


@dataclass
class Scene:
    """A database with a table of vectors, and what its index is asked."""

    database: Database
    db: psycopg.Connection[Any]
    root: Path
    dimension: int = 8
    loops: list[Loop] = field(default_factory=list)

    def runner(self, tuning: IndexTuning = TUNING, **options: Any) -> Loop:
        loop = Loop(self.root, tuning, **options)
        self.loops.append(loop)
        return loop

    def job(self, **spec: Any) -> Job:
        given = {"column": "v", "metric": "l2", "m": 8, "ef_construction": 64, "ef": 64, **spec}
        table = Table("public", given.pop("table", "t"))
        return Job(
            JobId("control", Table("public", "external_index_jobs"), given.pop("id", 7)),
            JobKind.EXTERNAL_INDEX,
            self.database.url,
            "here/test",
            table,
            IndexSpec(**given),
        )

    def fill(self, vectors: NDArray[np.float32], first: int = 1) -> None:
        with self.db.cursor().copy("COPY t (id, v) FROM STDIN") as copy:
            for number, vector in enumerate(vectors, first):
                copy.write_row([number, text(vector)])

    def lsn(self) -> int:
        row = self.db.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        return parse_lsn(row[0])

    def rows(self) -> dict[int, NDArray[np.float32]]:
        found = self.db.execute("SELECT id, v FROM t WHERE v IS NOT NULL").fetchall()
        return {id: np.array(v, np.float32) for id, v in found}

    def settle(self, loop: Loop, job: Job) -> None:
        """Wait until what is committed now can be found."""
        self.db.execute("CREATE TABLE IF NOT EXISTS settled (n int)")
        target = self.lsn()
        self.db.execute("UPDATE t SET id = id WHERE id = (SELECT min(id) FROM t)")
        wait(lambda: loop.runner.applied_lsn(job.id) >= target)

    def same(self, loop: Loop, job: Job, *, name: str = "") -> None:
        """Wait until the index holds exactly the table's rows, and their vectors."""
        rows = self.rows()

        def equal() -> bool:
            found = loop.runner.search(name or str(job.id), np.zeros(self.dimension) + 0.5, len(rows) + 5, 64)
            if sorted(hit["key"]["id"] for hit in found) != sorted(rows):
                return False
            return all(
                abs(float(np.linalg.norm(rows[hit["key"]["id"]] - 0.5)) - hit["distance"]) < 1e-3 for hit in found
            )

        wait(equal)

    def slots(self) -> list[str]:
        found = self.db.execute(
            "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
        ).fetchall()
        return [row[0] for row in found]


def text(vector: NDArray[np.float32]) -> str:
    return "{" + ",".join(map(repr, vector.astype(float).tolist())) + "}"


def wait(condition: Callable[[], bool], timeout: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def scene(database: Database, tmp_path: Path) -> Iterator[Scene]:
    """On both versions: ``t (id int PRIMARY KEY, v real[])``."""
    yield from _scene(database, tmp_path, "id int PRIMARY KEY, v real[]")


@pytest.fixture
def scene18(database18: Database, tmp_path: Path) -> Iterator[Scene]:
    """With pgvector, and no table."""
    yield from _scene(database18, tmp_path, "")


def _scene(database: Database, root: Path, columns: str) -> Iterator[Scene]:
    with database.connect() as db:
        if columns:
            db.execute(f"CREATE TABLE t ({columns})")
        else:
            db.execute("CREATE EXTENSION vector")
        scene = Scene(database, db, root / "indexes")
        try:
            yield scene
        finally:
            for loop in scene.loops:
                with contextlib.suppress(RuntimeError):
                    loop.stop()
