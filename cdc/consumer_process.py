"""`walvec run` as a process: the consumer, the jobs of its database's own tables beside it, signals, HTTP."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import structlog

from cdc.app import EmbedderModel, EngineFace, Serve, SingleModel, calm_collector, make_engine, make_model, secrets_of
from cdc.config import Settings
from cdc.errors import UnknownPipeline, WalvecError
from cdc.flow.merged import beside
from cdc.foreground import until_signalled, use_threads
from cdc.services.engine import Engine
from cdc.services.tasks import end
from cdc.status import EngineStatus
from cdc.telemetry import logs
from cdc.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from cdc.daemon import Daemon

log = structlog.get_logger()


class SharedMetrics(Metrics):
    """The metrics of a consumer and of the jobs that it runs beside."""

    def __init__(self) -> None:
        super().__init__()
        self._main: EngineStatus | None = None
        self._beside: EngineStatus | None = None

    def publish(self, status: EngineStatus) -> None:
        """Take over the consumer's ``status``."""
        self._main = status
        super().publish(beside(status, self._beside))

    def publish_jobs(self, status: EngineStatus) -> None:
        """Take over the ``status`` of the jobs."""
        self._beside = status
        if self._main is not None:
            super().publish(beside(self._main, status))


class OwnJobs:
    """Runs the jobs that the control schema's own tables ask for. Nothing is started before there is the first one.

    Args:
        settings: Everything that can be set.
        metrics: Those of the consumer.
    """

    def __init__(self, settings: Settings, metrics: SharedMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._found = asyncio.Event()
        self.daemon: Daemon | None = None

    def found(self) -> None:
        """Hear that there are jobs."""
        self._found.set()

    async def run(self) -> None:
        """Run them until :meth:`stop`, once there are any."""
        await self._found.wait()
        from cdc.daemon import Daemon, Plan  # runtimes and their clients take 20 MiB

        plan = Plan(targets=(self._settings.database_url,))
        self.daemon = Daemon(self._settings, plan, self._metrics, os.environ, self._metrics.publish_jobs)
        try:
            await self.daemon.run()
        except WalvecError as exc:  # the consumer goes on: what is wrong with jobs is theirs alone
            log.error("job_engine_failed", database=self._settings.schema, message=logs.clean(str(exc)))

    def stop(self) -> None:
        """Finish what is in flight, and end."""
        if self.daemon is not None:
            self.daemon.stop()


class ConsumerView(EngineFace):
    """The consumer and its jobs as the HTTP server sees them. Implements :class:`cdc.ports.EngineView`."""

    def __init__(self, settings: Settings, engine: Engine, model: EmbedderModel, jobs: OwnJobs) -> None:
        super().__init__(settings, engine, model)
        self._jobs = jobs

    def status(self) -> EngineStatus:
        """Return the latest snapshot at once."""
        daemon = self._jobs.daemon
        return beside(super().status(), daemon.view.status() if daemon is not None else None)

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
        """Return up to ``k`` rows nearest to ``query`` or ``vector``: a job's column before a pipeline of that name."""
        if self._jobs.daemon is not None:
            try:
                return self._jobs.daemon.view.search(pipeline, query=query, vector=vector, k=k, filter=filter, ef=ef)
            except UnknownPipeline:
                pass
        return super().search(pipeline, query=query, vector=vector, k=k, filter=filter, ef=ef)

    def sync(self, timeout_s: float) -> bool:
        """Wait until all that was committed before the call is settled, by the jobs too; False when time ran out."""
        deadline = time.monotonic() + timeout_s
        daemon = self._jobs.daemon
        return super().sync(timeout_s) and (daemon is None or daemon.view.sync(max(0.0, deadline - time.monotonic())))


def run(settings: Settings, serve: Serve | None = None) -> int:
    """Consume in the foreground until a signal comes; return the exit status.

    Args:
        settings: Everything that can be set.
        serve: Starts the HTTP server; None: there is none.

    Raises:
        ConfigError: a setting, the server or the role will not do (exit status 2).
        NeedsPerson: something a person must decide (exit status 3).
    """
    logs.configure(settings.log_level, settings.log_format, secrets=secrets_of(settings))
    asyncio.run(_run(settings, serve))
    return 0


async def _run(settings: Settings, serve: Serve | None) -> None:
    calm_collector()
    use_threads()
    model, metrics = make_model(settings), SharedMetrics()
    jobs = OwnJobs(settings, metrics)
    engine = make_engine(settings, SingleModel(settings, model), metrics, jobs_found=jobs.found)

    def stop() -> None:
        engine.stop()
        jobs.stop()

    until_signalled(stop)
    hide = serve(ConsumerView(settings, engine, model, jobs), metrics) if serve is not None else None
    working = asyncio.create_task(jobs.run(), name="jobs")
    try:
        await engine.run()
    finally:
        jobs.stop()
        if jobs.daemon is not None:
            await asyncio.wait((working,))
        await end([working])
        if hide is not None:
            hide()
        await model.close()
