"""Stand-ins for what the services ask of the world, in memory: a table with its embeddings, a model, an observer.

They keep the promises of :mod:`cdc.ports` that tests lean on: versions, guards, the refusal of values, visibility.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from cdc.errors import RowRefused, WalvecError
from cdc.flow.counts import Counted
from cdc.flow.dirty import Work
from cdc.flow.snapshots import Snapshot
from cdc.ports import CANARY, DeadLetter, Difference, Embedded, EmbedFailed, Page, Reread, Vectors, Write, Written
from cdc.prepare.text import source_hash
from cdc.rows import Key
from cdc.status import EngineStatus

DIMENSION = 4


class MemoryTarget:
    """A table and its embeddings. Implements :class:`cdc.ports.Target`; keys have one column."""

    in_place = False
    fingerprint = b"twin"
    mark = b"own"

    def __init__(self, rows: dict[Key, bytes] | None = None) -> None:
        self.rows = rows or {}
        self.embeddings: dict[Key, tuple[bytes, int]] = {}
        self.vectors: dict[Key, list[float]] = {}
        self.letters: dict[Key, DeadLetter] = {}
        self.queue: dict[Key, int] = {}
        self.refuses: set[bytes] = set()
        self.failures: list[WalvecError] = []
        self.snapshots: list[Snapshot] = []
        self.position = 1_000
        self.reads: list[list[Key]] = []
        self.writes: list[Write] = []
        self.counted = Counted()
        self.saved_scans: list[tuple[str | None, str, tuple[str, ...] | None]] = []
        self.before_write: Callable[[], None] | None = None

    def digest(self, key: Key) -> bytes | None:
        """Return the hash of the row as it is now."""
        text = self.rows.get(key)
        return None if not text else source_hash(self.fingerprint, text)

    async def snapshot(self) -> Snapshot:
        """Return the next of the prepared snapshots, or one that covers everything."""
        await asyncio.sleep(0)
        return self.snapshots.pop(0) if self.snapshots else Snapshot(1 << 30, 1 << 30, frozenset())

    async def read(self, keys: Sequence[Key], text_bytes: int) -> list[Reread]:
        """Return the rows as they are now, their texts up to the budget."""
        self.reads.append(list(keys))
        found, spent = [], 0
        for key in keys:
            text, digest = self.rows.get(key), self.digest(key)
            stands = self.embeddings.get(key)
            same = (stands[0] if stands else None) == digest
            deferred = spent > text_bytes
            spent += 0 if same or text is None else len(text)
            shown = None if same or deferred else text
            found.append(Reread(key in self.rows, digest, stands is not None, same, shown, deferred, self.position))
        return found

    async def unchanged(self, works: Sequence[Work]) -> set[int]:
        """Return the indexes of the works whose embedding stands already."""
        return {i for i, work in enumerate(works) if self.embeddings.get(work.key, (b"", 0))[0] == work.hash}

    async def set_aside(self, works: Sequence[Work]) -> set[int]:
        """Return the indexes of the works whose row was set aside for this very text."""
        return {
            i
            for i, work in enumerate(works)
            if (letter := self.letters.get(work.key)) is not None and letter.work.hash == work.hash
        }

    async def write(self, write: Write, counted: Counted) -> Written:
        """Carry ``write`` out, or raise the next of the prepared failures."""
        await asyncio.sleep(0)
        if self.before_write is not None:
            self.before_write()
        if self.failures:
            raise self.failures.pop(0)
        if any(work.text in self.refuses for work in write.upserts):
            raise RowRefused("The database refused a row (SQLSTATE 22P05).")
        self.writes.append(write)
        self.counted = counted
        refused = [work for work in write.works if not self._apply(work, write)]
        vectors = np.concatenate(write.vectors) if write.vectors else np.empty((0, DIMENSION), np.float32)
        for work, vector in zip(write.upserts, vectors, strict=True):
            if work not in refused:
                self.vectors[work.key] = [float(x) for x in vector]
        for letter in write.dead:
            self.letters[letter.work.key] = letter
        return Written(len(self.embeddings), tuple(refused))

    def _apply(self, work: Work, write: Write) -> bool:
        stands = self.embeddings.get(work.key)
        if stands is not None and stands[1] > work.lsn and not write.dead:
            return False
        if any(work is upsert for upsert in write.upserts):
            if write.guarded and self.digest(work.key) != work.hash:
                return False
            self.embeddings[work.key] = (work.hash, work.lsn)
        elif not any(work is settled for settled in (*write.settled, *write.resting)):
            if write.guarded and not write.dead and self.digest(work.key) is not None:
                return False
            self.embeddings.pop(work.key, None)
        return True

    @property
    def keeps_books(self) -> bool:
        """Whether works with nothing to write must be written all the same."""
        return bool(self.letters)

    async def truncate(self, lsn: int) -> Written:
        """Remove the embeddings of all that was there before ``lsn``."""
        self.embeddings = {key: value for key, value in self.embeddings.items() if value[1] > lsn}
        return Written(len(self.embeddings))

    async def enqueue(self, works: Sequence[Work], counted: Counted) -> int:
        """Queue the works' keys; return how many the queue gained."""
        before = len(self.queue)
        self.queue.update({work.key: max(work.lsn, self.queue.get(work.key, 0)) for work in works})
        self.counted = counted
        return len(self.queue) - before

    async def dequeue(self, rows: int) -> list[tuple[Key, int]]:
        """Return up to ``rows`` queued keys."""
        return list(self.queue.items())[:rows]

    async def queued(self) -> int:
        """Return how many keys the queue holds."""
        return len(self.queue)

    async def save_count(self, counted: Counted) -> None:
        """Keep the count."""
        self.counted = counted

    async def count_source(self) -> tuple[int, Snapshot, int]:
        """Count the rows; everything is visible."""
        return len(self.rows), Snapshot(1 << 30, 1 << 30, frozenset()), self.position

    async def recount_embeddings(self) -> int:
        """Count the embeddings."""
        return len(self.embeddings)

    async def scan(self, after: tuple[str, ...] | None, rows: int, text_bytes: int) -> Page:
        """Return the page of rows that follows ``after``."""
        keys = _page(self.rows, after, rows)
        differs = [key for key in keys if self.digest(key) != self.embeddings.get(key, (None, 0))[0]]
        return Page(
            len(keys), _last(keys), tuple(Difference(key, self.rows[key] or None) for key in differs), self.position
        )

    async def orphans(self, after: tuple[str, ...] | None, rows: int) -> Page:
        """Return the page of embeddings that follows ``after``; its differences have no row with a text."""
        keys = _page(self.embeddings, after, rows)
        orphaned = tuple(Difference(key, None) for key in keys if self.digest(key) is None)
        return Page(len(keys), _last(keys), orphaned, self.position)

    async def save_scan(
        self, reason: str | None, phase: str, cursor: tuple[str, ...] | None, done: int, total: int
    ) -> None:
        """Note the progress."""
        self.saved_scans.append((reason, phase, cursor))


def _cell(key: Key) -> bytes:
    return key if isinstance(key, bytes) else key[0]


def _page(keys: dict[Key, bytes] | dict[Key, tuple[bytes, int]], after: tuple[str, ...] | None, rows: int) -> list[Key]:
    ordered = sorted(keys, key=_cell)
    return [key for key in ordered if after is None or _cell(key).decode() > after[0]][:rows]


def _last(keys: list[Key]) -> tuple[str, ...] | None:
    return (_cell(keys[-1]).decode(),) if keys else None


class ScriptedModel:
    """A model that counts letters, and fails when told. Implements :class:`cdc.ports.Model`.

    ``fails`` is asked before each request: it returns the failure to raise, or None. ``batches`` has every request.
    """

    name = "twin"
    pads = False

    def __init__(self, rows: int = 4, fails: Callable[[Sequence[str]], EmbedFailed | None] | None = None) -> None:
        self.batches: list[list[str]] = []
        self.fails = fails or (lambda texts: None)
        self.counted: int | None = None
        self.open = asyncio.Event()
        self.open.set()
        self._rows = rows

    async def start(self) -> int:
        """Answer at once."""
        return DIMENSION

    async def embed(self, texts: Sequence[str], *, query: bool = False, bulk: bool = False) -> Vectors:
        """Return for each text its length and a few letters' counts."""
        self.batches.append(list(texts))
        await self.open.wait()
        if (failure := self.fails(texts)) is not None:
            raise failure
        return np.array([[len(text), text.count("a"), text.count("b"), 1.0] for text in texts], np.float32)

    async def embed_counted(self, texts: Sequence[str], *, bulk: bool = False) -> Embedded:
        """Return the same, and :attr:`counted`."""
        return Embedded(await self.embed(texts, bulk=bulk), self.counted)

    async def probe(self) -> None:
        """Embed the canary."""
        await self.embed([CANARY])

    def tokens(self, size: int) -> int:
        """One token per byte."""
        return size

    def pack(self, tokens: Sequence[int]) -> list[list[int]]:
        """Return batches of a fixed number of rows."""
        return [list(range(len(tokens)))[i : i + self._rows] for i in range(0, len(tokens), self._rows)]

    async def close(self) -> None:
        """Nothing to let go of."""


class Tally:
    """Counts what it hears. Implements :class:`cdc.ports.Observer`."""

    def __init__(self) -> None:
        self.heard: Counter[str] = Counter()

    def changes(self, pipeline: str, op: str, rows: int) -> None:
        self.heard[op] += rows

    def coalesced(self, pipeline: str, rows: int) -> None:
        self.heard["coalesced"] += rows

    def skipped_unchanged(self, pipeline: str, rows: int) -> None:
        self.heard["skipped"] += rows

    def batch(self, pipeline: str, rows: int) -> None:
        self.heard["batches"] += 1

    def inference(self, pipeline: str, outcome: str, seconds: float) -> None:
        self.heard[outcome] += 1

    def inference_error(self, pipeline: str, reason: str) -> None:
        self.heard[reason] += 1

    def embedded(self, pipeline: str, rows: int, tokens: int) -> None:
        self.heard["embedded"] += rows

    def written(self, pipeline: str, seconds: float) -> None:
        self.heard["written"] += 1

    def visible(self, pipeline: str, seconds: Sequence[float]) -> None:
        self.heard["visible"] += len(seconds)

    def slot_lost(self) -> None:
        self.heard["slot_lost"] += 1

    def publish(self, status: EngineStatus) -> None:
        self.heard["published"] += 1
