"""A job that the director knows of, and what is told of it: in its row, and to whoever looks at the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from cdc.errors import WalvecError
from cdc.flow.job_rows import Asked
from cdc.flow.jobs import Course
from cdc.jobs import Job, JobId
from cdc.ports import JobReport

WAITS_S = 30.0
"""A job that has never begun and waits for longer says why in its row, and says it anew at most this often."""


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
    waits: str = ""  # why it does nothing although it has not failed: a server or a model is away
    waits_from: float = 0.0  # since when it waits; seconds of a monotonic clock
    waits_told: tuple[str, float] = ("", 0.0)  # which of its reasons is in the row, and since when

    def goes_on(self) -> None:
        """Note that it waits no more."""
        self.waits, self.waits_told = "", ("", 0.0)


_WORDS = {
    "WALVEC_DATABASE_URL": "db_connection",
    "WALVEC_OPENAI_KEY": "api_token in runtime_params",
    "WALVEC_COHERE_KEY": "api_token in runtime_params",
    "WALVEC_OPENAI_URL": "base_url in runtime_params",
    "WALVEC_MODEL ": "embedding_model ",
}
"""What a job's row has in the place of the consumer's settings."""


def in_a_jobs_words(reason: str) -> str:
    """Return ``reason`` with a job's columns in the place of settings."""
    for setting, column in _WORDS.items():
        reason = reason.replace(setting, column)
    return reason


class Told:
    """A job's report that tells its course, too, and holds no secret. Implements :class:`cdc.ports.JobReport`.

    Args:
        report: Writes the job's row.
        member: The job.
        looks: Returns the number of the look at the books that was begun last.
        clean: Takes secrets out of a sentence.
    """

    def __init__(
        self, report: JobReport, member: Member, looks: Callable[[], int], clean: Callable[[str], str]
    ) -> None:
        self._report = report
        self._member = member
        self._looks = looks
        self._clean = clean

    def _wrote(self, **state: bool) -> None:
        self._member.goes_on()
        self._member.told_at = self._looks()
        if self._member.asked is not None:
            self._member.asked = replace(self._member.asked, **state)  # type: ignore[arg-type]

    async def started(self) -> None:
        await self._report.started()
        self._member.course.told_failed = False
        self._wrote(started=True, failed=False)

    async def anew(self) -> None:
        await self._report.anew()
        self._wrote(started=False, finished=False)

    async def progress(self, percent: int) -> None:
        await self._report.progress(percent)

    async def finished(self) -> None:
        await self._report.finished()
        self._member.course.going()
        self._wrote(finished=True)

    async def failed(self, reason: str) -> None:
        await self._report.failed(self._clean(in_a_jobs_words(reason)))
        self._wrote(failed=True)
        self._member.course.told_failed = True

    async def waits(self, reason: str) -> None:
        """Show at once why the job waits; write it down once that has lasted, as long as the job has never begun."""
        member, now = self._member, time.monotonic()
        if not reason:
            member.goes_on()
            return
        if not member.waits:
            member.waits_from = now
        member.waits = reason = self._clean(in_a_jobs_words(reason))
        told, at = member.waits_told
        begun = member.asked is None or member.asked.started or member.asked.failed
        if begun or reason == told or now - max(member.waits_from, at) < WAITS_S:
            return
        member.waits_told = (reason, now)
        with contextlib.suppress(WalvecError):  # it is told elsewhere, too, and to have said it changes nothing
            await self._report.waits(reason)

    async def result(self, row: Mapping[str, object]) -> None:
        await self._report.result(row)

    async def forget_results(self) -> None:
        await self._report.forget_results()
