"""The daemon over tables of jobs: one director per control database, one engine per target, one HTTP server for all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import structlog

from cdc import app
from cdc.config import Settings
from cdc.daemon.plan import Plan
from cdc.daemon.view import DaemonView
from cdc.errors import ConfigError, Unavailable, WalvecError
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
from cdc.postgres.job_registry import Databases, ensure_own_tables, find_books
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

AGAIN_S = 5.0
"""The longest pause before a target database that could not be served is tried again."""


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
        name = publication_name(plan.label)
        self._settings = replace(settings, slot=name, publication=name)
        self._plan = plan
        self._metrics = metrics
        self._publish = publish or metrics.publish
        self._environ = environ
        self._models = JobModels(settings, environ)
        self._meter = JobMeter()
        self._stopping = asyncio.Event()
        self._served: dict[str, tuple[Director, asyncio.Task[None]]] = {}
        self._embedding = EmbeddingJobs(
            PostgresTargets(self._target), _Chooser(self._models), self._engine, metrics, self._meter, self._living
        )
        self.view = DaemonView(self._target, self._embedding, self.directors, logs.clean)
        self._runners = self._make_runners()

    # -- parts ------------------------------------------------------------------------------------------------------

    def _at(self, url: str) -> Settings:
        return replace(self._settings, database_url=url)

    def _target(self, url: str, identity: str) -> Settings:
        """Return the settings of a target database: its oid is the second part of its identity."""
        return replace(self._at(url), slot=slot_name(self._plan.label, int(identity.partition("/")[2])))

    def _engine(self, url: str, identity: str, models: Models, observer: Observer, failures: Failures) -> Engine:
        return app.make_engine(self._target(url, identity), models, observer, declared=by_rows, failures=failures)

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
        return [director for director, _ in list(self._served.values())]

    def _living(self) -> set[str]:
        return set().union(*(director.living() for director in self.directors()))

    async def _resolve(self, connection: str) -> tuple[str, str]:
        hosts = [host.strip() for host in self._settings.job_hosts.split(",") if host.strip()]
        address = await asyncio.to_thread(resolve, connection, self._environ, hosts)
        logs.hide(address.secrets)
        return address.url, address.place

    async def _own(self, connection: str) -> tuple[str, str]:
        """Resolve what the daemon itself was given: the allow-list is for jobs."""
        address = await asyncio.to_thread(resolve, connection, {**self._environ}, [])
        logs.hide(address.secrets)
        return address.url, address.place

    # -- running ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End :meth:`run`: work in flight is finished and acknowledged."""
        self._stopping.set()
        self._stop_indexes()
        for director in self.directors():
            director.stop()

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
                databases = asyncio.create_task(self._follow_databases(), name="databases")
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
        url, place = await self._own(self._plan.uri)
        own = await self._patiently(lambda: ensure_own_tables(self._at(url)))
        schemas = (*self._plan.schemas, self._settings.schema)
        results = self._plan.results or (Table(self._settings.schema, "autotune_results") if own else None)
        director = self._director(url, place, self._plan.books, Extras(results, schemas))
        task = asyncio.create_task(self._direct(director, url, self._plan.books), name=f"director {place}")
        self._served[place] = (director, task)
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

    async def _direct(self, director: Director, url: str, books: Sequence[BookName]) -> None:
        structlog.contextvars.bind_contextvars(database=director.place)  # of this task, and of those that it starts
        tables = [book.table for book in books]
        if self._stopping.is_set():
            return
        await director.run(lambda changed: JobFeed(url, tables, changed))

    def _director(self, url: str, place: str, books: Sequence[BookName], extras: Extras) -> Director:
        async def where(connection: str) -> tuple[str, str]:
            return await self._resolve(connection) if connection else (url, place)

        store = PostgresBooks(self._at(url), place, books, extras)
        return Director(store, self._runners, where, self._plan.label, self._meter, logs.clean)

    def _stop_indexes(self) -> None:
        if self.view.indexes is not None:
            self.view.indexes.stop()

    async def _wind_up(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        self._stop_indexes()
        for director in self.directors():
            director.stop()
        ends = [task for _, task in self._served.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *ends, return_exceptions=True)
        await self._embedding.close()
        for director in self.directors():
            await director.close()
        await self._models.close()

    # -- databases with tables of jobs of their own -----------------------------------------------------------------

    async def _follow_databases(self) -> None:
        """Serve the databases that are named, and those of the registry as it changes."""
        for target in self._plan.targets:
            await self._add(target)
        if self._plan.master is None:
            await asyncio.Event().wait()
            return
        url, _ = await self._own(self._plan.master[0])
        registry = Databases(self._at(url), self._plan.master[1])
        async for wanted in registry.follow():
            named = {*wanted, *self._plan.targets}
            for gone in [connection for connection in self._served if connection not in named]:
                await self._remove(gone)
            for connection in sorted(named - self._served.keys()):
                await self._add(connection)

    async def _add(self, connection: str) -> None:
        if connection in self._served:
            return
        try:
            url, place = await self._own(connection)
        except ConfigError as exc:
            log.error("database_refused", message=logs.clean(str(exc)))
            self.view.troubles["a database of the registry"] = logs.clean(str(exc))
            return
        schema = self._plan.schema or self._settings.schema
        director = self._director(url, place, (), Extras())
        task = asyncio.create_task(self._serve(connection, url, place, schema), name=f"director {place}")
        self._served[connection] = (director, task)
        log.info("database_added", database=place)

    async def _serve(self, connection: str, url: str, place: str, schema: str) -> None:
        """Direct the jobs of one target database. Whatever is wrong with it is said, and tried again."""
        attempt = 0
        while not self._stopping.is_set():
            attempt += 1
            try:
                books, results = await asyncio.to_thread(find_books, self._at(url), schema, self._plan.kinds)
                extras = Extras(results, (schema, self._settings.schema))
                director = self._director(url, place, books, extras)
                self._served[connection] = (director, self._served[connection][1])
                self.view.troubles.pop(place, None)
                await self._direct(director, url, books)
                return
            except WalvecError as exc:
                self.view.troubles[place] = logs.clean(str(exc))
                log.error("database_refused", database=place, message=logs.clean(str(exc)))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff_s(attempt, first=0.5, most=AGAIN_S))

    async def _remove(self, connection: str) -> None:
        """Serve a database no more. It is not ours any longer: its slot must not keep its WAL."""
        director, task = self._served.pop(connection)
        director.stop()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await director.close(discard=True)
        self.view.troubles.pop(director.place, None)
        log.info("database_removed", database=director.place)
