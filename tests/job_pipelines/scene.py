"""A database whose jobs are run by an engine in this process, with models that a test chooses."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import psycopg

from cdc.app import make_engine
from cdc.config import Settings
from cdc.errors import PipelineFault
from cdc.flow.disposition import Failure
from cdc.jobs import JobKind
from cdc.ports import DeadLetter, Embedded, EmbedFailed, Model, ModelChoice, Results, Wanted
from cdc.postgres import job_pipelines as jobs
from cdc.postgres.connect import connect_sync
from cdc.postgres.declared import by_rows
from cdc.postgres.job_pipelines import JobPipeline
from cdc.postgres.sync import Sync
from cdc.rows import Table
from cdc.services.engine import Engine
from cdc.status import PipelineStatus
from cdc.telemetry.metrics import Metrics
from inference.hashing import hash_vectors
from tests.sim.world import settings_for

DOCS = Table("public", "docs")


class Twin:
    """A model in this process: the vectors of the runtime ``hash``, or with ``answer`` what that says to a text."""

    def __init__(self, dimension: int = 8, answer: Callable[[str], str] | None = None) -> None:
        self.name = f"twin-{dimension}"
        self.dimension = dimension
        self.answer = answer
        self.broken: EmbedFailed | None = None
        self.asked: list[str] = []
        self.pads = False

    async def start(self) -> int:
        if self.broken is not None:
            raise self.broken
        return 0 if self.answer is not None else self.dimension

    async def embed(self, texts: Sequence[str], *, query: bool = False, bulk: bool = False) -> Results:
        if self.broken is not None:
            raise self.broken
        self.asked += [text for text in texts if text != "walvec"]
        if self.answer is not None:
            return np.array([self.answer(text) for text in texts], object)
        return hash_vectors(texts, self.dimension)

    async def embed_counted(self, texts: Sequence[str], *, bulk: bool = False) -> Embedded:
        return Embedded(await self.embed(texts, bulk=bulk), None)

    async def probe(self) -> None:
        await self.embed(["walvec"])

    def tokens(self, size: int) -> int:
        return size

    def pack(self, tokens: Sequence[int]) -> list[list[int]]:
        return [list(range(len(tokens)))[i : i + 64] for i in range(0, len(tokens), 64)]

    async def close(self) -> None:
        """Nothing to let go of."""


def misconfigured(message: str) -> EmbedFailed:
    return EmbedFailed(Failure.MISCONFIGURED, "model", message)


@dataclass
class ModelTable:
    """Which model each pipeline uses: what a test writes into ``models``. Implements :class:`cdc.ports.Models`."""

    models: dict[str, Model] = field(default_factory=dict)
    recipes: dict[str, str] = field(default_factory=dict)

    def choose(self, pipeline: str) -> ModelChoice:
        model = self.models.get(pipeline)
        if model is None:
            raise PipelineFault(f"No model was chosen for {pipeline}.")
        return ModelChoice(model.name, self.recipes.get(pipeline, model.name), model)

    def at_start(self) -> Sequence[ModelChoice]:
        return ()


@dataclass
class Heard:
    """Hears of rows set aside. Implements :class:`cdc.ports.Failures`."""

    letters: list[tuple[str, DeadLetter]] = field(default_factory=list)

    def buried(self, pipeline: str, letters: Sequence[DeadLetter]) -> None:
        self.letters += [(pipeline, letter) for letter in letters]


class Scene:
    """The jobs of one database, and the engine that runs them."""

    def __init__(self, url: str) -> None:
        self.settings: Settings = settings_for(url, WALVEC_SLOT="walvec_jobs", WALVEC_PUBLICATION="walvec_jobs")
        self.models, self.heard = ModelTable(), Heard()
        self.engine: Engine | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- jobs -------------------------------------------------------------------------------------------------------

    def job(
        self, source: str, target: str, model: Model | None, *, job: str = "1", table: Table = DOCS, **more: Any
    ) -> str:
        """Have a job run on ``docs``; return its pipeline's name."""
        name = f"{table}.{target}"
        if model is not None:
            self.models.models[name] = model
        kind = more.pop("kind", JobKind.EMBEDDING)
        self.ensured = self.with_control(
            lambda conn: jobs.ensure_job_pipeline(
                conn, self.settings, JobPipeline(name, kind, job, table, (source,), target, "hash", **more)
            )
        )
        return name

    def detach(self, name: str) -> bool:
        return bool(self.with_control(lambda conn: jobs.detach_job_pipeline(conn, self.settings, name)))

    def with_control(self, what: Callable[[psycopg.Connection[Any]], Any]) -> Any:
        with connect_sync(self.settings, "jobs") as conn:
            return what(conn)

    # -- the engine -------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        ready = threading.Event()

        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self.engine = make_engine(self.settings, self.models, Metrics(), declared=by_rows, failures=self.heard)
            ready.set()
            await self.engine.run()

        def run() -> None:
            try:
                asyncio.run(main())
            except BaseException as exc:
                self._error = exc
                ready.set()

        self._thread = threading.Thread(target=run, name="jobs under test", daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def stop(self) -> None:
        assert self._thread is not None and self._loop is not None and self.engine is not None
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self.engine.stop)
        self._thread.join(40)
        assert not self._thread.is_alive()
        self._thread = None
        if self._error is not None:
            raise self._error

    def status(self, name: str) -> PipelineStatus | None:
        assert self.engine is not None
        return next((p for p in self.engine.status().pipelines if p.pipeline == name), None)

    def until(self, true: Callable[[], Any], timeout_s: float = 15.0) -> None:
        """Wait until it is true, whatever is missing yet."""
        deadline = time.monotonic() + timeout_s
        while not true():
            assert self._error is None, self._error
            assert time.monotonic() < deadline, self.engine and self.engine.status()
            time.sleep(0.02)

    def count_looks(self) -> Callable[[], int]:
        """Return what says how often the engine has looked at what is wanted since now."""
        assert self.engine is not None
        registry, looks = self.engine.fleet._registry, 0
        wanted = registry.wanted

        async def counted() -> list[Wanted]:
            nonlocal looks
            found = await wanted()
            looks += 1
            return found

        registry.wanted = counted  # type: ignore[method-assign]
        return lambda: looks

    def backfilled(self, *names: str) -> None:
        def done(name: str) -> bool:
            found = self.status(name)
            return found is not None and found.backfilled

        for name in names:
            self.until(partial(done, name))

    def sync(self) -> None:
        assert Sync(self.settings, lambda _: None).wait(20), self.engine and self.engine.status()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self.stop()
