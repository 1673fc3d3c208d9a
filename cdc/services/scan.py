"""Reconcile: walk the source by key, compare hashes, and hand over what differs; then walk the destination for orphans.

First backfill, a table added later, a model change, a lost slot, failover, data changed without events, manual runs and
audits are all this one walk. Its cost is hashing: only rows that differ are embedded. Transactions are short (a page
each), and the place is kept in the database, so that a restart goes on where the last one stopped.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cdc.flow.dirty import Claim
from cdc.flow.paging import PageSize
from cdc.ports import Page, Target
from cdc.services.desk import Desk

PAGE_BYTES = 8 << 20
"""Text that one page may bring into memory, in bytes; rows past it are read again when their turn comes."""

WAITING_ROWS = 8192
"""Differences that may wait to be embedded before the walk pauses."""


PageReader = Callable[[tuple[str, ...] | None, int, int], Awaitable[Page]]
"""(after, rows, text bytes) → page."""


@dataclass(slots=True)
class Progress:
    """Where a walk stands. ``cursor`` is the last key whose page is done; ``reason`` None: no walk is due."""

    reason: str | None = None
    phase: str = "rows"
    cursor: tuple[str, ...] | None = None
    done: int = 0
    total: int = 0


class Scan:
    """Walks one pipeline's source and destination."""

    def __init__(
        self,
        desk: Desk,
        target: Target,
        progress: Progress,
        moved: asyncio.Event,
        wake: asyncio.Event,
        unwritten: Callable[[], Awaitable[None]],
    ) -> None:
        self._desk = desk
        self._unwritten = unwritten  # waits until a write that is under way has ended
        self._target = target
        self._moved = moved  # set whenever works settle
        self._wake = wake  # tells the dispatcher that there is work
        self.progress = progress
        self.asked: str | None = None  # why the next walk, from the start, is due after this one
        self.embeddings = 0  # as counted at the end of the last walk
        self._open: deque[tuple[Claim, Page]] = deque()  # pages of the source that were read and are not done

    @property
    def done(self) -> int:
        """How many rows of the source have been dealt with, those of pages that are not done among them.

        A page may hold thousands of rows, and a slow model need minutes for it.
        """
        return self.progress.done + sum(page.rows - claim.outstanding for claim, page in self._open)

    async def run(self, again: Callable[[], bool]) -> None:
        """Walk from where the progress says to the end, and make each step durable.

        Args:
            again: Asked at the end: sets the progress to the start of the next scan if one is due, and says so.
        """
        progress = self.progress
        if progress.phase == "rows":
            if progress.cursor is None:
                await self._count()
            await self._walk(self._target.scan, counts=True)
            progress.phase, progress.cursor = "orphans", None
            await self._save()
        await self._walk(self._orphans, counts=False)
        self.embeddings = await self._target.recount_embeddings()
        if not again():
            progress.reason, progress.cursor = None, None
        await self._save()

    async def _orphans(self, after: tuple[str, ...] | None, rows: int, text_bytes: int) -> Page:
        return await self._target.orphans(after, rows)

    async def _count(self) -> None:
        rows, snapshot, until = await self._target.count_source()
        with self._desk.lock:
            # Rows may have changed with no event: an older text that the stream still brings, or that is at the model
            # now, must not go over one that this walk finds to agree. It is compared with the row where it is written.
            self._desk.replay_until = max(self._desk.replay_until, until)
            self._desk.count.rebase(rows, snapshot, until)
            counted = self._desk.count.counted
        await self._unwritten()
        await self._target.save_count(counted)
        with self._desk.lock:
            self._desk.count.persisted(counted)
        self.progress.done, self.progress.total = 0, rows
        await self._save()

    async def _walk(self, read: PageReader, *, counts: bool) -> None:
        size = PageSize()
        pending: deque[tuple[Claim, Page]] = deque()
        if counts:
            self._open = pending
        try:
            await self._walk_pages(read, size, pending, counts=counts)
        finally:
            self._open = deque()

    async def _walk_pages(
        self, read: PageReader, size: PageSize, pending: deque[tuple[Claim, Page]], *, counts: bool
    ) -> None:
        after = self.progress.cursor
        while True:
            started = time.monotonic()
            page = await read(after, size.rows, PAGE_BYTES)
            if page.last is None:
                break
            size.took(page.rows, time.monotonic() - started)
            claim = Claim(page.lsn)
            with self._desk.lock:
                for difference in page.differences:
                    self._desk.dirty.found(difference.key, difference.text, claim)
            if page.differences:
                self._wake.set()
            pending.append((claim, page))
            after = page.last
            await self._settle(pending, counts, most=WAITING_ROWS)
        await self._settle(pending, counts, most=0)

    async def _settle(self, pending: deque[tuple[Claim, Page]], counts: bool, *, most: int) -> None:
        """Advance the cursor over pages that are done; wait while more than ``most`` differences are open."""
        while pending:
            moved = False
            while pending and pending[0][0].outstanding == 0:
                _, page = pending.popleft()
                self.progress.cursor = page.last
                self.progress.done += page.rows if counts else 0
                moved = True
            if moved:
                await self._save()
            if sum(claim.outstanding for claim, _ in pending) <= most:
                return
            self._moved.clear()
            if pending[0][0].outstanding:
                await self._moved.wait()

    async def _save(self) -> None:
        p = self.progress
        if self.asked is not None:  # were this walk cut off here, the next must not go on in the middle
            await self._target.save_scan(self.asked, "rows", None, 0, p.total)
            return
        await self._target.save_scan(p.reason, p.phase, p.cursor, p.done, p.total)
