"""Puts finished batches into the destination: one transaction at a time per pipeline, as many batches as are waiting.

At low load each batch is written the moment it is ready; under load the batches that finish while a transaction commits
go together in the next one. No timer is needed for that.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from cdc.errors import RowRefused, Unavailable
from cdc.flow.dirty import Kind
from cdc.flow.disposition import backoff_s
from cdc.ports import Failures, Observer, Target, Write
from cdc.services.desk import NO_TEXT, Desk

log = structlog.get_logger()

RECENT = 20
"""Dead letters that are remembered for the status page."""

MAX_ROWS = 4096
"""Rows in one write-back transaction; past a thousand or so, more gain nothing."""


@dataclass(slots=True)
class _Waiting:
    write: Write
    done: asyncio.Future[None]


class Writer:
    """The one who writes for a pipeline. ``settled`` is called after each transaction.

    ``failures`` hears of the rows that were set aside.
    """

    def __init__(
        self,
        desk: Desk,
        target: Target,
        observer: Observer,
        failures: Failures | None,
        settled: Callable[[], None],
    ) -> None:
        self._desk = desk
        self._target = target
        self._observer = observer
        self._failures = failures
        self._settled = settled
        self._waiting: list[_Waiting] = []
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self.embeddings = 0
        self.dequeued = 0
        self.buried = 0
        self._ended = False
        self.recent_errors: deque[dict[str, object]] = deque(maxlen=RECENT)

    async def put(self, write: Write) -> None:
        """Have ``write`` carried out; its works are settled, or back among the dirty keys, when this returns.

        Raises:
            RowRefused: the database refused a value of this very write; nothing of it was written.
            Unavailable: the writer has ended.
            WalvecError: the pipeline cannot go on; nothing of the write is settled.
        """
        if self._ended:
            raise Unavailable("The pipeline is ending.")
        item = _Waiting(write, asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        self._wake.set()
        await item.done

    async def run(self) -> None:
        """Write until cancelled. Nobody may wait for it afterwards."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    async with self._turn:
                        await self._write(self._next())
        finally:
            self._ended = True
            for item in self._waiting:
                item.done.cancel()

    def _next(self) -> list[_Waiting]:
        """Take the writes that can share a transaction with the first one."""
        first = self._waiting.pop(0)
        together, rows = [first], len(first.write.works)
        if first.write.dead:
            return together
        rest = []
        for item in self._waiting:
            size = len(item.write.works)
            if item.write.guarded == first.write.guarded and not item.write.dead and rows + size <= MAX_ROWS:
                together.append(item)
                rows += size
            else:
                rest.append(item)
        self._waiting = rest
        return together

    async def _write(self, items: list[_Waiting]) -> None:
        try:
            await self._transaction(_merged([item.write for item in items]))
        except RowRefused as exc:
            if len(items) == 1:
                _fail(items, exc)
                return
            for item in items:
                await self._write([item])
        except asyncio.CancelledError:
            for item in items:
                item.done.cancel()
            raise
        except Exception as exc:
            _fail(items, exc)
        else:
            for item in items:
                if not item.done.done():
                    item.done.set_result(None)

    async def between(self) -> None:
        """Wait until the transaction that is under way, if one is, has ended."""
        async with self._turn:
            pass

    async def _transaction(self, write: Write) -> None:
        desk = self._desk
        with desk.lock:
            if any(work.kind < Kind.DELETE and work.lsn <= desk.replay_until for work in write.works):
                write.guarded = True  # its text may have been overtaken with no event: the row itself decides
        if self._target.in_place:
            with desk.lock:  # before the write: the stream may show it before the write returns
                for work in (*write.upserts, *(letter.work for letter in write.dead)):
                    desk.expect(work.key, work.hash)
                for work in write.removals:
                    desk.expect(work.key, NO_TEXT)
        for attempt in range(1, 1_000_000):
            with desk.lock:
                counted = desk.count.counted
            started = time.perf_counter()
            try:
                written = await self._target.write(write, counted)
                break
            except Unavailable:
                # The works stay in flight: whatever else fails, they are not forgotten.
                await asyncio.sleep(backoff_s(attempt, most=2.0))
        self._observer.written(desk.name, time.perf_counter() - started)
        self.embeddings = written.embeddings
        self.dequeued += written.dequeued
        self.buried += len(write.dead)
        if write.dead:
            self._mourn(write)
        refused = {id(work) for work in written.refused}
        with desk.lock:
            for work in write.works:
                if id(work) in refused:
                    desk.dirty.requeue(work, Kind.REREAD)
                else:
                    desk.dirty.settle(work)
            desk.count.persisted(counted)
        self._report(write, refused)
        self._settled()

    def _mourn(self, write: Write) -> None:
        """Say which rows were set aside, by reason; keys and texts stay out of the log."""
        for letter in write.dead[-RECENT:]:
            self.recent_errors.append(
                {
                    "pipeline": self._desk.name,
                    "step": letter.step,
                    "category": letter.category,
                    "message": letter.message,
                    "attempts": letter.attempts,
                    "last_seen": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                }
            )
        log.warning("row_dead_lettered", pipeline=self._desk.name, rows=len(write.dead), reason=write.dead[0].category)
        if self._failures is not None:
            self._failures.buried(self._desk.name, write.dead)

    def _report(self, write: Write, refused: set[int]) -> None:
        name = self._desk.name
        rows = [work for work in write.upserts if id(work) not in refused]
        if rows:
            self._observer.embedded(name, len(rows), sum(work.tokens for work in rows))
        now_us = time.time_ns() // 1000
        seen = [work.since_us for work in (*rows, *write.removals) if work.since_us and id(work) not in refused]
        if seen:
            self._observer.visible(name, [max(0, now_us - since) / 1e6 for since in seen])


def _merged(writes: list[Write]) -> Write:
    if len(writes) == 1:
        return writes[0]
    return Write(
        guarded=writes[0].guarded,
        upserts=[work for write in writes for work in write.upserts],
        vectors=[part for write in writes for part in write.vectors],
        removals=[work for write in writes for work in write.removals],
        settled=[work for write in writes for work in write.settled],
        resting=[work for write in writes for work in write.resting],
        dead=[letter for write in writes for letter in write.dead],
    )


def _fail(items: list[_Waiting], exc: Exception) -> None:
    for item in items:
        if not item.done.done():
            item.done.set_exception(exc)
