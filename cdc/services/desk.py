"""What the reader of the stream and the worker of a pipeline share."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from cdc.flow.counts import SourceCount
from cdc.flow.dirty import DirtyKeys
from cdc.flow.ledger import Commit
from cdc.rows import Key

ROUNDS = 5
"""How often a trigger may answer our write-back with another text before the row is dead-lettered."""

NO_TEXT = b""
"""Stands for the hash of a row that has no text."""

_EXPECTED = 100_000


@dataclass(slots=True)
class Desk:
    """A pipeline's dirty keys and row count. Whoever touches them holds ``lock``, which all pipelines share.

    Commits at or below ``replay_until`` had been written back by an earlier run, at least in part, or are older than a
    look at the table that found a row gone: their texts may be older than what stands, so their keys are read again
    instead. ``gaps`` are commits after which only a scan can tell what is dirty. In-place pipelines see their own
    writes in the stream, in transactions that carry their ``mark``: ``expected`` has the hash of each, ``rounds`` how
    often a key came back with another text.
    """

    name: str
    lock: threading.Lock
    dirty: DirtyKeys
    count: SourceCount
    fingerprint: bytes = b""
    mark: bytes = b"own"
    replay_until: int = 0
    gaps: list[Commit] = field(default_factory=list)
    expected: dict[Key, bytes] = field(default_factory=dict)
    rounds: dict[Key, int] = field(default_factory=dict)

    def expect(self, key: Key, digest: bytes) -> None:
        """Note that the stream will show our own write of ``key``. What never comes back is forgotten in bulk."""
        if len(self.expected) >= _EXPECTED:
            self.expected.clear()
        self.expected[key] = digest

    def release(self) -> None:
        """Let go of everything that is pending: the pipeline ends here, and a scan makes up for it if it comes back."""
        self.dirty.clear()
        if (truncation := self.dirty.truncation) is not None:
            self.dirty.truncated(truncation)
        self.count.abandon()
        for commit in self.gaps:
            commit.outstanding -= 1
        self.gaps.clear()
