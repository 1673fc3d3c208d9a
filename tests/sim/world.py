"""What tests of whole histories share: a consumer in this process, and the truth that embeddings are held against."""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
import threading
from collections.abc import Callable, Sequence
from decimal import Decimal
from types import TracebackType
from typing import Any, Self

import numpy as np
import psycopg
from psycopg import sql

from cdc.app import EmbedderModel, SingleModel, make_engine, make_model
from cdc.config import Settings, load
from cdc.postgres.sync import Sync
from cdc.services.engine import Engine
from cdc.services.gate import ModelGate
from cdc.telemetry.metrics import Metrics
from cdc.testing.consumer import environment

DIMENSION = 8
BASE = {"WALVEC_MODEL": f"hash-{DIMENSION}"}


def settings_for(url: str, **variables: str) -> Settings:
    """The settings of a consumer with the ``hash`` runtime; further ``WALVEC_*`` variables win."""
    mine = {name: value for name, value in environment(url, {**BASE, **variables}).items() if "WALVEC_" in name}
    return load(mine)


class EngineThread:
    """The consumer in a thread of this process, with a loop of its own: quick to start, stop, and cut off."""

    def __init__(self, settings: Settings, make: Callable[[Settings], EmbedderModel] = make_model) -> None:
        self.settings = settings
        self._make = make
        self.metrics = Metrics()
        self.error: BaseException | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine under test", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self.engine: Engine | None = None

    def start(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except asyncio.CancelledError:
            pass
        except BaseException as exc:
            self.error = exc

    async def _main(self) -> None:
        model = self._make(self.settings)
        self.engine = make_engine(self.settings, SingleModel(self.settings, model), self.metrics)
        self._loop, self._task = asyncio.get_running_loop(), asyncio.ensure_future(self.engine.run())
        self._ready.set()
        try:
            await self._task
        finally:
            await model.close()

    @property
    def gate(self) -> ModelGate:
        """The way to its one model."""
        assert self.engine is not None
        (gate,) = self.engine.gates.gates
        return gate

    def stop(self) -> None:
        """Ask politely, as SIGTERM does."""
        assert self._loop is not None and self.engine is not None
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self.engine.stop)
        self._join()

    def cut(self) -> None:
        """End it in the middle of whatever it does; nothing is drained."""
        assert self._loop is not None and self._task is not None
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._join()

    def _join(self) -> None:
        self._thread.join(40)
        assert not self._thread.is_alive(), "the engine did not end"
        if self.error is not None:
            raise self.error

    def sync(self, timeout_s: float = 30.0) -> None:
        done = Sync(self.settings, lambda _: None).wait(timeout_s)
        assert done, f"not in step after {timeout_s} s: {self.describe()}"

    def describe(self) -> str:
        """What the consumer says of itself, and where each of its tasks waits."""
        if self._loop is None or self.engine is None:
            return "not started"
        stacks = io.StringIO()
        for task in asyncio.all_tasks(self._loop):
            task.print_stack(limit=3, file=stacks)
        owed = [
            (p.desk.name, p.desk.dirty.rows, p.desk.dirty.truncation, p.desk.count.unsaved, p.desk.gaps, p.queued)
            for p in self.engine.fleet.pipelines
        ]
        return f"{self.engine.status()}\noldest: {self.engine.intake.ledger.oldest}\n{owed}\n{stacks.getvalue()}"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()


# -- the truth ----------------------------------------------------------------------------------------------------


def vector_of(text: str) -> np.ndarray[Any, Any]:
    """The ``hash`` runtime as the contract defines it, written down a second time."""
    raw = np.frombuffer(hashlib.shake_256(text.encode()).digest(2 * DIMENSION), "<i2").astype("float32")
    return np.asarray(raw / np.linalg.norm(raw))


def text_of(names: Sequence[str], cells: Sequence[str | None]) -> str | None:
    """A row's text as the contract defines it."""
    kept = [(name, cell) for name, cell in zip(names, cells, strict=True) if cell is not None and cell.strip()]
    if len(names) == 1:
        return kept[0][1] if kept else None
    return "\n".join(f"{name}: {cell}" for name, cell in kept) or None


def hash_of(text: str) -> bytes:
    config = hashlib.sha256(f"{BASE['WALVEC_MODEL']}\0{DIMENSION}".encode()).digest()[:16]
    return hashlib.sha256(config + text.encode()).digest()[:16]


def columns_of(conn: psycopg.Connection[Any], table: str, key: Sequence[str]) -> list[str]:
    rows = conn.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
        " AND atttypid = ANY ('{text,varchar,bpchar,json,jsonb,xml}'::regtype[]) AND attname <> ALL (%s)"
        " ORDER BY attnum",
        [table, list(key)],
    ).fetchall()
    return [name for (name,) in rows]


def canonical(key: Sequence[str]) -> tuple[str, ...]:
    """Return a key so that equal keys are equal: 1.0 and 1.00 are the same number, and one stays where it is."""
    return tuple(str(Decimal(cell).normalize()) if re.fullmatch(r"\d+\.\d+", cell) else cell for cell in key)


def wanted(conn: psycopg.Connection[Any], table: str, key: Sequence[str]) -> tuple[int, dict[tuple[str, ...], str]]:
    """How many rows the source has, and the text of each that has one, by key."""
    names = columns_of(conn, table, key)
    picked = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in (*key, *names))
    rows = conn.execute(sql.SQL("SELECT {} FROM {}").format(picked, sql.Identifier(table))).fetchall()
    texts = {canonical(row[: len(key)]): text_of(names, row[len(key) :]) for row in rows}
    return len(rows), {k: text for k, text in texts.items() if text is not None}


def assert_in_step(conn: psycopg.Connection[Any], table: str, key: Sequence[str]) -> None:
    """The embeddings are exactly those of the rows now in the source, and the counts say so too."""
    rows, texts = wanted(conn, table, key)
    picked = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in key)
    query = sql.SQL("SELECT {}, chunk, source_hash, embedding::real[] FROM {}")
    stored = conn.execute(query.format(picked, sql.Identifier(f"{table}_embeddings")), binary=True).fetchall()
    found = {canonical(row[: len(key)]): (row[-2], np.asarray(row[-1], np.float32)) for row in stored}
    assert len(found) == len(stored), f"{table}: duplicates"
    missing, orphaned = sorted(set(texts) - set(found)), sorted(set(found) - set(texts))
    assert not missing and not orphaned, f"{table}: missing {missing[:5]}, orphaned {orphaned[:5]}"
    for k, text in texts.items():
        digest, vector = found[k]
        assert digest == hash_of(text), f"{table}: {k} is stale"
        np.testing.assert_allclose(vector, vector_of(text), atol=1e-6)
    stats = conn.execute(
        'SELECT "count(source records)", "count(embeddings)", "table: unprocessed rows"'
        ' FROM walvec.kbstat WHERE "knowledge base" = %s',
        [f"public.{table}"],
    ).fetchone()
    assert stats is not None and stats[:2] == (rows, len(texts)), (
        f"{table}: counted {stats}, there are {rows, len(texts)}"
    )
    queued = conn.execute(
        "SELECT count(*) FROM walvec.dirty d JOIN walvec.pipelines p ON p.id = d.pipeline_id WHERE p.name = %s",
        [f"public.{table}"],
    ).fetchone()
    assert queued == (0,), f"{table}: {queued} keys left in the durable queue"
