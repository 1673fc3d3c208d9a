"""The daemon over tables of jobs: one director per control database, one engine per target, one HTTP server for all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import structlog

from cdc import app
from cdc.config import Settings
from cdc.daemon.databases import OwnTables
from cdc.daemon.plan import Plan
from cdc.daemon.view import DaemonView
from cdc.errors import ConfigError, Unavailable
from cdc.flow.disposition import backoff_s
from cdc.flow.jobs import publication_name, slot_name
from cdc.job_models import JobModels
from cdc.jobs import AutotuneSpec, EmbeddingSpec, Job, JobKind
from cdc.ports import Failures, JobRunner, ModelChoice, Models, Observer
from cdc.ports.books import BookName
from cdc.postgres.declared import by_rows
from cdc.postgres.job_address import resolve
from cdc.postgres.job_books import PostgresBooks
from cdc.postgres.job_feed import JobFeed
from cdc.postgres.job_registry import ensure_own_tables
from cdc.postgres.job_targets import PostgresTargets
from cdc.postgres.job_usage import Extras
from cdc.rows import Table
from cdc.services.director import Director
from cdc.services.embedding_jobs import EmbeddingJobs
from cdc.services.engine import Engine
from cdc.services.job_meter import JobMeter
from cdc.status import EngineStatus
from cdc.telemetry import logs
from cdc.telemetry.metrics import Metrics

log = structlog.get_logger()


class _Chooser:
    """Implements :class:`cdc.ports.books.JobModels` over the models of all jobs."""

    def __init__(self, models: JobModels) -> None:
        self._models = models

    def of(self, spec: EmbeddingSpec, kind: JobKind) -> ModelChoice:
        return self._models.choose(spec, kind)


class Daemon:
    """Runs until :meth:`stop`. Make it where an event loop runs.

    Args:
        settings: Everything that can be set.
        plan: What to do.
        metrics: The one set of metrics.
        environ: The environment that ``db_connection`` may name variables of.
        publish: Given the state of everything now and then; None: the metrics are.
    """

    def __init__(
        self,
        settings: Settings,
        plan: Plan,
        metrics: Metrics,
        environ: Mapping[str, str],
        publish: Callable[[EngineStatus], None] | None = None,
    ) -> None:
        name = publication_name(plan.label, "")
        self._settings = replace(settings, slot=name, publication=name)
        self._plan = plan
        self._metrics = metrics
        self._publish = publish or metrics.publish
        self._environ = environ
        self._models = JobModels(settings, environ)
        self._meter = JobMeter()
        self._stopping = asyncio.Event()
        self._one: tuple[Director, asyncio.Task[None]] | None = None
        self._embedding = EmbeddingJobs(
            PostgresTargets(self._target), _Chooser(self._models), self._engine, metrics, self._meter, self._living
        )
        self._databases = OwnTables(plan, self, self._stopping)
        self.view = DaemonView(self._target, self._embedding, self.directors, logs.clean, self._databases.troubles)
        self._runners = self._make_runners()

    # -- parts ------------------------------------------------------------------------------------------------------

    def at(self, url: str) -> Settings:
        """Return the settings of the database at ``url``."""
        return replace(self._settings, database_url=url)

    def _target(self, url: str, identity: str, control: str) -> Settings:
        """Return the settings of a target database for a control's jobs: its oid is the second part of its identity."""
        label, oid = self._plan.label, int(identity.partition("/")[2])
        slot, publication = slot_name(label, control, oid), publication_name(label, control)
        return replace(self.at(url), slot=slot, publication=publication)

    def _engine(
        self, url: str, identity: str, control: str, models: Models, observer: Observer, failures: Failures
    ) -> Engine:
        settings = self._target(url, identity, control)
        return app.make_engine(settings, models, observer, declared=by_rows, failures=failures)

    def _make_runners(self) -> dict[JobKind, JobRunner]:
        runners: dict[JobKind, JobRunner] = {}
        kinds = {book.kind for book in self._plan.books} or self._plan.kinds
        if JobKind.EMBEDDING in kinds:
            runners |= {JobKind.EMBEDDING: self._embedding, JobKind.COMPLETION: self._embedding}
        if JobKind.EXTERNAL_INDEX in kinds:
            from cdc.external_indexes import make_index_runner  # loads hnswlib

            indexes = make_index_runner(self._settings, observer=self._metrics)
            runners[JobKind.EXTERNAL_INDEX] = self.view.indexes = indexes
        if JobKind.AUTOTUNE in kinds:
            from cdc.autotune import autotune_runner

            runners[JobKind.AUTOTUNE] = autotune_runner(
                self._settings.schema, threads=self._settings.index_threads, experiments=self
            )
        return runners

    async def of(self, job: Job) -> Sequence[Mapping[str, object]]:
        """Return what earlier autotune jobs found for a job's model. Implements the port ``Experiments``."""
        director = next((d for d in self.directors() if d.place == job.id.database), None)
        model = job.spec.model if isinstance(job.spec, AutotuneSpec) else ""
        return await director.experiments(model) if director is not None else []

    def directors(self) -> list[Director]:
        """Return the directors of now."""
        return [*([self._one[0]] if self._one is not None else []), *self._databases.directors()]

    def _living(self) -> set[str]:
        return set().union(*(director.owners() for director in self.directors()))

    async def _resolve(self, connection: str) -> tuple[str, str]:
        hosts = [host.strip() for host in self._settings.job_hosts.split(",") if host.strip()]
        address = await asyncio.to_thread(resolve, connection, self._environ, hosts)
        logs.hide(address.secrets)
        return address.url, address.place

    async def own(self, connection: str, called: str) -> tuple[str, str]:
        """Return URL and place of what the daemon itself was given as ``called``: the allow-list is for jobs.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            address = await asyncio.to_thread(resolve, connection, self._environ, [])
        except ConfigError as exc:
            message = exc.message.replace("The job's db_connection", called).replace("db_connection", called)
            raise ConfigError(message, exc.remedy.replace("db_connection", called)) from None
        logs.hide(address.secrets)
        return address.url, address.place

    # -- running ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End :meth:`run`: work in flight is finished and acknowledged."""
        self._stopping.set()
        self._stop_indexes()
        self._stop_directors()

    def _stop_directors(self) -> None:
        if self._one is not None:
            self._one[0].stop()
        self._databases.stop()

    async def run(self) -> None:
        """Run the jobs until stopped.

        Raises:
            ConfigError: the control database or its tables will not do.
        """
        log.info("daemon_started", label=self._plan.label)
        keeping = asyncio.create_task(self.view.keep(self._metrics, self._publish), name="view")
        databases = None
        try:
            if self._plan.uri:
                await self._run_one()
            else:
                databases = asyncio.create_task(self._databases.follow(), name="databases")
                stopping = asyncio.create_task(self._stopping.wait())
                await asyncio.wait((databases, stopping), return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                if databases.done():
                    databases.result()
        finally:
            log.info("daemon_stopping")
            await self._wind_up([task for task in (databases, keeping) if task is not None])
        log.info("daemon_stopped")

    async def _run_one(self) -> None:
        url, place = await self.own(self._plan.uri, "--uri")
        own = await self._patiently(lambda: ensure_own_tables(self.at(url)))
        schemas = (*self._plan.schemas, self._settings.schema)
        results = self._plan.results or (Table(self._settings.schema, "autotune_results") if own else None)
        director = self.director(url, place, self._plan.books, Extras(results, schemas))
        task = asyncio.create_task(self.direct(director, url, self._plan.books), name=f"director {place}")
        self._one = (director, task)
        await task

    async def _patiently(self, work: Callable[[], bool]) -> bool:
        """Return what ``work`` does, once the database is there; False if the daemon is stopped before."""
        attempt = 0
        while not self._stopping.is_set():
            attempt += 1
            try:
                return await asyncio.to_thread(work)
            except Unavailable as exc:
                log.warning("database_unavailable", message=logs.clean(str(exc)))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff_s(attempt))
        return False

    async def direct(self, director: Director, url: str, books: Sequence[BookName]) -> None:
        """Run a director until it is stopped."""
        structlog.contextvars.bind_contextvars(database=director.place)  # of this task, and of those that it starts
        tables = [book.table for book in books]
        if self._stopping.is_set():
            return
        await director.run(lambda changed: JobFeed(url, tables, changed))

    def director(self, url: str, place: str, books: Sequence[BookName], extras: Extras) -> Director:
        """Return a director of the books in one database."""

        async def where(connection: str) -> tuple[str, str]:
            return await self._resolve(connection) if connection else (url, place)

        store = PostgresBooks(self.at(url), place, books, extras)
        return Director(store, self._runners, where, self._plan.label, self._meter, logs.clean)

    def _stop_indexes(self) -> None:
        if self.view.indexes is not None:
            self.view.indexes.stop()

    async def _wind_up(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        self._stopping.set()
        self._stop_indexes()
        self._stop_directors()
        ends = [*([self._one[1]] if self._one is not None else []), *self._databases.tasks()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *ends, return_exceptions=True)
        await self._embedding.close()
        for director in self.directors():
            await director.close()
        await self._models.close()
