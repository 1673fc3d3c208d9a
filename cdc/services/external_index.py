"""External index jobs: each builds an index of a vector column, keeps it in step with the table, and serves it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from cdc.errors import ConfigError, PipelineFault, PublicationMissing, SlotInUse, SlotLost, Unavailable, WalvecError
from cdc.jobs import IndexSpec, Job, JobId
from cdc.ports import Observer
from cdc.ports.indexes import Indexes, IndexSource, Observed
from cdc.ports.jobs import JobReport
from cdc.services.index_answers import IndexAnswers, status_name
from cdc.services.index_beside import ALL, HALF, finish
from cdc.services.index_build import Ended, build, folder_of, reopen
from cdc.services.index_checks import StartOver, check
from cdc.services.index_files import IndexRefused
from cdc.services.index_served import Served
from cdc.services.tasks import end
from cdc.services.threads import from_thread, in_thread, whole

log = structlog.get_logger()

_LOOK_S: Final = 0.25
_AGAIN_S: Final = 5.0
_SAVING_S: Final = 30.0  # at the end: longer than that, and the next start reads the journal
_RELEASES: Final = 20  # looks until the server must have let go of the slot of a stream that has ended


@dataclass(frozen=True, slots=True)
class IndexTuning:
    """How indexes are kept.

    ``rebuild_share``: the share of deleted elements at which an index is made fresh. ``journal_bytes``: the least size
    of a journal at which the index is saved; a large index waits until its journal is a quarter of its size.
    ``check_s``: seconds between looks at the table's definition. ``idle_s``: as of the follower. ``rest_s``: seconds
    that an index answers on after its job was ended: that of an edited job goes on at once.
    """

    rebuild_share: float = 0.25
    journal_bytes: int = 32 << 20
    check_s: float = 5.0
    idle_s: float = 5.0
    rest_s: float = 10.0


class IndexRunner(IndexAnswers):
    """Implements :class:`cdc.ports.jobs.JobRunner` for external index jobs, and answers searches in their indexes.

    Args:
        root: Where indexes are saved.
        indexes: Makes them.
        source: Returns the table of a job.
        tuning: How they are kept.
        observer: Told what happens, with the names of :func:`status_name`.
    """

    def __init__(
        self,
        root: Path,
        indexes: Indexes,
        source: Callable[[Job, IndexSpec], IndexSource],
        tuning: IndexTuning,
        observer: Observer | None = None,
    ) -> None:
        super().__init__()
        self._root = root
        self._indexes = indexes
        self._source = source
        self._tuning = tuning
        self._observer = observer
        self._stopping = False
        self._resting: dict[JobId, asyncio.TimerHandle] = {}  # of jobs that were ended, and may go on
        self._building = asyncio.Semaphore(1)  # a build uses all cores, and memory that the next must see gone

    # -- running ----------------------------------------------------------------------------------------------------

    async def run(self, job: Job, report: JobReport) -> None:
        """Build the job's index, or open it as it was saved, and keep it in step until cancelled.

        While the database is away the index stays, and answers as it was. So it does for a while when it is cancelled:
        an edited job is run again at once.
        """
        spec = job.spec
        assert isinstance(spec, IndexSpec)
        self._wake(job.id)
        self._running.add(job.id)
        try:
            await self._run(job, spec, report)
        except Unavailable:
            raise  # it stays, and answers as it is
        except asyncio.CancelledError:
            self._rest(job.id)
            await self._leave(job.id)
            raise
        except (PipelineFault, ConfigError):
            # Only a person can mend it: until then neither WAL nor the table's own writes may suffer for it.
            await self._give_up(job, self._source(job, spec))
            raise
        except BaseException:
            await self._forget(job.id)
            raise
        finally:
            self._running.discard(job.id)

    async def _run(self, job: Job, spec: IndexSpec, report: JobReport) -> None:
        source = self._source(job, spec)
        await report.started()
        over = -_AGAIN_S
        while True:
            try:
                await self._keep(job, spec, source, report)
            except (StartOver, SlotLost, PublicationMissing) as exc:
                log.warning("external_index_restarted", job=str(job.id), message=str(exc))
                if time.monotonic() - over < _AGAIN_S:
                    await asyncio.sleep(_AGAIN_S)  # it happens again and again: not as fast as it can
                over = time.monotonic()
                await self._build(job, spec, source, report)

    async def discard(self, job: Job) -> None:
        """Remove a job's slot, publication and files."""
        assert isinstance(job.spec, IndexSpec)
        await self._forget(job.id)
        source = self._source(job, job.spec)
        await in_thread(source.discard, source.interrupt)
        await asyncio.to_thread(folder_of(self._root, job).remove)

    def stop(self) -> None:
        """Hear that the process ends: jobs that are cancelled from now on save their indexes for the next start."""
        self._stopping = True

    async def _leave(self, id: JobId) -> None:
        """Let an index answer on until its job goes on, or does not; at the end of the process, save it."""
        served = self._served.get(id)
        if served is None or served.is_closed:
            return
        # What is not applied or saved yet is, before the job's claim is given up: the next one may open the same files.
        await whole(asyncio.to_thread(served.settle, _SAVING_S, save=self._stopping))
        if self._stopping:
            await whole(asyncio.to_thread(served.close))

    def _rest(self, id: JobId) -> None:
        tasks = set[asyncio.Task[None]]()

        def over() -> None:
            tasks.add(asyncio.create_task(self._forget(id)))  # held, or it might be collected

        self._wake(id)
        self._resting[id] = asyncio.get_running_loop().call_later(self._tuning.rest_s, over)

    def _wake(self, id: JobId) -> None:
        if (timer := self._resting.pop(id, None)) is not None:
            timer.cancel()

    async def _give_up(self, job: Job, source: IndexSource) -> None:
        """Remove all that is kept for a job that has failed.

        Where the server cannot be asked, slot and files stay: together they are an index, once it can be reached again.
        """
        await self._forget(job.id)
        try:
            for left in reversed(range(_RELEASES)):
                try:
                    await in_thread(source.discard, source.interrupt)
                    break
                except SlotInUse:  # the server has yet to notice that our stream has ended
                    if not left:
                        raise
                    await asyncio.sleep(_LOOK_S)
        except WalvecError as exc:
            log.warning("job_not_cleared", job=str(job.id), message=str(exc))
            return
        await asyncio.to_thread(folder_of(self._root, job).remove)

    async def _forget(self, id: JobId) -> None:
        self._wake(id)
        served = self._served.pop(id, None)
        if served is not None:
            await whole(asyncio.to_thread(served.close))

    async def _keep(self, job: Job, spec: IndexSpec, source: IndexSource, report: JobReport) -> None:
        """Follow the table from what there is; build that first, if it must be."""
        observed = await in_thread(source.observe, source.interrupt)
        served = self._served.get(job.id)
        if served is not None and (not served.adopt(job, spec, observed) or served.follower.failure):
            await whole(asyncio.to_thread(served.close))  # it answers until another one takes its place
        if served is None or served.is_closed:
            served = await self._reopen(job, spec, source, observed) or await self._build(job, spec, source, report)
        else:
            check(served, observed)
        served.follower.meter.tell(self._observer, status_name(job))
        tasks = [
            asyncio.create_task(self._follow(served, source)),
            asyncio.create_task(finish(served, source, report)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            await end(tasks)

    async def _reopen(self, job: Job, spec: IndexSpec, source: IndexSource, observed: Observed) -> Served | None:
        folder = folder_of(self._root, job)

        def work() -> Served | None:
            served = reopen(job, spec, observed, folder, self._indexes, self._tuning.idle_s)
            if served is not None:
                self._served[job.id] = served
            return served

        try:
            return await in_thread(work, source.interrupt)
        except IndexRefused as exc:
            log.warning("external_index_refused", job=str(job.id), message=str(exc))
            return None

    async def _build(self, job: Job, spec: IndexSpec, source: IndexSource, report: JobReport) -> Served:
        """Build anew. An index that is there answers until the new one takes its place, but follows no more."""
        old = self._served.get(job.id)
        if old is not None:
            await whole(asyncio.to_thread(old.close))
        stop = threading.Event()
        folder = folder_of(self._root, job)
        most = HALF if spec.name else ALL

        def work() -> Served:
            served = build(job, spec, source, folder, self._indexes, self._tuning.idle_s, note, stop)
            self._served[job.id] = served  # here, so that it is known even where nobody waits for it any more
            return served

        def note(done: int, total: int) -> None:
            self._builds[job.id] = done, total

        def percent() -> int:
            done, total = self._builds[job.id]
            return most * done // max(total, 1)

        self._builds[job.id] = 0, 0
        try:
            return await self._built(work, source, stop, report, percent)
        finally:
            del self._builds[job.id]

    async def _built(
        self,
        work: Callable[[], Served],
        source: IndexSource,
        stop: threading.Event,
        report: JobReport,
        percent: Callable[[], int],
    ) -> Served:
        async with self._building:
            telling = asyncio.create_task(_tell(report, percent))
            try:
                return await in_thread(work, source.interrupt, stop)
            except Ended:
                raise Unavailable("The build was ended.") from None
            finally:
                await end([telling])

    # -- following --------------------------------------------------------------------------------------------------

    async def _follow(self, served: Served, source: IndexSource) -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        follower = served.follower
        follower.connected()
        wake = from_thread(loop, ended.set)
        follower.failed = wake
        stream = await source.stream(follower, wake)
        refreshing: asyncio.Task[None] | None = None
        try:
            if (stream.system, stream.timeline) != (served.manifest.system, served.manifest.timeline):
                raise StartOver("The server was failed over or restored.")
            follower.wake = stream.acknowledge
            stream.begin()
            served.is_followed = True
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), self._tuning.check_s)
                ended.clear()
                failure = stream.failure or follower.failure
                if isinstance(failure, PipelineFault):
                    # Perhaps the table can be followed as it is now, from a new start.
                    check(served, await in_thread(source.observe, source.interrupt))
                if failure is not None:
                    raise failure
                if follower.gap:
                    raise StartOver(f"Changes were missed: {follower.gap}.")
                check(served, await in_thread(source.observe, source.interrupt))
                refreshing = self._tend(served, refreshing)
        finally:
            follower.wake, served.is_followed = lambda: None, False
            if refreshing is not None:
                await end([refreshing])
            await whole(stream.close(drain=True))

    def _tend(self, served: Served, refreshing: asyncio.Task[None] | None) -> asyncio.Task[None] | None:
        """Save the index when its journal has grown, have it made fresh when it has decayed, and say what it lacks."""
        served.tell_skipped(time.monotonic())
        size = served.index.count * 4 * (served.index.dimension or 0)
        if served.journal.bytes > max(self._tuning.journal_bytes, size // 4):
            served.follower.checkpoint()
        if refreshing is not None and not refreshing.done():
            return refreshing
        if not served.index.decayed(self._tuning.rebuild_share):
            return None
        return asyncio.create_task(self._refresh(served))

    async def _refresh(self, served: Served) -> None:
        stop = threading.Event()

        def work() -> bool:
            rows = served.index.count
            self._indexes.check_room(served.spec, served.index.dimension or 1, rows)
            return served.index.rebuild(stop.is_set)

        try:
            async with self._building:
                if await in_thread(work, None, stop):
                    log.info("external_index_refreshed", job=str(served.job.id), rows=served.index.count)
                    served.follower.checkpoint()
        except ConfigError as exc:
            log.warning("external_index_not_refreshed", job=str(served.job.id), message=str(exc))


async def _tell(report: JobReport, percent: Callable[[], int]) -> None:
    """Report progress until cancelled."""
    last = 0
    while True:
        await asyncio.sleep(_LOOK_S)
        if (now := percent()) > last:
            last = now
            await report.progress(now)
