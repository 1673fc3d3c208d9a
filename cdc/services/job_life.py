"""The life of one job in this daemon: it is run as its row has it, its failures are said, and it is cleared away.

Each stage is a task of its own that first waits for the one before it. Whatever goes wrong with a job ends there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog

from cdc.errors import ConfigError, Unavailable, WalvecError
from cdc.flow.job_rows import Asked
from cdc.flow.jobs import AWAY_S, LASTED_S
from cdc.jobs import Job, JobKind
from cdc.ports import JobReport, JobRunner
from cdc.ports.books import Books
from cdc.services.embedding_jobs import written_twice
from cdc.services.job_member import Member, Told, in_a_jobs_words
from cdc.services.tasks import end

log = structlog.get_logger()

CLAIM_S = 1.0
"""Seconds between tries to claim a job that another daemon has."""

CLAIMED = (JobKind.EXTERNAL_INDEX, JobKind.AUTOTUNE)
"""Kinds that are claimed by a lock in the control database; the others have the slot as their lease."""

Resolve = Callable[[str], Awaitable[tuple[str, str]]]
"""``db_connection`` → (URL with its secrets, place). Raises ConfigError. Empty: the control database itself."""


class Life:
    """Runs jobs and clears them away.

    Args:
        books: The tables of jobs.
        runners: What runs them, by kind.
        resolve: Where a job's database is.
        clean: Takes secrets out of a sentence.
        looks: Returns the number of the look at the books that was begun last.
    """

    def __init__(
        self,
        books: Books,
        runners: Mapping[JobKind, JobRunner],
        resolve: Resolve,
        clean: Callable[[str], str],
        looks: Callable[[], int],
    ) -> None:
        self._books = books
        self._runners = runners
        self._resolve = resolve
        self._clean = clean
        self._looks = looks

    def said(self, exc: BaseException) -> str:
        """Return what may be shown of a failure: one of our own is a sentence, of any other only the type is."""
        return self._clean(str(exc) if isinstance(exc, WalvecError) else type(exc).__name__)

    def _told(self, exc: BaseException) -> str:
        """Return the same in the words of a job's row."""
        return self._clean(in_a_jobs_words(self.said(exc)))

    async def begin(self, member: Member, asked: Asked, before: asyncio.Task[None] | None, clearing: bool) -> None:
        """Run a job as its row has it now, after what ran of it before has ended."""
        await _ended(before, clearing)
        course, since = member.course, time.monotonic()
        report = Told(self._books.report(member.id, asked.kind), member, self._looks, self._clean)
        try:
            if asked.kind is JobKind.AUTOTUNE and asked.finished:  # edited: it is not done any more
                await report.anew()
            job = await self._job(member, asked)
            if member.job is not None and _moved(member.job, job):
                await self.discard(member, member.job)
            member.job = job
            if member.conflict is not None:
                raise written_twice(job, str(member.conflict))
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
            log.warning("job_waits", job=str(member.id), message=self._told(exc))
            await report.waits(str(exc))
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
        reason = in_a_jobs_words(reason)
        if member.asked is not None and member.asked.kind is JobKind.AUTOTUNE:
            member.course.failed_for_good()
        else:
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
        claim = await self._books.claim(job.id) if job.kind in CLAIMED else None
        if claim is None and job.kind in CLAIMED:
            raise _Elsewhere
        structlog.contextvars.bind_contextvars(database=job.place)  # of this task: whatever the runner logs says where
        log.info("job_started", job=str(job.id), database=job.place, kind=job.kind.value)
        if claim is None:
            await runner.run(job, report)
            return
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

    async def leave(self, member: Member, before: asyncio.Task[None] | None, clearing: bool) -> None:
        """End a job, and clear away what it keeps here."""
        await _ended(before, clearing)
        course, ran = member.course, member.course.digest != ""
        try:
            job = member.job
            if job is None and member.asked is not None and not member.asked.refusal:
                job = await self._job(member, member.asked)
            if job is not None:
                await self.discard(member, job, patiently=ran)
            if ran:
                log.info("job_canceled", job=str(member.id))
            member.job, course.digest = None, ""
            member.goes_on()
            course.going()
        except Unavailable as exc:
            course.not_cleared(time.monotonic())
            log.warning("job_not_cleared", job=str(member.id), message=self._told(exc))
        except WalvecError as exc:  # its server, role or table is not there any more
            log.warning("job_not_cleared", job=str(member.id), message=self._told(exc))
        except Exception as exc:
            log.error("job_not_cleared", job=str(member.id), message=f"An unexpected fault: {type(exc).__name__}.")

    async def discard(self, member: Member, job: Job, *, patiently: bool = True) -> None:
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


class _Elsewhere(Exception):
    """Another daemon runs the job."""


def _moved(old: Job, new: Job) -> bool:
    """Tell whether an edit leaves behind what the job kept: it is of another place, table or column now."""
    return (old.place, old.table, old.column, old.kind) != (new.place, new.table, new.column, new.kind)


async def _ended(task: asyncio.Task[None] | None, clearing: bool) -> None:
    """Return once ``task`` has ended. It is cancelled, unless it clears away; our own cancellation hurries nothing."""
    if task is None or task.done():
        return
    if not clearing:
        task.cancel()
    try:
        await asyncio.wait((task,)) if clearing else await end([task])
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise
