"""One pipeline at work: takes dirty keys, delivers them, scans when a scan is due, and moves overflow to the queue.

There is no batch timer. Whenever a window is free, what is there is taken: at low load that is one row at once, at high
load full batches. Live changes go before what a scan found, and those before what waits in the durable queue.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from cdc.errors import Unavailable
from cdc.flow.dirty import Claim, Work
from cdc.flow.disposition import backoff_s
from cdc.ports import Failures, Observer, Target
from cdc.services.delivery import Delivery, ModelAway
from cdc.services.desk import Desk
from cdc.services.gate import ModelGate, Priority
from cdc.services.scan import Progress, Scan
from cdc.services.tasks import end
from cdc.services.writer import Writer

T = TypeVar("T")

WINDOWS = 3
"""Windows of work under way at once: one is written while one is embedded and the next is prepared."""

BATCHES_PER_WINDOW = 4
SCANNED_PER_WINDOW = 16
"""The same for what a scan found, where the model pads: of more texts, more are alike. Nobody waits for one of them."""
WINDOW_BYTES = 4 << 20
QUEUE_PAGE = 4096
SPILL_PAGE = 10_000


@dataclass(frozen=True, slots=True)
class Tuning:
    """What the settings say about work. ``batch_delay_s`` is waited before a window is taken, to fill it."""

    batch_rows: int
    batch_delay_s: float
    max_attempts: int


Barrier = Callable[[], Awaitable[None]]
"""Returns once whatever was written before the stream named the table is visible to a scan."""


class Pipeline:
    """Runs one pipeline until cancelled, or until a fault that it cannot mend is raised from :meth:`run`."""

    def __init__(
        self,
        desk: Desk,
        target: Target,
        gate: ModelGate,
        observer: Observer,
        failures: Failures | None,
        tuning: Tuning,
        progress: Progress,
        *,
        barrier: Barrier,
        settled: Callable[[], None],
        backfilled: Callable[[], Awaitable[None]],
    ) -> None:
        self.desk = desk
        self.target = target
        self.progress = progress
        self.paused = False
        self.queued = 0
        self.gate = gate
        self._tuning = tuning
        self._barrier = barrier
        self._backfilled = backfilled
        self._settled_outside = settled
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._windows: set[asyncio.Task[None]] = set()
        self._scanning = asyncio.Event()
        self._noted = asyncio.Event()  # what was asked for stands in the control schema
        self._noted.set()
        self._loading: asyncio.Task[None] | None = None
        self._loaded = Claim()
        if progress.reason is not None:
            self._scanning.set()
        self.writer = Writer(desk, target, observer, failures, self._settled)
        self._delivery = Delivery(desk, target, gate, self.writer, observer, tuning.max_attempts)
        self.scan = Scan(desk, target, progress, self._moved, self._wake, self.writer.between)
        self._failure: asyncio.Future[None] | None = None

    # -- from outside -----------------------------------------------------------------------------------------------

    def notify(self) -> None:
        """Say that keys became dirty or settled. Call it from the event loop."""
        self._wake.set()
        self._moved.set()

    def reconcile(self, reason: str) -> None:
        """Have the source scanned from the start, after the scan that is under way, if one is.

        The scan begins once :meth:`noted` has been called: one that ends before would leave the note of it behind.
        """
        self.scan.asked = reason
        self._noted.clear()
        self._scanning.set()

    def noted(self) -> None:
        """Hear that the scan stands in the control schema as due."""
        self._noted.set()

    @property
    def unprocessed(self) -> int:
        """Rows known to wait or to be in flight, and during a scan those not yet looked at."""
        progress = self.progress
        ahead = max(0, progress.total - progress.done) if progress.reason and progress.phase == "rows" else 0
        return max(self.desk.dirty.rows + self.queued, ahead)

    @property
    def is_drained(self) -> bool:
        """Whether a polite stop has nothing to wait for: what is pending cannot be embedded now, or nothing is."""
        if not self.gate.is_up:
            return True
        pending = self.desk.dirty.rows and not self.paused
        return not pending and not self._windows and self.desk.dirty.truncation is None

    # -- running ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled.

        Raises:
            PipelineFault: source, destination or a setting must be mended; the pipeline can be made anew afterwards.
            Fenced: another consumer has taken over.
        """
        self._failure = asyncio.get_running_loop().create_future()
        self.queued = await self._patiently(self.target.queued)
        parts = [
            asyncio.create_task(part(), name=f"{self.desk.name} {part.__name__}")
            for part in (self._dispatch, self.writer.run, self._scan)
        ]
        self._wake.set()
        try:
            done, _ = await asyncio.wait([*parts, self._failure], return_when=asyncio.FIRST_COMPLETED)
            for finished in done:
                finished.result()
        finally:
            tasks = [*parts, *self._windows, *([self._loading] if self._loading is not None else [])]
            await end(tasks)
            self._failure.cancel()

    async def _dispatch(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._truncate()
            # While the model is away nothing is taken, and the engine's next turn looks again: a truncation, which
            # needs no model, must not wait for it.
            while len(self._windows) < WINDOWS and not self.paused and self.gate.is_up:
                if self._tuning.batch_delay_s and 0 < self.desk.dirty.stream_rows < self._tuning.batch_rows:
                    await asyncio.sleep(self._tuning.batch_delay_s)
                self._load_soon()
                works, priority = self._take()
                if not works:
                    break
                self._start(works, priority)

    def _take(self) -> tuple[list[Work], Priority]:
        rows = self._tuning.batch_rows * BATCHES_PER_WINDOW
        found = self._tuning.batch_rows * (SCANNED_PER_WINDOW if self.gate.model.pads else BATCHES_PER_WINDOW)
        dirty = self.desk.dirty
        with self.desk.lock:
            works = dirty.take(rows, WINDOW_BYTES)
            if works or len(self._windows) >= WINDOWS - 1:  # a scan leaves one window to live changes
                return works, Priority.LIVE
            return dirty.take_found(found, WINDOW_BYTES), Priority.SCAN

    def _start(self, works: list[Work], priority: Priority) -> None:
        # A task that is cancelled before its first step runs none of its code: till then the works are noted here.
        begun: list[bool] = []
        task = asyncio.create_task(self._window(works, priority, begun), name=f"{self.desk.name} window")
        self._windows.add(task)
        task.add_done_callback(lambda _: None if begun else self._put_back(works))
        task.add_done_callback(self._window_done)

    def _put_back(self, works: list[Work]) -> None:
        with self.desk.lock:
            for work in works:
                self.desk.dirty.requeue(work)

    async def _window(self, works: list[Work], priority: Priority, begun: list[bool]) -> None:
        begun.append(True)
        try:
            await self._delivery.deliver(works, priority)
        except ModelAway:
            return  # the works are dirty again, and may be queued durably while the model is away
        except Unavailable:
            await asyncio.sleep(1.0)  # likewise; the database is away, or a lock was not to be had

    def _window_done(self, task: asyncio.Task[None]) -> None:
        self._windows.discard(task)
        exc = None if task.cancelled() else task.exception()
        if exc is not None and self._failure is not None and not self._failure.done():
            self._failure.set_exception(exc)
        self.notify()

    def _settled(self) -> None:
        self.queued = max(0, self.queued - self.writer.dequeued)
        self.writer.dequeued = 0
        self._moved.set()
        self._settled_outside()

    async def _truncate(self) -> None:
        commit = self.desk.dirty.truncation
        if commit is None or self.desk.dirty.inflight_rows:
            return  # what is in flight is older: it must land before the destination is emptied
        written = await self._patiently(lambda: self.target.truncate(commit.lsn))
        self.writer.embeddings = written.embeddings
        self.queued = max(0, self.queued - written.dequeued)
        with self.desk.lock:
            self.desk.dirty.truncated(commit)
        self.notify()
        self._settled_outside()

    async def _scan(self) -> None:
        while True:
            await self._scanning.wait()
            self._scanning.clear()
            self._restart()
            await self._noted.wait()
            for attempt in itertools.count(1):
                try:
                    await self._barrier()
                    await self.scan.run(self._restart)
                    self.writer.embeddings = self.scan.embeddings
                    if self.progress.reason is not None:
                        self._scanning.set()
                    elif self.scan.asked is None:  # else it was asked for while this scan's end was being noted
                        await self._backfilled()
                    break
                except Unavailable:
                    await asyncio.sleep(backoff_s(attempt))

    def _restart(self) -> bool:
        """Set the progress to the start of the scan that was asked for, if one was; tell whether so."""
        if self.scan.asked is None:
            return False
        progress = self.progress
        progress.reason, progress.phase, progress.cursor, progress.done = self.scan.asked, "rows", None, 0
        self.scan.asked = None
        return True

    # -- the durable queue ------------------------------------------------------------------------------------------

    def _load_soon(self) -> None:
        """Have a page of the durable queue taken up once the last one is done, however busy the stream is.

        Its keys stand in line with the stream's, so neither starves the other.
        """
        busy = self._loading is not None and not self._loading.done()
        if self.queued and not busy and not self._loaded.outstanding:
            self._loading = asyncio.create_task(self._load(), name=f"{self.desk.name} load")
            self._loading.add_done_callback(self._window_done)

    async def look_at_queue(self) -> None:
        """Take up keys that are in the durable queue with nothing known of them: a person has put them there.

        Raises:
            WalvecError: as the target does.
        """
        if not self.queued:
            self.queued = await self.target.queued()
            self.notify()

    async def _load(self) -> None:
        keys = await self._patiently(lambda: self.target.dequeue(QUEUE_PAGE))
        self._loaded = Claim(max((lsn for _, lsn in keys), default=0))
        with self.desk.lock:
            for key, _ in keys:
                self.desk.dirty.load(key, self._loaded)
        if not keys:  # leased by others, or the count is off: look again
            await asyncio.sleep(1.0)
            self.queued = await self._patiently(self.target.queued)

    async def spill(self) -> int:
        """Move a page of pending stream keys to the durable queue, so that their WAL can be acknowledged."""
        with self.desk.lock:
            works = self.desk.dirty.spill(SPILL_PAGE)
            counted = self.desk.count.counted
        if not works:
            return 0
        try:
            await self._delivery.visible(works)
            gained = await self.target.enqueue(works, counted)
        except BaseException:
            with self.desk.lock:
                for work in works:
                    self.desk.dirty.requeue(work)
            raise
        with self.desk.lock:
            for work in works:
                self.desk.dirty.settle(work)
            self.desk.count.persisted(counted)
        self.queued += gained
        self.notify()
        self._settled_outside()
        return len(works)

    async def save_count(self) -> None:
        """Make the count of source rows durable, if it is not."""
        with self.desk.lock:
            if not self.desk.count.unsaved:
                return
            counted = self.desk.count.counted
        await self.target.save_count(counted)
        with self.desk.lock:
            self.desk.count.persisted(counted)
        self._settled_outside()

    async def _patiently(self, action: Callable[[], Awaitable[T]]) -> T:
        for attempt in itertools.count(1):
            try:
                return await action()
            except Unavailable:
                await asyncio.sleep(backoff_s(attempt))
        raise AssertionError("unreachable")
