"""The director of one control database: its books are read, and every job is started, stopped and tried again.

Each job is looked after in a task of its own, so that one that fails never stops another. What to do about a job is
decided by :mod:`cdc.flow.jobs`; when to look is told by the feed, by a job that ended, and by the clock where a try is
due.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog

from cdc.errors import Unavailable, WalvecError
from cdc.flow.disposition import backoff_s
from cdc.flow.job_rows import read
from cdc.flow.jobs import Step, conflicts, decide
from cdc.jobs import EmbeddingSpec, JobId, JobKind, JobState
from cdc.ports import JobRunner
from cdc.ports.books import Books, Feed, Uncastable, Usage
from cdc.services.job_life import Life, Resolve
from cdc.services.job_member import Member
from cdc.services.job_meter import JobMeter
from cdc.services.tasks import end
from cdc.status import HealthCheck

log = structlog.get_logger()

LONG_S = 0.05
"""A look that took longer is followed by a pause of the same length."""

UNREAD = "it has not been read yet"
"""The trouble of a director that has only begun."""

USAGE_S = 1.0
"""Seconds between notes of what jobs used."""


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
        self.trouble = UNREAD
        self._books = books
        self._label = label
        self._meter = meter
        self._stopping = asyncio.Event()
        self._wake = asyncio.Event()
        self._heard: set[int] = set()
        self._looks = 0
        self._life = Life(books, runners, resolve, clean, lambda: self._looks)
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
        """Return the jobs that are to run here, as they are called among those of this control database."""
        return {str(id) for id in self._living()}

    def owners(self) -> set[str]:
        """Return the same as target databases know them (:attr:`cdc.jobs.JobId.owner`)."""
        return {id.owner for id in self._living()}

    def _living(self) -> list[JobId]:
        return [
            member.id
            for member in self.members.values()
            if member.asked is not None and not member.asked.canceled and member.asked.label == self._label
        ]

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
        living = self.living()
        waiting = [m for m in self.members.values() if m.waits and str(m.id) in living]
        said = [f"{len(failed)} jobs have failed"] if failed else []
        said += [f"{len(waiting)} jobs wait; job {waiting[0].id}: {waiting[0].waits}"] if waiting else []
        return HealthCheck(name, "warn" if said else "ok", "; ".join(said))

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
                began = time.monotonic()
                await self._look()
                if (took := time.monotonic() - began) > LONG_S:  # large tables, which our own writes change, too
                    await asyncio.sleep(min(took, 1.0))
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
            for member in self.members.values():
                await self._life.leave(member, None, False)
        with contextlib.suppress(WalvecError):
            await self._use()
        await self._books.close()

    async def _open(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            attempt += 1
            try:
                await self._books.open()
            except Unavailable as exc:
                self.trouble = self._life.said(exc)
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
        due = [when for when in due if when < math.inf]
        timeout = max(0.0, min(due) - now) + 0.001 if due else None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), 1.0 if self.trouble else timeout)

    # -- looking ----------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Read the books, and take for every job the step that is due. What goes wrong is tried again in a second."""
        self._looks += 1
        began, heard = self._looks, frozenset(self._heard)
        try:
            rows = await self._books.read()
            self._heard -= {xid for xid in heard if self._books.covers(xid)}
            self._take_all(rows, began)
        except Exception as exc:  # whatever a table holds, jobs under way go on
            said = self._life.said(exc)
            if said != self.trouble:
                log.error("jobs_unreadable", database=self.place, message=said)
            self.trouble = said
        else:
            self.trouble = ""

    def _take_all(self, rows: Mapping[JobId, tuple[JobKind, Mapping[str, Any]]], began: int) -> None:
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
            course.seen = asked.digest
            self._live(member, self._life.begin(member, asked, member.task, member.clearing), clearing=False)
        elif step is Step.DISCARD:
            member.course.running, member.course.discarded = False, True
            self._live(member, self._life.leave(member, member.task, member.clearing), clearing=True)
        elif step is Step.REST and member.asked is None and (member.task is None or member.task.done()):
            self.members.pop(member.id, None)
        elif step is Step.REST and str(member.id) in self.living():
            assert member.asked is not None
            member.course.seen = member.asked.digest

    def _live(self, member: Member, work: Awaitable[None], *, clearing: bool) -> None:
        member.clearing = clearing
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        member.task = task
        task.add_done_callback(lambda _: self._wake.set())

    # -- usage ------------------------------------------------------------------------------------------------------

    async def _note_usage(self) -> None:
        while True:
            await asyncio.sleep(USAGE_S)
            try:
                await self._use()
            except Exception as exc:
                log.warning("usage_not_written", database=self.place, message=self._life.said(exc))

    async def _use(self) -> None:
        usage, answers = self._meter.take(self.place)
        self._usage[0].extend(usage)
        self._usage[1].extend(answers)
        if any(self._usage):
            await self._books.use(*self._usage)
            self._usage = ([], [])
