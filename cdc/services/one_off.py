"""A table embedded once, page by page: several requests in flight, each written as it comes back.

There is no stream and no state beside the table: a row that has its value is not asked for again, so a run that was
stopped goes on where it stood. A row that changes while its text is at the model is read again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from cdc.errors import AnswerNotCast, ConfigError, RowRefused, Unavailable
from cdc.flow.disposition import Action, backoff_s, dispose
from cdc.ports import Embedded, EmbedFailed
from cdc.ports.one_off import Item, Refusal, Rows, Sink
from cdc.ports.target import Results
from cdc.rows import Key
from cdc.services.gate import ModelGate, Priority
from cdc.services.tasks import end

PAGE_ROWS: Final = 2_000
PAGE_BYTES: Final = 16 << 20
"""Text of one page; there are three of them at most: the one that is read, the one at work, and requests under way."""
PATIENCE_S: Final = 60.0
"""How long a model that went away is waited for."""
ROUNDS: Final = 3
"""How often a row is embedded that changes again and again meanwhile."""
_WRITE_TRIES: Final = 3


@dataclass(slots=True)
class Outcome:
    """What a run came to, in rows. ``reasons`` counts refused rows by why; ``restless`` rows changed all the time."""

    written: int = 0
    restless: int = 0
    tokens: int | None = 0
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def refused(self) -> int:
        """Rows that got nothing."""
        return self.reasons.total()


class OneOff:
    """One run over a table.

    Args:
        rows: What there is to do.
        sink: Where results go.
        gate: The way to the model, which has been started.
        inflight: Requests at once.
        max_attempts: Tries before a row is refused on which the model breaks.
        limit: Most rows; None: all.
        progress: Told the rows done so far.
    """

    def __init__(
        self,
        rows: Rows,
        sink: Sink,
        gate: ModelGate,
        *,
        inflight: int,
        max_attempts: int,
        limit: int | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        self._rows = rows
        self._sink = sink
        self._gate = gate
        self._most = 2 * inflight  # those at the model, and those that are being written
        self._max_attempts = max_attempts
        self._left = limit
        self._progress = progress
        self._outcome = Outcome()

    async def run(self) -> Outcome:
        """Go through the table.

        Raises:
            ConfigError: the model wants something mended first.
            Unavailable: model or database are away; a further run goes on where this one stood.
        """
        under_way: set[asyncio.Task[None]] = set()
        reading = asyncio.create_task(self._page(None))
        try:
            while page := await reading:
                reading = asyncio.create_task(self._page(page[-1].key))
                for batch in self._packed(page):
                    while len(under_way) >= self._most:
                        under_way = await _some(under_way)
                    under_way.add(asyncio.create_task(self._embed(batch)))
            while under_way:
                under_way = await _some(under_way)
        except Unavailable as exc:
            raise Unavailable(exc.message, "A further run goes on where this one stood.") from exc
        finally:
            await end([reading, *under_way])
        return self._outcome

    async def _page(self, after: Key | None) -> Sequence[Item]:
        rows = PAGE_ROWS if self._left is None else min(PAGE_ROWS, self._left)
        if not rows:
            return ()
        page = await self._rows.page(after, rows, PAGE_BYTES)
        if self._left is not None:
            self._left -= len(page)
        return page

    def _packed(self, page: Sequence[Item]) -> list[list[Item]]:
        model = self._gate.model
        batches = model.pack([model.tokens(len(item.text)) for item in page])
        return [[page[index] for index in batch] for batch in batches]

    async def _embed(self, items: Sequence[Item], round: int = 1) -> None:
        """Embed and write ``items``; what the model refuses is found by halving."""
        attempts = 0
        while True:
            try:
                embedded = await self._gate.embed("", [item.text.decode() for item in items], Priority.SCAN)
                break
            except EmbedFailed as exc:
                attempts += 1
                match dispose(exc.failure, len(items), attempts, self._max_attempts):
                    case Action.STOP:
                        raise ConfigError(f"The model does not answer: {exc}") from exc
                    case Action.WAIT:
                        await self._wait(exc)
                    case Action.RETRY:
                        await asyncio.sleep(exc.retry_after_s or backoff_s(attempts))
                    case Action.SPLIT:
                        for half in _halves(items):
                            await self._embed(half, round)
                        return
                    case Action.BURY:
                        await self._refuse(items[0], str(exc), str(exc))
                        return
        self._count(embedded)
        await self._write(items, embedded.results, round)

    async def _wait(self, exc: EmbedFailed) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._gate.ready()
        except TimeoutError:
            raise Unavailable(f"The model does not answer: {exc}") from exc

    async def _write(self, items: Sequence[Item], results: Results, round: int) -> None:
        """Write results; a value that will not do is found by halving, a row that has changed is read again."""
        try:
            missed = await self._patiently(items, results)
        except RowRefused as exc:
            if len(items) > 1:
                middle = len(items) // 2
                await self._write(items[:middle], results[:middle], round)
                await self._write(items[middle:], results[middle:], round)
                return
            value = str(results[0]) if isinstance(exc, AnswerNotCast) else exc.message
            await self._refuse(items[0], exc.message, value)
            return
        self._outcome.written += len(items) - len(missed)
        self._done()
        if missed:
            changed = await self._rows.again([items[index].key for index in sorted(missed)])
            if changed and round < ROUNDS:
                for batch in self._packed(changed):
                    await self._embed(batch, round + 1)
            else:
                self._outcome.restless += len(changed)

    async def _patiently(self, items: Sequence[Item], results: Results) -> set[int]:
        first: Unavailable | None = None
        for attempt in range(1, _WRITE_TRIES + 1):
            try:
                return await self._sink.write(items, results)
            except Unavailable as exc:
                first = first or exc  # a closed connection, later on, tells less
                await asyncio.sleep(backoff_s(attempt))
        assert first is not None
        raise first

    async def _refuse(self, item: Item, reason: str, value: str) -> None:
        await self._sink.refuse([Refusal(item.key, reason, value)])
        self._outcome.reasons[reason] += 1
        self._done()

    def _count(self, embedded: Embedded) -> None:
        known = self._outcome.tokens
        self._outcome.tokens = None if known is None or embedded.tokens is None else known + embedded.tokens

    def _done(self) -> None:
        self._progress(self._outcome.written + self._outcome.refused)


def _halves(items: Sequence[Item]) -> tuple[Sequence[Item], Sequence[Item]]:
    middle = len(items) // 2
    return items[:middle], items[middle:]


async def _some(tasks: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Wait until one of ``tasks`` has ended, raise what it raised, and return the others."""
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return rest
