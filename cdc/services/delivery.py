"""The shared tail of all work: what is known of dirty keys → texts → vectors → the destination → settled.

Works whose text came with the WAL are written by version, without reading the source again. Works that were read from
the table, by key or by scan, are written only where the source still has the very same text; and nothing is read before
the commit that asked for it is visible, or the reader would see the row's older state and take it for the newest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from cdc.errors import AnswerNotCast, PipelineFault, RowRefused
from cdc.flow.dirty import Kind, Work
from cdc.flow.disposition import Action, Failure, backoff_s, dispose
from cdc.flow.ledger import Commit
from cdc.flow.sharing import share
from cdc.flow.snapshots import Snapshot
from cdc.ports import DeadLetter, EmbedFailed, Observer, Results, Target, Write
from cdc.prepare.text import is_blank, source_hash
from cdc.services.desk import ROUNDS, Desk
from cdc.services.gate import ModelGate, Priority
from cdc.services.writer import Writer

READ_BYTES = 16 << 20
"""Text that one read by key may bring into memory, in bytes."""


@dataclass(slots=True)
class _Text:
    """One text of a window and the works that share it: the same text is embedded once."""

    text: bytes
    tokens: int
    works: list[Work] = field(default_factory=list)


@dataclass(slots=True)
class _Prepared:
    """A window, sorted into what must be embedded and what need not be."""

    texts: dict[bytes, _Text] = field(default_factory=dict)
    removals: list[Work] = field(default_factory=list)
    settled: list[Work] = field(default_factory=list)
    resting: list[Work] = field(default_factory=list)


class Delivery:
    """Delivers works of one pipeline. Every work it is given ends settled, or back among the dirty keys."""

    def __init__(
        self, desk: Desk, target: Target, gate: ModelGate, writer: Writer, observer: Observer, max_attempts: int
    ) -> None:
        self._desk = desk
        self._target = target
        self._gate = gate
        self._writer = writer
        self._observer = observer
        self._max_attempts = max_attempts
        self._snapshot: Snapshot | None = None

    async def deliver(self, works: Sequence[Work], priority: Priority) -> None:
        """Deliver a window of works.

        Raises:
            WalvecError: the pipeline cannot go on; the works that were not done are back among the dirty keys.
        """
        left = {id(work): work for work in works}
        for work in works:
            if work.kind < Kind.DELETE and work.lsn <= self._desk.replay_until:
                work.kind, work.text = Kind.REREAD, None
        try:
            versioned = [work for work in works if work.kind <= Kind.DELETE]
            if versioned:
                await self._send(await self._from_stream(versioned), False, priority, left)
            others = [work for work in works if work.kind > Kind.DELETE]
            if others:
                await self._send(await self._from_table(others, left), True, priority, left)
        finally:
            if left:  # an outage, a fault or the end: nothing is forgotten
                with self._desk.lock:
                    for work in left.values():
                        self._desk.dirty.requeue(work)

    # -- preparing --------------------------------------------------------------------------------------------------

    async def _from_stream(self, works: Sequence[Work]) -> _Prepared:
        if self._target.in_place:  # the row itself is written: it must be visible
            await self.visible(works)
        ready = _Prepared()
        config = self._target.fingerprint
        doubtful: list[Work] = []
        for work in works:
            if work.kind is Kind.DELETE or work.text is None or is_blank(work.text):
                ready.removals.append(work)
                continue
            work.hash = source_hash(config, work.text)
            if work.kind is Kind.UPDATE or self._target.in_place:
                doubtful.append(work)
            else:
                self._add(ready, work)
        if doubtful:
            same = await self._target.unchanged(doubtful)
            for index, work in enumerate(doubtful):
                if index in same:
                    ready.settled.append(work)
                else:
                    self._add(ready, work)
        return ready

    async def _from_table(self, works: Sequence[Work], left: dict[int, Work]) -> _Prepared:
        await self.visible(works)
        ready = _Prepared()
        config = self._target.fingerprint
        unread, found = [], []
        for work in works:
            if work.kind is Kind.FOUND and work.text is not None:
                work.hash = source_hash(config, work.text)
                found.append(work)
            else:
                unread.append(work)
        # Several pipelines that write into one table are each other's changes: while a page was read, the stream may
        # have brought its rows too, and they are done already.
        same = await self._target.unchanged(found) if found and self._target.in_place else set()
        for index, work in enumerate(found):
            if index in same:
                ready.settled.append(work)
            else:
                self._add(ready, work)
        if unread:
            await self._read(unread, ready, left)
        return ready

    async def _read(self, works: list[Work], ready: _Prepared, left: dict[int, Work]) -> None:
        rows = await self._target.read([work.key for work in works], READ_BYTES)
        # A row that is gone leaves no embedding behind whose version could refuse older texts of it, which the stream
        # may still bring: until the stream has passed this point, its texts are not trusted.
        gone = max((row.lsn for row in rows if row.hash is None and not row.deferred), default=0)
        with self._desk.lock:
            self._desk.replay_until = max(self._desk.replay_until, gone)
        later = []
        for work, row in zip(works, rows, strict=True):
            if row.deferred:
                later.append(work)
                continue
            work.lsn = max(work.lsn, row.lsn)
            if row.hash is None:
                (ready.removals if row.embedded else ready.settled).append(work)
            elif row.same and row.embedded:
                ready.settled.append(work)
            else:
                work.text, work.hash = row.text or b"", row.hash
                self._add(ready, work)
        if later:
            with self._desk.lock:
                for work in later:
                    del left[id(work)]
                    self._desk.dirty.requeue(work)

    def _add(self, ready: _Prepared, work: Work) -> None:
        text = work.text or b""
        entry = ready.texts.get(work.hash)
        if entry is None:
            entry = ready.texts[work.hash] = _Text(text, self._gate.model.tokens(len(text)))
        work.tokens = entry.tokens
        entry.works.append(work)

    async def visible(self, works: Sequence[Work]) -> None:
        """Wait until every commit behind ``works`` is visible to new snapshots."""
        xids = {work.receipt.xid for work in works if isinstance(work.receipt, Commit)}
        pause = 0.001
        while xids:
            if self._snapshot is not None:
                xids = {xid for xid in xids if not self._snapshot.covers(xid)}
                if not xids:
                    return
            self._snapshot = await self._target.snapshot()
            xids = {xid for xid in xids if not self._snapshot.covers(xid)}
            if xids:
                await asyncio.sleep(pause)
                pause = min(pause * 2, 0.25)

    # -- sending ----------------------------------------------------------------------------------------------------

    async def _send(self, ready: _Prepared, guarded: bool, priority: Priority, left: dict[int, Work]) -> None:
        await self._let_rest(ready)
        if same := len(ready.settled) + len(ready.resting):
            self._observer.skipped_unchanged(self._desk.name, same)
        quiet = ready.settled if not self._target.keeps_books else []
        if quiet:
            with self._desk.lock:
                for work in quiet:
                    del left[id(work)]
                    self._desk.dirty.settle(work)
        texts = await self._restless(list(ready.texts.values()), left)
        batches = [[texts[i] for i in batch] for batch in self._gate.model.pack([text.tokens for text in texts])]
        sending = [self._batch(batch, guarded, priority, left) for batch in batches]
        silent = Write(guarded, removals=ready.removals, settled=[] if quiet else ready.settled, resting=ready.resting)
        if silent.works:
            sending.append(self._write(silent, left))
        if len(sending) == 1:
            await sending[0]
            return
        # All run to their ends before the first failure is raised: none may write after its works were put back.
        for outcome in await asyncio.gather(*sending, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _let_rest(self, ready: _Prepared) -> None:
        """Take out works whose row was set aside for the very text that it has.

        What a scan found is tried all the same: a person may have asked for it.
        """
        works = [work for text in ready.texts.values() for work in text.works if work.kind is not Kind.FOUND]
        resting = {id(works[index]) for index in await self._target.set_aside(works)}
        if not resting:
            return
        ready.resting = [work for work in works if id(work) in resting]
        for digest, text in list(ready.texts.items()):
            text.works = [work for work in text.works if id(work) not in resting]
            if not text.works:
                del ready.texts[digest]

    async def _batch(self, texts: list[_Text], guarded: bool, priority: Priority, left: dict[int, Work]) -> None:
        """Embed and write one batch; halve it, try it again, or bury its one row, as the failure asks."""
        strings = [text.text.decode("utf-8", "replace") for text in texts]
        for attempt in range(1, self._max_attempts + 1):
            try:
                results, tokens = await self._gate.embed(self._desk.name, strings, priority)
                break
            except EmbedFailed as exc:
                match dispose(exc.failure, len(texts), attempt, self._max_attempts):
                    case Action.RETRY:
                        await asyncio.sleep(exc.retry_after_s or backoff_s(attempt))
                    case Action.SPLIT:
                        await self._halves(texts, guarded, priority, left)
                        return
                    case Action.BURY:
                        await self._bury(texts[0].works, "embed", exc.reason, str(exc), attempt, left)
                        return
                    case Action.WAIT | Action.STOP:
                        raise ModelAway(exc) from exc
        else:
            raise AssertionError("a request that fails for the last time is split or buried")
        if tokens is not None:
            _count(texts, tokens)
        await self._store(texts, results, guarded, left)

    async def _halves(self, texts: list[_Text], guarded: bool, priority: Priority, left: dict[int, Work]) -> None:
        middle = len(texts) // 2
        await self._batch(texts[:middle], guarded, priority, left)
        await self._batch(texts[middle:], guarded, priority, left)

    async def _restless(self, texts: list[_Text], left: dict[int, Work]) -> list[_Text]:
        """Bury rows whose text a trigger changes each time their vector is written; return the other texts."""
        if not self._desk.rounds:
            return texts
        rest = []
        for text in texts:
            if any(self._desk.rounds.get(work.key, 0) >= ROUNDS for work in text.works):
                with self._desk.lock:
                    for work in text.works:
                        self._desk.rounds.pop(work.key, None)
                message = "A trigger changes the row's text whenever its vector is written, so they never agree."
                await self._bury(text.works, "write", "text changed by the write itself", message, ROUNDS, left)
            else:
                rest.append(text)
        return rest

    async def _store(self, texts: list[_Text], vectors: Results, guarded: bool, left: dict[int, Work]) -> None:
        works = [work for text in texts for work in text.works]
        if len(works) != len(texts):
            vectors = vectors[[row for row, text in enumerate(texts) for _ in text.works]]
        try:
            await self._write(Write(guarded, upserts=works, vectors=[vectors]), left)
        except RowRefused as exc:
            if len(texts) == 1:
                category, answer = "refused by the database", None
                if isinstance(exc, AnswerNotCast):
                    category, answer = "not castable", str(vectors[0])
                await self._bury(works, "write", category, exc.message, 1, left, answer)
                return
            middle = len(texts) // 2
            split = sum(len(text.works) for text in texts[:middle])
            await self._store(texts[:middle], vectors[_firsts(texts[:middle])], guarded, left)
            await self._store(texts[middle:], vectors[split:][_firsts(texts[middle:])], guarded, left)

    async def _bury(
        self,
        works: list[Work],
        step: str,
        category: str,
        message: str,
        attempts: int,
        left: dict[int, Work],
        answer: str | None = None,
    ) -> None:
        letters = [DeadLetter(work, step, category, message, attempts, answer) for work in works]
        await self._write(Write(True, dead=letters), left)

    async def _write(self, write: Write, left: dict[int, Work]) -> None:
        await self._writer.put(write)
        for work in write.works:
            left.pop(id(work), None)


def _count(texts: list[_Text], tokens: int) -> None:
    """Put what the model counted in the place of what was guessed; a text that several works share was read once."""
    for text, counted in zip(texts, share(tokens, [max(1, text.tokens) for text in texts]), strict=True):
        for work in text.works:
            work.tokens = 0
        text.works[0].tokens = counted


def _firsts(texts: list[_Text]) -> list[int]:
    """Return where the first row of each text stands among the rows of all its works."""
    firsts, row = [], 0
    for text in texts:
        firsts.append(row)
        row += len(text.works)
    return firsts


class ModelAway(PipelineFault):
    """The model cannot be asked for now; the works wait."""

    def __init__(self, cause: EmbedFailed) -> None:
        super().__init__(f"The model does not answer: {cause}")
        self.needs_person = cause.failure is Failure.MISCONFIGURED
