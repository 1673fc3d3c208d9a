"""Autotune jobs: search for HNSW parameters, with every trial as a row of results, and the winner with its reason."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from cdc.errors import ConfigError
from cdc.jobs import AutotuneSpec, Job
from cdc.ports.jobs import JobReport
from cdc.ports.tuning import METRICS, AutotuneResult, Earlier, Experiments, Trial, Tuner
from cdc.services.tasks import end

log = structlog.get_logger()


def row_of(
    trial: Trial, spec: AutotuneSpec, dimension: int, *, best: bool = False, summary: str = ""
) -> dict[str, Any]:
    """Return a trial as a row of results: Lantern's columns first, recall in per cent, then ours."""
    return {
        "ef": trial.ef,
        "efc": trial.ef_construction,
        "m": trial.m,
        "recall": round(100 * trial.recall, 3),
        "latency": round(trial.p50_ms, 4),
        "build_time": None if trial.build_s is None else round(trial.build_s, 3),
        "latency_p99": round(trial.p99_ms, 4),
        "size_bytes": trial.size_bytes,
        "backend": trial.backend,
        "rows": trial.rows,
        "dimension": dimension,
        "metric": METRICS.get(spec.metric, spec.metric),
        "k": spec.k,
        "model": spec.model or None,
        "queries": trial.queries,
        "query_kind": trial.query_kind,
        "best": best,
        "summary": summary or None,
    }


def earlier_of(row: Mapping[str, Any]) -> Earlier | None:
    """Return the winner that a row of results tells of; None where it does not tell enough."""
    try:
        return Earlier(
            m=int(row["m"]),
            ef_construction=int(row["efc"]),
            ef=int(row["ef"]),
            backend=str(row["backend"]),
            recall=float(row["recall"]) / 100,
            metric=str(row["metric"]),
            k=int(row["k"]),
            rows=int(row["rows"]),
            dimension=int(row["dimension"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


class AutotuneRunner:
    """Runs autotune jobs. Implements :class:`cdc.ports.jobs.JobRunner`."""

    def __init__(self, tuner: Tuner, experiments: Experiments | None = None) -> None:
        self._tuner = tuner
        self._experiments = experiments
        self._searching = asyncio.Semaphore(1)  # what runs beside it is in its latencies, and memory is for one

    async def run(self, job: Job, report: JobReport) -> None:
        """Search for the parameters that ``job`` asks for, and write what comes of it; one job after the other."""
        spec = _spec(job)
        async with self._searching:
            await self._search(job, spec, report)

    async def _search(self, job: Job, spec: AutotuneSpec, report: JobReport) -> None:
        await report.started()
        earlier: Sequence[Earlier] = ()
        if spec.model and self._experiments is not None:
            rows = await self._experiments.of(job)
            earlier = [found for row in rows if (found := earlier_of(row)) is not None]
        log.info("autotune_started", job=str(job.id), table=str(job.table), column=spec.column)
        heard = _Heard(asyncio.get_running_loop(), spec)
        writing = asyncio.create_task(heard.write(report))
        try:
            result = await self._tuner.tune(job.url, job.table, spec, owner=_owner(job), earlier=earlier, say=heard)
            heard.end()
            await writing
        finally:
            await end([writing])
        await report.result(row_of(result.best, spec, result.dimension, best=True, summary=result.summary))
        _log(job, result)
        await report.finished()

    async def discard(self, job: Job) -> None:
        """Drop what a run that was killed has left in the target database."""
        await self._tuner.discard(job.url, job.table, _spec(job), owner=_owner(job))


class _Heard:
    """Takes what a search says in its thread, and writes it to the job's report, in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, spec: AutotuneSpec) -> None:
        self._loop = loop
        self._spec = spec
        self._said: asyncio.Queue[int | dict[str, Any] | None] = asyncio.Queue()

    def progress(self, percent: int) -> None:
        self._loop.call_soon_threadsafe(self._said.put_nowait, percent)

    def trial(self, trial: Trial, dimension: int) -> None:
        self._loop.call_soon_threadsafe(self._said.put_nowait, row_of(trial, self._spec, dimension))

    def end(self) -> None:
        """Nothing more will be said; call it in the loop, behind all that the thread has sent."""
        self._loop.call_soon(self._said.put_nowait, None)

    async def write(self, report: JobReport) -> None:
        """Write it. What an earlier run has left goes with the first trial of this one, so that one run's stand."""
        forgotten = False
        while (said := await self._said.get()) is not None:
            if isinstance(said, int):
                await report.progress(min(said, 99))
                continue
            if not forgotten:
                await report.forget_results()
                forgotten = True
            await report.result(said)


def _spec(job: Job) -> AutotuneSpec:
    if not isinstance(job.spec, AutotuneSpec):
        raise ConfigError(f"Job {job.id} does not ask for index parameters.")
    return job.spec


def _owner(job: Job) -> str:
    return f"{job.id.database}/{job.id}"


def _log(job: Job, result: AutotuneResult) -> None:
    best = result.best
    log.info(
        "autotune_finished",
        job=str(job.id),
        reached=result.reached,
        m=best.m,
        ef_construction=best.ef_construction,
        ef=best.ef,
        recall=round(best.recall, 4),
        trials=len(result.trials),
        summary=result.summary,
    )
