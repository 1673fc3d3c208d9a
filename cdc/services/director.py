"""The director of one control database: its books are read, and every job is started, stopped and tried again.

Each job is looked after in a task of its own, so that one that fails never stops another. What to do about a job is
decided by :mod:`cdc.flow.jobs`; when to look is told by the feed, by a job that ended, and by the clock where a try is
due.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import structlog

from cdc.errors import ConfigError, Unavailable, WalvecError
from cdc.flow.disposition import backoff_s
from cdc.flow.jobs import AWAY_S, LASTED_S, Asked, Course, Step, conflicts, decide, read
from cdc.jobs import EmbeddingSpec, Job, JobId, JobKind, JobState
from cdc.ports import JobReport, JobRunner
from cdc.ports.books import Books, Feed, Uncastable, Usage
from cdc.services.embedding_jobs import written_twice
from cdc.services.job_meter import JobMeter
from cdc.services.tasks import end
from cdc.status import HealthCheck

log = structlog.get_logger()

CLAIM_S = 1.0
"""Seconds between tries to claim a job that another daemon has."""

USAGE_S = 1.0
"""Seconds between notes of what jobs used."""

CLAIMED = (JobKind.EXTERNAL_INDEX, JobKind.AUTOTUNE)
"""Kinds that are claimed by a lock in the control database; the others have the slot as their lease."""

Resolve = Callable[[str], Awaitable[tuple[str, str]]]
"""``db_connection`` → (URL with its secrets, place). Raises ConfigError. Empty: the control database itself."""


@dataclass(slots=True, eq=False)
class Member:
    """A job that the director knows of."""

    id: JobId
    asked: Asked | None = None
    course: Course = field(default_factory=Course)
    job: Job | None = None  # as it ran last
    task: asyncio.Task[None] | None = None
    clearing: bool = False  # the task clears away, which is not broken off
    told_at: int = 0  # the look that was under way when the row was last written
    conflict: JobId | None = None


class Director:
    """Runs until :meth:`stop`.

    Args:
        books: The tables of jobs.
        runners: What runs them, by kind.
        resolve: Where a job's database is.
        label: The daemon's own label.
        meter: What jobs used.
        clean: Takes secrets out of a sentence.
    """

    def __init__(
        self,
        books: Books,
        runners: Mapping[JobKind, JobRunner],
        resolve: Resolve,
        label: str,
        meter: JobMeter,
        clean: Callable[[str], str],
    ) -> None:
        self.members: dict[JobId, Member] = {}
        self.trouble = "it has not been read yet"
        self._books = books
        self._runners = runners
        self._resolve = resolve
        self._label = label
        self._meter = meter
        self._clean = clean
        self._stopping = asyncio.Event()
        self._wake = asyncio.Event()
        self._heard: set[int] = set()
        self._looks = 0
        self._usage: tuple[list[Usage], list[Uncastable]] = ([], [])

    # -- from outside -----------------------------------------------------------------------------------------------

    @property
    def place(self) -> str:
        """The control database."""
        return self._books.place

    def changed(self, xid: int | None) -> None:
        """Hear that a commit of transaction ``xid`` (None: something unknown) changed a book."""
        if xid is not None:
            self._heard.add(xid)
        self._wake.set()

    def living(self) -> set[str]:
        """Return the jobs that are to run here."""
        return {
            str(member.id)
            for member in self.members.values()
            if member.asked is not None and not member.asked.canceled and member.asked.label == self._label
        }

    def counts(self) -> Counter[tuple[str, str]]:
        """Return how many jobs there are, by (kind, state)."""
        asked = [member.asked for member in self.members.values() if member.asked is not None]
        return Counter((one.kind.value, one.state.value) for one in asked)

    def check(self) -> HealthCheck:
        """Return how the control database and its jobs are."""
        name = f"jobs {self.place}"
        if self.trouble:
            return HealthCheck(name, "error", self.trouble)
        failed = [m for m in self.members.values() if m.asked is not None and m.asked.state is JobState.FAILED]
        return HealthCheck(name, "warn" if failed else "ok", f"{len(failed)} jobs have failed" if failed else "")

    async def experiments(self, model: str) -> Sequence[Mapping[str, object]]:
        """Return what earlier autotune jobs found for a model."""
        return await self._books.experiments(model)

    def stop(self) -> None:
        """End :meth:`run`. What jobs keep stays: the next start goes on with it."""
        self._stopping.set()
        self._wake.set()

    # -- running ----------------------------------------------------------------------------------------------------

    async def run(self, make_feed: Callable[[Callable[[int | None], None]], Feed]) -> None:
        """Run the jobs until stopped.

        Raises:
            ConfigError: at the start, the books are not what they should be; later that is waited for.
        """
        await self._open()
        feed = asyncio.create_task(make_feed(self.changed).run(), name=f"feed {self.place}")
        usage = asyncio.create_task(self._note_usage(), name=f"usage {self.place}")
        try:
            while not self._stopping.is_set():
                self._wake.clear()
                await self._look()
                if not self._heard or self.trouble:
                    await self._pause()
                else:  # the commit that was heard of is not visible yet
                    await asyncio.sleep(0.002)
        finally:
            tasks = [member.task for member in self.members.values() if member.task is not None]
            await end([feed, usage, *tasks])

    async def close(self, *, discard: bool = False) -> None:
        """Write down what is left to be, and let go of the connections.

        Args:
            discard: Clear away what the jobs keep: the database is not this daemon's any more.
        """
        if discard:
            jobs = [member.job for member in self.members.values() if member.job is not None]
            for outcome in await asyncio.gather(*map(self._discarded, jobs), return_exceptions=True):
                if isinstance(outcome, BaseException):
                    log.warning("job_not_cleared", database=self.place, message=self._said(outcome))
        with contextlib.suppress(WalvecError):
            await self._use()
        await self._books.close()

    async def _discarded(self, job: Job) -> None:
        await self._runners[job.kind].discard(job)

    async def _open(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            attempt += 1
            try:
                await self._books.open()
            except Unavailable as exc:
                self.trouble = self._said(exc)
                log.warning("database_unavailable", database=self.place, message=self.trouble)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), backoff_s(attempt))
            else:
                return

    async def _pause(self) -> None:
        """Sleep until there is something to look at."""
        now = time.monotonic()
        due = [m.course.retry_at for m in self.members.values() if m.course.retry_at > now]
        due += [m.course.clear_at for m in self.members.values() if m.course.clear_at > now]
        timeout = max(0.0, min(due) - now) + 0.001 if due else None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), 1.0 if self.trouble else timeout)

    # -- looking ----------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Read the books, and take for every job the step that is due."""
        self._looks += 1
        began, heard = self._looks, frozenset(self._heard)
        try:
            rows = await self._books.read()
        except WalvecError as exc:
            said = self._said(exc)
            if said != self.trouble:
                log.error("jobs_unreadable", database=self.place, message=said)
            self.trouble = said
            return
        self.trouble = ""
        self._heard -= {xid for xid in heard if self._books.covers(xid)}
        for id, (kind, row) in rows.items():
            member = self.members.setdefault(id, Member(id))
            asked = read(kind, row)
            if began <= member.told_at and member.asked is not None:  # read before we wrote the row
                asked = replace(asked, failed=member.asked.failed, finished=member.asked.finished)
            member.asked = asked
        for member in self.members.values():
            if member.id not in rows:
                member.asked = None
        self._find_conflicts()
        now = time.monotonic()
        for member in list(self.members.values()):
            self._take(member, decide(member.asked, self._label, member.course, now))

    def _find_conflicts(self) -> None:
        """Find the jobs that would write a column which an earlier one writes."""
        living = self.living()
        wanted = [
            (member.id, asked.connection, asked.table, asked.spec.target_column)
            for member in sorted(self.members.values(), key=lambda member: (str(member.id.table), member.id.id))
            if (asked := member.asked) is not None
            and str(member.id) in living
            and asked.table is not None
            and isinstance(asked.spec, EmbeddingSpec)
        ]
        found = conflicts(wanted)
        for member in self.members.values():
            holder = found.get(member.id)
            if member.conflict is not None and holder is None:
                member.course.retry_at = 0.0  # the other one has gone: at once
            member.conflict = holder

    def _take(self, member: Member, step: Step) -> None:
        if step in (Step.START, Step.RESTART):
            asked = member.asked
            assert asked is not None
            course = member.course
            if asked.digest != course.digest:
                course.going()
            course.digest, course.running, course.discarded = asked.digest, True, False
            self._live(member, self._begin(member, asked, member.task, member.clearing), clearing=False)
        elif step is Step.DISCARD:
            member.course.running, member.course.discarded = False, True
            self._live(member, self._leave(member, member.task, member.clearing), clearing=True)
        elif step is Step.REST and member.asked is None and (member.task is None or member.task.done()):
            self.members.pop(member.id, None)

    def _live(self, member: Member, work: Awaitable[None], *, clearing: bool) -> None:
        member.clearing = clearing
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        member.task = task
        task.add_done_callback(lambda _: self._wake.set())

    # -- one job ----------------------------------------------------------------------------------------------------

    async def _begin(self, member: Member, asked: Asked, before: asyncio.Task[None] | None, clearing: bool) -> None:
        """Run a job as its row has it now, after what ran of it before has ended."""
        await _ended(before, clearing)
        course, since = member.course, time.monotonic()
        report = _Told(self._books.report(member.id, asked.kind), member, self._now_looking, self._clean)
        try:
            job = await self._job(member, asked)
            if member.job is not None and _moved(member.job, job):
                await self._discard(member, member.job)
            member.job = job
            if member.conflict is not None:
                raise written_twice(job, str(member.conflict))
            log.info("job_started", job=str(member.id), database=job.place, kind=asked.kind.value)
            await self._run(job, report)
            await report.finished()
            if asked.kind is not JobKind.AUTOTUNE:
                raise Unavailable("It ended by itself.")
            course.going()
            log.info("job_finished", job=str(member.id))
        except _Elsewhere:
            course.tries, course.retry_at = max(course.tries, 1), time.monotonic() + CLAIM_S
        except Unavailable as exc:
            course.failed(time.monotonic(), AWAY_S)
            log.warning("job_waits", job=str(member.id), message=self._said(exc))
        except WalvecError as exc:
            await self._fail(member, report, str(exc))
        except Exception as exc:  # a bug in one job's code must not stop another's; its message may quote a row
            await self._fail(member, report, f"An unexpected fault: {type(exc).__name__}.")
        finally:
            if time.monotonic() - since > LASTED_S:
                course.tries = min(course.tries, 1)
            if member.task is asyncio.current_task():
                course.running = False

    async def _fail(self, member: Member, report: JobReport, reason: str) -> None:
        reason = reason.replace("WALVEC_DATABASE_URL", "db_connection")  # what a job has in its place
        member.course.failed(time.monotonic())
        log.error("job_failed", job=str(member.id), message=self._clean(reason), attempt=member.course.tries)
        await report.failed(reason)

    async def _job(self, member: Member, asked: Asked) -> Job:
        if asked.refusal:
            raise ConfigError(asked.refusal)
        if asked.kind not in self._runners:
            raise ConfigError(f"This daemon runs no {asked.kind.value} jobs.")
        assert asked.table is not None
        assert asked.spec is not None
        url, place = await self._resolve(asked.connection)
        return Job(member.id, asked.kind, url, place, asked.table, asked.spec, asked.label, asked.state, asked.reason)

    async def _run(self, job: Job, report: JobReport) -> None:
        runner = self._runners[job.kind]
        if job.kind not in CLAIMED:
            await runner.run(job, report)
            return
        claim = await self._books.claim(job.id)
        if claim is None:
            raise _Elsewhere
        running = asyncio.ensure_future(runner.run(job, report))
        lost = asyncio.ensure_future(claim.lost())
        try:
            await asyncio.wait((running, lost), return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                raise Unavailable("The control database ended the session that held the job's claim.")
            running.result()
        finally:
            await end([running, lost])
            await claim.release()

    async def _leave(self, member: Member, before: asyncio.Task[None] | None, clearing: bool) -> None:
        """End a job, and clear away what it keeps here."""
        await _ended(before, clearing)
        course, ran = member.course, member.course.digest != ""
        try:
            job = member.job
            if job is None and member.asked is not None and not member.asked.refusal:
                job = await self._job(member, member.asked)
            if job is not None:
                await self._discard(member, job, patiently=ran)
            if ran:
                log.info("job_canceled", job=str(member.id))
            member.job, course.digest = None, ""
            course.going()
        except Unavailable as exc:
            course.discarded, course.clear_at = False, time.monotonic() + 5.0
            log.warning("job_not_cleared", job=str(member.id), message=self._said(exc))
        except WalvecError as exc:  # its server, role or table is not there any more
            log.warning("job_not_cleared", job=str(member.id), message=self._said(exc))
        except Exception as exc:
            log.error("job_not_cleared", job=str(member.id), message=f"An unexpected fault: {type(exc).__name__}.")

    async def _discard(self, member: Member, job: Job, *, patiently: bool = True) -> None:
        runner = self._runners[job.kind]
        if job.kind not in CLAIMED:
            await runner.discard(job)
            return
        while (claim := await self._books.claim(job.id)) is None:
            if not patiently:  # whoever has it clears away
                return
            await asyncio.sleep(CLAIM_S)
        try:
            await runner.discard(job)
        finally:
            await claim.release()

    # -- usage ------------------------------------------------------------------------------------------------------

    async def _note_usage(self) -> None:
        while True:
            await asyncio.sleep(USAGE_S)
            try:
                await self._use()
            except WalvecError as exc:
                log.warning("usage_not_written", database=self.place, message=self._said(exc))

    async def _use(self) -> None:
        usage, answers = self._meter.take(self.place)
        self._usage[0].extend(usage)
        self._usage[1].extend(answers)
        if any(self._usage):
            await self._books.use(*self._usage)
            self._usage = ([], [])

    def _now_looking(self) -> int:
        return self._looks

    def _said(self, exc: BaseException) -> str:
        return self._clean(str(exc) if isinstance(exc, WalvecError) else type(exc).__name__)


class _Elsewhere(Exception):
    """Another daemon runs the job."""


class _Told:
    """A job's report that tells its course, too, and holds no secret. Implements :class:`cdc.ports.JobReport`."""

    def __init__(
        self, report: JobReport, member: Member, looks: Callable[[], int], clean: Callable[[str], str]
    ) -> None:
        self._report = report
        self._member = member
        self._looks = looks
        self._clean = clean

    def _wrote(self, **state: bool) -> None:
        self._member.told_at = self._looks()
        if self._member.asked is not None:
            self._member.asked = replace(self._member.asked, **state)  # type: ignore[arg-type]

    async def started(self) -> None:
        await self._report.started()
        self._member.course.told_failed = False
        self._wrote(started=True, failed=False)

    async def progress(self, percent: int) -> None:
        await self._report.progress(percent)

    async def finished(self) -> None:
        await self._report.finished()
        self._member.course.going()
        self._wrote(finished=True)

    async def failed(self, reason: str) -> None:
        await self._report.failed(self._clean(reason))
        self._wrote(failed=True)
        self._member.course.told_failed = True

    async def result(self, row: Mapping[str, object]) -> None:
        await self._report.result(row)


def _moved(old: Job, new: Job) -> bool:
    """Tell whether an edit leaves behind what the job kept: it is of another place, table or column now."""
    return (old.place, old.table, old.column, old.kind) != (new.place, new.table, new.column, new.kind)


async def _ended(task: asyncio.Task[None] | None, clearing: bool) -> None:
    """Return once ``task`` has ended. It is cancelled, unless it clears away; being cancelled ourselves hurries nothing."""
    if task is None or task.done():
        return
    if not clearing:
        task.cancel()
    try:
        await asyncio.wait((task,)) if clearing else await end([task])
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise
