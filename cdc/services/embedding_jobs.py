"""Embedding and completion jobs: one engine per target database, a pipeline per job.

All jobs of one database that are rows of one table share an engine, and the slot is their lease: a second daemon over
that table with the same label stands by with an engine of its own, and says nothing in the jobs' rows until it holds
the slot. Jobs of another table have an engine and a slot of their own. A job that fails leaves the engine and the other
jobs alone; an engine that fails is made anew with its jobs' next tries.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from cdc.errors import ConfigError, PipelineFault, WalvecError
from cdc.flow.jobs import Course
from cdc.jobs import EmbeddingSpec, Job
from cdc.ports import Failures, JobReport, ModelChoice, Models, Observer
from cdc.ports.books import JobModels, Targets
from cdc.services.job_member import in_a_jobs_words
from cdc.services.job_meter import JobMeter, JobObserver
from cdc.status import EngineStatus, PipelineState, PipelineStatus, SlotState, SlotStatus

log = structlog.get_logger()

_NOTHING = EngineStatus(SlotStatus("", SlotState.STOPPED))
AT_WORK = (PipelineState.BACKFILLING, PipelineState.READY, PipelineState.PAUSED)


class RunningEngine(Protocol):
    """What is needed of an engine."""

    async def run(self) -> None:
        """Consume until stopped."""
        ...

    def stop(self) -> None:
        """Finish what is in flight, acknowledge it, and end :meth:`run`."""
        ...

    def status(self) -> EngineStatus:
        """Return the latest snapshot."""
        ...

    def heartbeat_age_s(self) -> float:
        """Return the seconds since the loop last turned."""
        ...


MakeEngine = Callable[[str, str, str, Models, Observer, Failures], RunningEngine]
"""(the target's URL, its identity, the control's digest, models, observer, who hears of rows set aside) → an engine."""


@dataclass(slots=True, eq=False)
class Home:
    """One target database of one control's jobs. Implements :class:`cdc.ports.Models` for its engine.

    ``control`` is the digest of the table of jobs (:class:`cdc.jobs.Control`). ``url`` is the one that the engine uses:
    that of the job which came first. Its role is lent to no job that could do more with it than write what it may by
    itself. ``choices`` are the pipelines' models, or why there is none.
    """

    identity: str
    control: str
    url: str = field(repr=False)
    place: str
    choices: dict[str, ModelChoice | WalvecError] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)  # by pipeline
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    engine: RunningEngine | None = None
    task: asyncio.Task[None] | None = None
    pulse: asyncio.Event = field(default_factory=asyncio.Event)
    members: Mapping[str, PipelineStatus] = field(default_factory=dict)

    def choose(self, pipeline: str) -> ModelChoice:
        """Return the model of ``pipeline``."""
        choice = self.choices.get(pipeline)
        if isinstance(choice, WalvecError):
            raise PipelineFault(choice.message, choice.remedy)
        if choice is None:
            raise PipelineFault("No job of this daemon asks for this pipeline any more.")
        return choice

    def at_start(self) -> Sequence[ModelChoice]:
        """Return no model: each is started when its pipeline is."""
        return ()

    @property
    def is_running(self) -> bool:
        """Whether the engine runs."""
        return self.task is not None and not self.task.done()

    def heard(self, status: EngineStatus) -> None:
        """Take over what the engine says, and wake those who watch."""
        self.members = {p.pipeline: p for p in status.pipelines} if status.slot.state is SlotState.STREAMING else {}
        pulse, self.pulse = self.pulse, asyncio.Event()
        pulse.set()

    def away(self) -> str:
        """Return why the engine does not stream; empty where it does, or where another daemon's does."""
        slot = self.engine.status().slot if self.engine is not None else _NOTHING.slot
        return slot.reason if slot.state in (SlotState.CONNECTING, SlotState.PUBLICATION_MISSING) else ""

    def fault(self) -> BaseException:
        """Return why the engine ended."""
        task = self.task
        if task is None or task.cancelled():
            return ConfigError("The consumer of this database was stopped.")
        return task.exception() or ConfigError("The consumer of this database was stopped.")

    async def stop(self) -> None:
        """Let the engine finish what is in flight, and end."""
        if self.engine is not None:
            self.engine.stop()
        if self.task is not None:
            await asyncio.wait((self.task,))
        self.engine = self.task = None
        self.heard(_NOTHING)


class EmbeddingJobs:
    """Implements :class:`cdc.ports.JobRunner` for embedding and completion jobs.

    Args:
        targets: Pipelines in target databases.
        models: Models by what jobs say.
        make_engine: Makes an engine for one database.
        observer: Told what happens, with the place before each pipeline's name.
        meter: Told what jobs use.
        living: The jobs (:attr:`cdc.jobs.JobId.owner`) that are to run here now: pipelines of others are detached.
    """

    def __init__(
        self,
        targets: Targets,
        models: JobModels,
        make_engine: MakeEngine,
        observer: Observer,
        meter: JobMeter,
        living: Callable[[], set[str]],
    ) -> None:
        self.homes: dict[tuple[str, str], Home] = {}  # by the target's identity and the control
        self._targets = targets
        self._models = models
        self._make_engine = make_engine
        self._observer = observer
        self._meter = meter
        self._living = living

    async def run(self, job: Job, report: JobReport) -> None:
        """Have the job's pipeline followed, and say in its row how it fares, until cancelled."""
        home = await self._home(job)
        async with home.turn:
            await self._settle_in(home, job)
        try:
            await self._watch(home, job, report)
        finally:
            if home.jobs.get(job.pipeline) is job:
                del home.jobs[job.pipeline]

    async def _home(self, job: Job) -> Home:
        identity = await self._targets.identity(job.url)
        control = job.id.control.digest
        return self.homes.setdefault((identity, control), Home(identity, control, job.url, job.place))

    async def _settle_in(self, home: Home, job: Job) -> None:
        assert isinstance(job.spec, EmbeddingSpec)
        holder = home.jobs.get(job.pipeline)
        if holder is not None and holder.id != job.id:
            raise written_twice(job, str(holder.id))
        try:
            await self._targets.check(job, home.url if home.is_running else job.url)
            home.choices[job.pipeline] = self._models.of(job.spec, job.kind)
        except ConfigError as exc:
            if job.pipeline in home.choices:  # it was edited: what it was must not go on
                home.choices[job.pipeline] = exc
            raise
        if not home.is_running:
            if home.url != job.url:  # perhaps of another role: each job is asked again whether that may run it
                home.choices = {job.pipeline: home.choices[job.pipeline]}
            home.url, home.place = job.url, job.place
            await self._sweep(home)
        await self._targets.ensure(home.url, job)
        home.jobs[job.pipeline] = job
        if not home.is_running:
            self._start(home)

    def _start(self, home: Home) -> None:
        meter = self._meter.of(lambda pipeline: home.jobs.get(pipeline))
        home.engine = self._make_engine(
            home.url,
            home.identity,
            home.control,
            home,
            JobObserver(self._observer, home.place, meter, home.heard),
            meter,
        )
        home.task = asyncio.create_task(_named(home.place, home.engine), name=f"engine {home.place}")
        home.task.add_done_callback(lambda task: self._ended(home, task))
        log.info("job_engine_started", database=home.place)

    def _ended(self, home: Home, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("job_engine_failed", database=home.place, message=in_a_jobs_words(_sentence(exc)))
        home.heard(_NOTHING)

    async def _sweep(self, home: Home) -> None:
        """Detach pipelines of jobs that were canceled or deleted while no daemon ran."""
        living = self._living()
        for pipeline, owner in (await self._targets.attached(home.url, home.control)).items():
            if owner not in living:
                await self._targets.detach(home.url, home.control, pipeline, owner)

    # -- watching ---------------------------------------------------------------------------------------------------

    async def _watch(self, home: Home, job: Job, report: JobReport) -> None:
        scribe, course = _Scribe(report), Course()
        while True:
            pulse = home.pulse
            if not home.is_running:
                raise home.fault()
            member = home.members.get(job.pipeline)
            if member is not None:
                await scribe.write(member)
                await self._mend(home, job, member, course)
            else:
                await scribe.waits(home.away())
            await pulse.wait()

    async def _mend(self, home: Home, job: Job, member: PipelineStatus, course: Course) -> None:
        """Ask for the pipeline again while it is in error, now and then.

        The engine tries again by itself, but a table that was dropped and made anew is not in the publication.
        """
        now = time.monotonic()
        if member.state is not PipelineState.ERROR:
            course.going()
        elif now >= course.retry_at:
            course.failed(now)
            async with home.turn:
                if home.jobs.get(job.pipeline) is job:
                    with contextlib.suppress(WalvecError):  # the reason in its row stands
                        await self._targets.check(job, home.url)  # by now it may be another's table of that name
                        await self._targets.ensure(home.url, job)

    # -- leaving ----------------------------------------------------------------------------------------------------

    async def discard(self, job: Job) -> None:
        """Detach the job's pipeline. With the last one of a database its engine ends, and its slot is dropped."""
        home = await self._home(job)
        async with home.turn:
            holder = home.jobs.get(job.pipeline)
            if holder is None or holder.id == job.id:
                await self._targets.detach(home.url, home.control, job.pipeline, job.id.owner)
                home.choices.pop(job.pipeline, None)
            if not home.jobs:
                await self._sweep(home)
            if home.jobs or await self._targets.attached(home.url, home.control):
                return
            await home.stop()
            await self._targets.release(home.url, home.control)
            log.info("job_engine_released", database=home.place)

    async def close(self) -> None:
        """Let all engines finish what is in flight. Slots stay: the next start goes on where this one ended."""
        await asyncio.gather(*(home.stop() for home in self.homes.values()))


class _Scribe:
    """Writes into a job's row what its pipeline says: each thing once, but for why it waits."""

    def __init__(self, report: JobReport) -> None:
        self._report = report
        self._begun = False
        self._finished = False
        self._failure = ""
        self._waits = ""

    async def waits(self, reason: str) -> None:
        """Say again and again why nothing is done: what is written of that goes by how long it lasts."""
        if reason or self._waits:
            self._waits = reason
            await self._report.waits(reason)

    async def write(self, member: PipelineStatus) -> None:
        if member.state is PipelineState.ERROR:
            if member.reason != self._failure:
                self._failure, self._begun = member.reason, False
                await self._report.failed(member.reason)
            return
        if member.state not in AT_WORK:
            await self.waits(member.reason)
            return
        await self.waits("")
        if not self._begun:
            self._begun, self._failure = True, ""
            await self._report.started()
        if member.state is PipelineState.BACKFILLING and member.backfill_total and not self._finished:
            await self._report.progress(min(99, 100 * member.backfill_done // member.backfill_total))
        elif member.state is not PipelineState.BACKFILLING and member.backfilled and not self._finished:
            self._finished = True
            await self._report.finished()


async def _named(place: str, engine: RunningEngine) -> None:
    """Run an engine whose every line in the log names its database: tasks and threads of the engine inherit that."""
    structlog.contextvars.bind_contextvars(database=place)
    await engine.run()


def written_twice(job: Job, holder: str) -> PipelineFault:
    """Return what is said to the later of two jobs that would write one column."""
    return PipelineFault(
        f"Column {job.column} of {job.table} is written by job {holder} already.",
        "Cancel that one first, or name another dst_column.",
    )


def _sentence(exc: BaseException) -> str:
    return str(exc) if isinstance(exc, WalvecError) else type(exc).__name__
