"""Where objects meet: settings in, a running consumer out. Below it, nothing of ``cdc`` knows ``inference``."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import structlog

from cdc.config import Settings
from cdc.errors import ConfigError, Unavailable
from cdc.flow.disposition import Failure
from cdc.ports import CANARY, Embedded, EmbedFailed, EngineView, Failures, ModelChoice, Models, Observer, Vectors
from cdc.postgres.admin import Admin
from cdc.postgres.connect import connect_sync, parse_dsn, secrets_in
from cdc.postgres.declared import Declared, by_publication
from cdc.postgres.registry import PostgresRegistry
from cdc.postgres.replication import open_stream
from cdc.postgres.search import nearest, searchable
from cdc.postgres.session import ControlSession
from cdc.postgres.slotkeeper import PostgresSlotKeeper
from cdc.postgres.sync import Sync
from cdc.postgres.verify import Sample, Verifier
from cdc.services.engine import Engine, EngineSettings, Places
from cdc.services.pipeline import Tuning
from cdc.status import EngineStatus
from cdc.telemetry.metrics import Metrics
from inference import errors
from inference.address import Access
from inference.contract import ModelOptions
from inference.embedder import Embedder, Limits, Probed
from inference.front import Front
from inference.packing import pack
from inference.registry import ApiOptions, make_embedder
from inference.tokens import estimate, tallied

log = structlog.get_logger()
T = TypeVar("T")

Progress = Callable[[str, int, int], None]
"""(pipeline, rows done, rows in all)."""

_FAILURES: tuple[tuple[type[errors.EmbedError], Failure], ...] = (
    (errors.ModelOverloaded, Failure.OVERLOADED),
    (errors.ModelSilent, Failure.SILENT),
    (errors.ModelUnavailable, Failure.UNAVAILABLE),
    (errors.RequestTooLarge, Failure.TOO_LARGE),
    (errors.TextRefused, Failure.REFUSED),
    (errors.ModelMisconfigured, Failure.MISCONFIGURED),
    (errors.ModelFailed, Failure.FAILED),
)


class EmbedderModel:
    """An embedder of ``inference`` as the services know it. Implements :class:`cdc.ports.Model`."""

    def __init__(self, embedder: Embedder, batch_rows: int, batch_tokens: int) -> None:
        self._embedder = embedder
        self._batch_rows = batch_rows
        self._batch_tokens = batch_tokens
        self._limits: Limits | None = None

    @property
    def name(self) -> str:
        """The model's name."""
        return self._embedder.model

    async def start(self) -> int:
        """Reach the model; return the dimension of its vectors."""
        await self._guard(self._embedder.start())
        given = self._embedder.limits
        self._limits = Limits(
            max_rows=min(given.max_rows, self._batch_rows),
            max_padded_tokens=min(given.max_padded_tokens, self._batch_tokens),
            max_tokens=given.max_tokens,
            concurrency=given.concurrency,
            alike=given.alike,
        )
        return self._embedder.dimension

    async def embed(self, texts: Sequence[str], *, query: bool = False, bulk: bool = False) -> Vectors:
        """Return one vector per text, in order."""
        return await self._guard(self._embedder.embed(texts, query=query, bulk=bulk))

    async def embed_counted(self, texts: Sequence[str], *, bulk: bool = False) -> Embedded:
        """Return one vector per text, in order, and the tokens that the runtime counted, where it counts."""
        with tallied() as tally:
            return Embedded(await self.embed(texts, bulk=bulk), tally.tokens)

    async def probe(self) -> None:
        """Find out whether the model works, in the runtime's own way where it has one."""
        if isinstance(self._embedder, Probed):
            await self._guard(self._embedder.probe())
        else:
            await self.embed([CANARY])

    def tokens(self, size: int) -> int:
        """Return about how many tokens a text of ``size`` bytes comes to, at most what the model reads."""
        return estimate(size, self._known.max_tokens)

    @property
    def pads(self) -> bool:
        """Whether texts of a request cost as much as the longest of them."""
        return self._known.alike > 0

    def pack(self, tokens: Sequence[int]) -> list[list[int]]:
        """Return batches of indexes into ``tokens``, each within what one request may hold, each index once."""
        return pack(tokens, self._known, alike=self._known.alike)

    async def close(self) -> None:
        """Let go of it."""
        await self._embedder.close()

    @property
    def _known(self) -> Limits:
        if self._limits is None:
            raise EmbedFailed(Failure.UNAVAILABLE, "not_started", "The model has not answered yet.")
        return self._limits

    @staticmethod
    async def _guard(request: Awaitable[T]) -> T:
        try:
            return await request
        except errors.EmbedError as exc:
            failure = next(failure for kind, failure in _FAILURES if isinstance(exc, kind))
            raise EmbedFailed(failure, exc.reason, str(exc), exc.retry_after_s) from exc


def make_runtime(settings: Settings) -> Front:
    """Return the runtime and model that the settings name, not yet started.

    Raises:
        ConfigError: there is no such runtime or model.
    """
    try:
        return make_embedder(
            settings.runtime,
            settings.model,
            triton_urls=[url for url in settings.triton_url.split(",") if url],
            request_timeout_s=settings.request_timeout_s,
            access=Access(
                ca_file=settings.triton_ca_file,
                cert_file=settings.triton_cert_file,
                key_file=settings.triton_key_file,
                headers=settings.triton_metadata,
            ),
            options=ModelOptions(
                pooling=settings.pooling,
                normalize={"auto": None, "on": True, "off": False}[settings.normalize],
                tokenizer=Path(settings.tokenizer) if settings.tokenizer else None,
                max_tokens=settings.max_tokens or None,
                output=settings.model_output,
            ),
            api=ApiOptions(
                openai_url=settings.openai_url,
                openai_key=settings.openai_key,
                cohere_url=settings.cohere_url,
                cohere_key=settings.cohere_key,
                dimensions=settings.dimensions or None,
                input_type=settings.input_type,
            ),
            query_prefix=settings.query_prefix,
            document_prefix=settings.document_prefix,
            models_dir=Path(settings.models_dir) if settings.models_dir else None,
        )
    except errors.ModelMisconfigured as exc:
        raise ConfigError(str(exc)) from exc


def make_model(settings: Settings) -> EmbedderModel:
    """Return the model that the settings name, not yet started, as the services know it.

    Raises:
        ConfigError: there is no such runtime or model.
    """
    return EmbedderModel(make_runtime(settings), settings.batch_rows, settings.batch_tokens)


class SingleModel:
    """The model of the settings, for every pipeline. Implements :class:`cdc.ports.Models`."""

    def __init__(self, settings: Settings, model: EmbedderModel) -> None:
        self._choice = ModelChoice(settings.model, settings.recipe, model)

    def choose(self, pipeline: str) -> ModelChoice:
        """Return the one model."""
        return self._choice

    def at_start(self) -> Sequence[ModelChoice]:
        """Return the one model: it is started before the slot is ours."""
        return (self._choice,)


def make_engine(
    settings: Settings,
    models: Models,
    observer: Observer,
    *,
    declared: Declared = by_publication,
    failures: Failures | None = None,
    jobs_found: Callable[[], None] | None = None,
) -> Engine:
    """Return a consumer, not yet running. Call it where an event loop runs.

    Args:
        settings: Everything that can be set.
        models: Which model each pipeline uses; who made them closes them.
        observer: Told what happens.
        declared: Says which pipelines there are.
        failures: Told of rows that are set aside.
        jobs_found: Called while the control schema's own tables of jobs have a row; None: nobody looks.
    """
    tuning = Tuning(settings.batch_rows, settings.batch_delay_ms / 1000, settings.max_attempts)
    control = ControlSession(settings)

    async def look_for_jobs() -> None:
        await control.open()  # where the publication is missing, nobody else has
        row = await control.one("has_jobs", {})
        if row is not None and row[0] and jobs_found is not None:
            jobs_found()

    return Engine(
        EngineSettings(
            slot=settings.slot,
            reconcile_lost_slot=settings.on_slot_lost == "reconcile",
            queue_bytes=settings.queue_bytes,
            queue_rows=settings.queue_rows,
            inflight=settings.inflight,
            most_inflight=settings.most_inflight,
            tuning=tuning,
        ),
        Places(
            PostgresSlotKeeper(control, lambda message: log.warning("slot_waiting", message=message)),
            PostgresRegistry(control, declared),
            lambda listener, ended: open_stream(settings, listener, ended),
        ),
        models,
        observer,
        failures,
        look_for_jobs if jobs_found is not None else None,
    )


class EngineFace:
    """The running engine as the HTTP server sees it. Implements :class:`cdc.ports.EngineView`."""

    def __init__(self, settings: Settings, engine: Engine, model: EmbedderModel) -> None:
        self._settings = settings
        self._engine = engine
        self._model = model
        self._loop = asyncio.get_running_loop()

    def status(self) -> EngineStatus:
        """Return the latest snapshot at once."""
        return self._engine.status()

    def heartbeat_age_s(self) -> float:
        """Return the seconds since the engine's loop last turned."""
        return self._engine.heartbeat_age_s()

    def search(
        self,
        pipeline: str,
        *,
        query: str | None,
        vector: Sequence[float] | None,
        k: int,
        filter: Mapping[str, object] | None,
        ef: int | None = None,
    ) -> list[dict[str, object]]:
        """Return up to ``k`` rows nearest to ``query`` or ``vector``, nearest first."""
        with connect_sync(self._settings, "search") as conn:
            what = searchable(conn, self._settings.schema, pipeline)
            if vector is None:
                asked = asyncio.run_coroutine_threadsafe(self._model.embed([query or ""], query=True), self._loop)
                vector = first_vector(asked.result)
            return nearest(conn, what, vector, k, filter, ef)

    def sync(self, timeout_s: float) -> bool:
        """Wait until all that was committed before the call is settled; False when time ran out."""
        return Sync(self._settings, lambda _: None).wait(timeout_s)


def first_vector(ask: Callable[[], Vectors]) -> list[float]:
    """Return the one vector that ``ask`` gives, its failure in this package's words."""
    try:
        return [float(x) for x in ask()[0]]
    except EmbedFailed as exc:
        raise Unavailable(f"The model does not answer: {exc}") from exc


async def _start_patiently(model: EmbedderModel) -> None:
    try:
        await model.start()
    except EmbedFailed as exc:
        raise Unavailable(f"The model does not answer: {exc}") from exc


# -- commands -------------------------------------------------------------------------------------------------------


Serve = Callable[[EngineView, Metrics], Callable[[], None]]
"""Starts what shows the engine to the world; returns what stops it."""


def secrets_of(settings: Settings) -> list[str]:
    """Return what no log line may show."""
    found = [
        settings.http_token,
        settings.openai_key,
        settings.triton_token,
        *settings.triton_metadata.values(),
        settings.cohere_key,
        *secrets_in(parse_dsn(settings.database_url)),
    ]
    return [secret for secret in found if secret]


def calm_collector() -> None:
    """Have the cycle collector look more rarely, and never at what was imported.

    Dirty keys come by the hundred thousand, all of them alive and none in a cycle: to look through them at every turn,
    as the default thresholds do, takes a third of the time of taking them in.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def search(
    settings: Settings, pipeline: str, text: str, k: int, vector: Sequence[float] | None = None
) -> list[dict[str, object]]:
    """Return the rows of ``pipeline`` nearest to ``text``, or to ``vector`` where one is given, nearest first."""

    async def embed() -> Vectors:
        model = make_model(settings)
        await _start_patiently(model)
        try:
            return await model.embed([text], query=True)
        finally:
            await model.close()

    with connect_sync(settings, "search") as conn:
        what = searchable(conn, settings.schema, pipeline)
        if vector is not None:
            return nearest(conn, what, vector, k)
        if what.model != settings.model:
            raise ConfigError(
                f"{pipeline} was embedded with {what.model}, and WALVEC_MODEL is {settings.model}.",
                f"Set WALVEC_MODEL={what.model}.",
            )
        return nearest(conn, what, first_vector(lambda: asyncio.run(embed())), k)


def deep_verify(settings: Settings, sample: Sample, tolerance: float = 1e-3) -> int:
    """Embed the texts of ``sample`` again; return how many vectors differ by more than ``tolerance`` in cosine."""

    async def embed() -> Vectors:
        model = make_model(settings)
        await _start_patiently(model)
        try:
            rows = 64
            parts = [await model.embed(sample.texts[i : i + rows]) for i in range(0, len(sample.texts), rows)]
            return np.concatenate(parts)
        finally:
            await model.close()

    if not sample.texts:
        return 0
    fresh = asyncio.run(embed())
    stored = np.asarray(sample.vectors, np.float32)
    norms = np.linalg.norm(fresh, axis=1) * np.linalg.norm(stored, axis=1)
    cosine = np.einsum("ij,ij->i", fresh, stored) / np.maximum(norms, 1e-12)
    return int(np.count_nonzero(~(cosine > 1 - tolerance)))


def reconcile(
    settings: Settings, pipeline: str | None, *, dry_run: bool, progress: Progress
) -> list[dict[str, object]]:
    """Compare source with destination by hash, embed what differs and remove orphans; return a row per pipeline.

    A running consumer is asked to; where there is none, one runs here until it is done.
    """
    with connect_sync(settings, "reconcile") as conn:
        names = Verifier(conn, settings.schema).names(pipeline)
        if dry_run:
            verifier = Verifier(conn, settings.schema)
            return [verifier.compare(name).to_json() for name in names]
        admin = Admin(conn, settings)
        asked = admin.ask_reconcile(names)
        if admin.has_consumer(names):
            while not admin.show_requests(asked, progress):
                time.sleep(0.2)
        else:
            asyncio.run(_run_until(settings, lambda: admin.show_requests(asked, progress)))
        verifier = Verifier(conn, settings.schema)
        return [verifier.compare(name).to_json() for name in names]


async def _run_until(settings: Settings, is_done: Callable[[], bool]) -> None:
    model = make_model(settings)
    engine = make_engine(settings, SingleModel(settings, model), Metrics())
    running = asyncio.create_task(engine.run())
    try:
        while not running.done() and not await asyncio.to_thread(is_done):
            await asyncio.sleep(0.2)
        engine.stop()
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await model.close()
