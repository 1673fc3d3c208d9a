"""Reading and writing: what a pipeline asks of its source and destination."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cdc.flow.counts import Counted
from cdc.flow.dirty import Work
from cdc.flow.snapshots import Snapshot
from cdc.rows import Key, key_cells

Vectors = NDArray[np.float32]
"""Shape ``(rows, dimension)``."""

Results = NDArray[Any]
"""What a model makes of texts: :data:`Vectors`, or answers in words, an object array of ``str``, shape ``(rows,)``."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A row that could not be embedded, and why. ``message`` holds no text of the row.

    ``answer`` is the model's, where it could not be stored: for who keeps such answers, and for no log.
    """

    work: Work
    step: str
    category: str
    message: str
    attempts: int
    answer: str | None = field(default=None, repr=False)

    @property
    def row_id(self) -> str:
        """The row's key as text: the cell itself, or a JSON array of several."""
        cells = [cell.decode("utf-8", "replace") for cell in key_cells(self.work.key)]
        return cells[0] if len(cells) == 1 else json.dumps(cells, ensure_ascii=False)


@dataclass(slots=True)
class Write:
    """What one batch wants written: results for ``upserts`` (same order), and keys whose embeddings go.

    A guarded write takes effect only where the source still has the text that was embedded (or still has none); any
    other decides by the version each work carries. Dead letters come in a write of their own, guarded.
    """

    guarded: bool
    upserts: list[Work] = field(default_factory=list)
    vectors: list[Results] = field(default_factory=list)
    removals: list[Work] = field(default_factory=list)
    settled: list[Work] = field(default_factory=list)  # nothing to write, but no longer queued or dead
    resting: list[Work] = field(default_factory=list)  # set aside, and still: no longer queued
    dead: list[DeadLetter] = field(default_factory=list)

    @property
    def works(self) -> list[Work]:
        """All that the write is about."""
        return [*self.upserts, *self.removals, *self.settled, *self.resting, *(letter.work for letter in self.dead)]


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did. ``refused`` are works that met a newer version or a changed row: they must be read again."""

    embeddings: int
    refused: tuple[Work, ...] = ()
    dequeued: int = 0


@dataclass(frozen=True, slots=True)
class Reread:
    """A row as it is now. ``text`` is None where it has none, where it agrees, or where it is ``deferred`` for size."""

    found: bool
    hash: bytes | None
    embedded: bool
    same: bool
    text: bytes | None
    deferred: bool
    lsn: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A key that a scan found to differ, with its text unless it has none or was too much for the page."""

    key: Key
    text: bytes | None


@dataclass(frozen=True, slots=True)
class Page:
    """A keyset page of a scan: how many rows it covered, its last key (None: the end), and what differs."""

    rows: int
    last: tuple[str, ...] | None
    differences: tuple[Difference, ...]
    lsn: int


class Target(Protocol):
    """A pipeline's source and destination, in one database."""

    in_place: bool
    fingerprint: bytes
    mark: bytes  # what our own writes of the source's rows are marked with in the stream

    async def snapshot(self) -> Snapshot:
        """Return what a query would see now."""
        ...

    async def read(self, keys: Sequence[Key], text_bytes: int) -> list[Reread]:
        """Return the rows of ``keys`` as they are now, in order, with up to about ``text_bytes`` of text."""
        ...

    async def unchanged(self, works: Sequence[Work]) -> set[int]:
        """Return the indexes of the works whose embedding stands already, by hash."""
        ...

    async def set_aside(self, works: Sequence[Work]) -> set[int]:
        """Return the indexes of the works whose row was set aside for this very text, by hash."""
        ...

    async def write(self, write: Write, counted: Counted) -> Written:
        """Carry out ``write`` in one transaction, with the count of source rows beside it.

        Raises:
            Fenced: another consumer has taken over.
            Unavailable: the database is out of reach, or a lock was not to be had.
            RowRefused: the database refused a value of the batch; AnswerNotCast: it is no value of the column's type.
            PipelineFault: source or destination are not what they were.
        """
        ...

    @property
    def keeps_books(self) -> bool:
        """Whether works with nothing to write must be written all the same, to leave the queue or the dead letters."""
        ...

    async def truncate(self, lsn: int) -> Written:
        """Remove the embeddings of all that was in the source before ``lsn``."""
        ...

    async def enqueue(self, works: Sequence[Work], counted: Counted) -> int:
        """Queue the works' keys durably; return how many keys the queue gained."""
        ...

    async def dequeue(self, rows: int) -> list[tuple[Key, int]]:
        """Lease up to ``rows`` keys of the durable queue, each with its version."""
        ...

    async def queued(self) -> int:
        """Return how many keys the durable queue holds. Call it once before the first write."""
        ...

    async def save_count(self, counted: Counted) -> None:
        """Make the count of source rows durable."""
        ...

    async def count_source(self) -> tuple[int, Snapshot, int]:
        """Count the source's rows, once; return them, what the count could see, and where the log ends by then."""
        ...

    async def recount_embeddings(self) -> int:
        """Count the destination's rows, once, correct the count that writes keep, and return it."""
        ...

    async def scan(self, after: tuple[str, ...] | None, rows: int, text_bytes: int) -> Page:
        """Return the keyset page of the source that follows the key ``after``."""
        ...

    async def orphans(self, after: tuple[str, ...] | None, rows: int) -> Page:
        """Return the keyset page of the destination that follows ``after``; its differences are orphans."""
        ...

    async def save_scan(
        self, reason: str | None, phase: str, cursor: tuple[str, ...] | None, done: int, total: int
    ) -> None:
        """Make the scan's progress durable. No reason: it is complete."""
        ...
