"""The dirty keys of one pipeline: which rows differ from their embeddings, and the newest we know of each.

Two lanes wait: *stream* (changes from the WAL, in order of arrival) and *found* (what a scan found to differ), which
gives way. A key stands in one lane only, the newest change of it wins, and a key whose work is in flight is held
back until that work is done, so that two writes of one row never race.

Memory: an entry that carries its text is an :class:`Entry`; once the text budget is spent only the key is held, and the
value in the table is the :class:`~cdc.flow.ledger.Commit` itself, at no further object. Such a key is read again from
its table when its turn comes. A million keys take about 90 MB. Rows that are inserted in a row are kept sealed, as they
came: who takes them composes their text, and a backlog is taken in faster than it could be read.

Generations: entries are taken from a dictionary that is only drained, by one iterator, while new keys go to another.
Removing from the front of a dictionary over and over would cost quadratic time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from typing import cast

from cdc.flow.ledger import Commit
from cdc.rows import UNCHANGED, Key, Unchanged


class Kind(IntEnum):
    """What is known of a dirty key."""

    INSERT = 0  # its text came with the change, and there was no such row before
    UPDATE = 1  # its text came with the change
    DELETE = 2  # the row is gone as of the commit
    REREAD = 3  # only that it changed: read it from the table, once the commit is visible
    FOUND = 4  # a scan found its text to differ


class Claim:
    """Stands in for a commit where work does not come from the stream: counts what is unsettled of a page or a load."""

    __slots__ = ("lsn", "outstanding", "time_us", "xid")

    def __init__(self, lsn: int = 0) -> None:
        self.lsn = lsn
        self.xid = 0
        self.time_us = 0
        self.outstanding = 0


Receipt = Commit | Claim

# Looking a member of an enumeration up costs more than all else that is done with it.
_INSERT, _UPDATE, _REREAD, _FOUND = Kind.INSERT, Kind.UPDATE, Kind.REREAD, Kind.FOUND


class Entry:
    """A dirty key's newest state. ``since_us`` is the commit time of the oldest change it stands for."""

    __slots__ = ("kind", "receipt", "since_us", "text")

    def __init__(self, kind: Kind, text: bytes | None, receipt: Receipt, since_us: int) -> None:
        self.kind = kind
        self.text = text
        self.receipt = receipt
        self.since_us = since_us


Sealed = tuple[bytes, Callable[[bytes], bytes | Unchanged | None], Commit]
"""An inserted row as it came, what reads its text (UNCHANGED: it cannot), and its commit. Who takes it reads it."""

SEALED_BYTES = 100
"""What a sealed row takes beyond its own bytes: the objects that hold it. There are hundreds of thousands of them."""

Value = Entry | Commit | Sealed


@dataclass(slots=True)
class Work:
    """A key taken to be worked on. ``lsn`` is the version its write carries; ``hash`` is set once the text is known.

    ``landed``: it is settled or was put back; its claim is not its own any more.
    """

    key: Key
    kind: Kind
    text: bytes | None
    receipt: Receipt
    since_us: int
    lsn: int
    hash: bytes = b""
    tokens: int = 0
    landed: bool = False


@dataclass(slots=True)
class Budget:
    """What pending work may hold, shared by all pipelines of a process. Counts are of now, limits of the settings."""

    max_text_bytes: int
    max_rows: int
    text_bytes: int = 0
    rows: int = 0

    @property
    def full(self) -> bool:
        """Whether so many keys are pending that some must go to the durable queue."""
        return self.rows >= self.max_rows


class DirtyKeys:
    """The dirty keys of one pipeline. Not thread-safe: the caller holds a lock."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._filling: dict[Key, Value] = {}
        self._draining: dict[Key, Value | None] = {}
        self._drain: Iterator[Key] = iter(())
        self._drained = 0
        self._held: dict[Key, Value] = {}
        self._found: dict[Key, Entry] = {}
        self._inflight: set[Key] = set()
        self._truncation: Commit | None = None

    # -- arriving ---------------------------------------------------------------------------------------------------

    def mark(self, key: Key, kind: Kind, text: bytes | None, commit: Commit) -> bool:
        """Note a change of ``key`` by ``commit``; tell whether it overtook one that was pending."""
        budget = self._budget
        commit.outstanding += 1
        value: Value = commit
        if kind is not _REREAD:
            size = len(text) if text is not None else 0
            if budget.text_bytes + size <= budget.max_text_bytes:
                value = Entry(kind, text, commit, commit.time_us)
                budget.text_bytes += size
        if self._found and key in self._found:
            # What the scan read may be newer than this change, or differ without any event: look again.
            self._release(self._found.pop(key))
            value = self._forget_text(value, commit)
        if self._draining:
            old = self._draining.get(key)
            if old is not None:
                self._draining[key] = self._overtake(old, value)
                return True
        if self._held:
            old = self._held.get(key)
            if old is not None:
                self._held[key] = self._overtake(old, value)
                return True
        old = self._filling.get(key)
        if old is not None:
            self._filling[key] = self._overtake(old, value)
            return True
        self._filling[key] = value
        budget.rows += 1
        return False

    def insert(
        self,
        keys: Sequence[Key],
        rows: Sequence[bytes],
        read: Callable[[bytes], bytes | Unchanged | None],
        commit: Commit,
    ) -> bool:
        """Note rows that ``commit`` inserted, all at once; tell whether it was done.

        It is not where one of the keys is known already: then each must be marked by itself.
        """
        budget = self._budget
        size = sum(map(len, rows)) + SEALED_BYTES * len(rows)
        fresh: dict[Key, Value]
        if budget.text_bytes + size <= budget.max_text_bytes:
            fresh = dict(zip(keys, [(row, read, commit) for row in rows], strict=True))
        else:
            fresh, size = dict.fromkeys(keys, commit), 0
        known = (self._filling, self._draining, self._held, self._found)
        if len(fresh) != len(keys) or not all(lane.keys().isdisjoint(fresh) for lane in known if lane):
            return False
        self._filling.update(fresh)
        commit.outstanding += len(fresh)
        budget.rows += len(fresh)
        budget.text_bytes += size
        return True

    def load(self, key: Key, claim: Claim) -> bool:
        """Take ``key`` up from the durable queue, unless it is pending already; tell whether it was taken.

        One whose work is in flight is taken up after it: that work's write may be too old to see the key in the queue.
        """
        if self._pending(key) is not None:
            return False
        if key in self._found:
            self._release(self._found.pop(key))
        claim.outstanding += 1
        self._filling[key] = Entry(_REREAD, None, claim, 0)
        self._budget.rows += 1
        return True

    def found(self, key: Key, text: bytes | None, claim: Claim) -> None:
        """Note that a scan found ``key`` to differ, with this text (None: read it when its turn comes)."""
        old = self._pending(key)
        if old is not None:  # the pending change may carry an older text than the scan saw: look again
            receipt = _receipt(old)
            if isinstance(receipt, Claim):  # of an earlier scan, which nobody waits for any more
                receipt.outstanding -= 1
                claim.outstanding += 1
                receipt = claim
            self._replace(key, self._forget_text(old, receipt))
            return
        if key in self._found:
            self._release(self._found.pop(key))
        budget, size = self._budget, len(text) if text is not None else 0
        fits = budget.text_bytes + size <= budget.max_text_bytes
        claim.outstanding += 1
        self._found[key] = Entry(_FOUND, text if fits else None, claim, 0)
        budget.rows += 1
        budget.text_bytes += size if fits else 0

    def truncate(self, commit: Commit) -> None:
        """Note that ``commit`` empties the table: all that is pending from before it is void."""
        self.clear()
        if self._truncation is not None:
            self._truncation.outstanding -= 1
        commit.outstanding += 1
        self._truncation = commit

    # -- leaving ----------------------------------------------------------------------------------------------------

    @property
    def truncation(self) -> Commit | None:
        """A truncation that is due. Nothing can be taken until :meth:`truncated`."""
        return self._truncation

    def truncated(self, commit: Commit) -> None:
        """Note that the destination holds nothing older than ``commit``; a later truncation is still due."""
        if self._truncation is commit:
            commit.outstanding -= 1
            self._truncation = None

    def take(self, rows: int, text_bytes: int) -> list[Work]:
        """Take up to ``rows`` stream keys, oldest first, of about ``text_bytes`` of text; at least one if any."""
        works: list[Work] = []
        if self._truncation is not None:
            return works
        size = 0
        inflight = self._inflight
        while len(works) < rows and size < text_bytes:
            key, value = self._next()
            if value is None:
                break
            if key in inflight:
                self._held[key] = value
                continue
            work = self._work(key, value)
            size += len(work.text) if work.text is not None else 0
            inflight.add(key)
            works.append(work)
        return works

    def take_found(self, rows: int, text_bytes: int) -> list[Work]:
        """Take up to ``rows`` keys that a scan found, skipping those in flight."""
        works: list[Work] = []
        size = 0
        if self._truncation is None:
            for key in list(islice(self._found, rows)):
                if size >= text_bytes:
                    break
                if key in self._inflight:
                    continue
                entry = self._found.pop(key)
                work = self._work(key, entry)
                size += len(work.text) if work.text is not None else 0
                self._inflight.add(key)
                works.append(work)
        return works

    def settle(self, work: Work) -> None:
        """Note that ``work`` is done, durably, one way or another. A work that has landed already is left alone."""
        if work.landed:
            return
        work.landed = True
        work.receipt.outstanding -= 1
        self._land(work.key)

    def requeue(self, work: Work, kind: Kind | None = None) -> None:
        """Put ``work`` back to be taken again, as ``kind`` if given; a newer change of its key or table makes it void.

        A work that has landed already is left alone: who is cancelled at the very moment of a write cannot tell.
        """
        if work.landed:
            return
        work.landed = True
        key = work.key
        self._land(key)
        # Nothing is taken while a truncation is due: what is in flight is of the table as it was before.
        if self._truncation is not None or self._pending(key) is not None:
            work.receipt.outstanding -= 1
            return
        again = work.kind if kind is None else kind
        found = self._found.get(key)
        if found is not None:  # a scan has looked since this work was taken
            if again is _FOUND:
                work.receipt.outstanding -= 1
                return
            self._release(self._found.pop(key))
            again = _REREAD
        keep = again is not _REREAD
        entry = Entry(again, work.text if keep else None, work.receipt, work.since_us)
        if again is _FOUND:
            self._found[key] = entry
        else:
            self._filling[key] = entry
        self._budget.rows += 1
        self._budget.text_bytes += len(entry.text) if entry.text is not None else 0

    def spill(self, rows: int) -> list[Work]:
        """Take up to ``rows`` stream keys out to be queued durably; the caller settles or requeues them.

        They count as in flight meanwhile, so that none is embedded while it is being moved. None is taken while a
        truncation is due, which empties the queue of all that its transaction wrote, before it and after it.
        """
        works: list[Work] = []
        queued: dict[Key, Value] = {}  # in the durable queue already
        while len(works) < rows and self._truncation is None:
            key, value = self._next()
            if value is None:
                break
            if key in self._inflight:
                self._held[key] = value
            elif isinstance(value, Entry) and isinstance(value.receipt, Claim):
                queued[key] = value
            else:
                self._inflight.add(key)
                works.append(self._work(key, value))
        self._filling.update(queued)
        return works

    def clear(self) -> None:
        """Void all that is pending. What is in flight stays."""
        for lane in (self._filling, self._held, self._found):
            for value in lane.values():
                self._release(value)
            lane.clear()
        for rest in self._draining.values():
            if rest is not None:
                self._release(rest)
        self._draining, self._drain, self._drained = {}, iter(()), 0

    def disconnect(self) -> None:
        """Void what came from a connection that ended: its unacknowledged commits will be sent again."""
        self.clear()
        self._truncation = None

    # -- looking ----------------------------------------------------------------------------------------------------

    @property
    def stream_rows(self) -> int:
        """Keys pending in the stream lane."""
        return len(self._filling) + len(self._held) + len(self._draining) - self._drained

    @property
    def found_rows(self) -> int:
        """Keys pending that a scan found."""
        return len(self._found)

    @property
    def inflight_rows(self) -> int:
        """Keys being worked on."""
        return len(self._inflight)

    @property
    def rows(self) -> int:
        """Unique keys that are pending or in flight."""
        twice = sum(1 for key in self._inflight if key in self._found or self._pending(key) is not None)
        return self.stream_rows + self.found_rows + len(self._inflight) - twice

    # -- inside -----------------------------------------------------------------------------------------------------

    def _next(self) -> tuple[Key, Value | None]:
        while True:
            for key in self._drain:
                value = self._draining[key]
                if value is not None:
                    self._draining[key] = None
                    self._drained += 1
                    return key, value
                # Already taken or replaced: counted when it was.
            if not self._filling:
                self._draining, self._drained = {}, 0
                return b"", None
            self._draining = cast(dict[Key, Value | None], self._filling)
            self._filling = {}
            self._drain, self._drained = iter(self._draining), 0

    def _work(self, key: Key, value: Value) -> Work:
        self._budget.rows -= 1
        if isinstance(value, Commit):
            return Work(key, _REREAD, None, value, value.time_us, value.lsn)
        if isinstance(value, tuple):
            row, read, commit = value
            self._budget.text_bytes -= _size(value)
            text = read(row)
            if text is UNCHANGED:
                return Work(key, _REREAD, None, commit, commit.time_us, commit.lsn)
            return Work(key, _INSERT, text, commit, commit.time_us, commit.lsn)
        self._budget.text_bytes -= len(value.text) if value.text is not None else 0
        return Work(key, value.kind, value.text, value.receipt, value.since_us, value.receipt.lsn)

    def _land(self, key: Key) -> None:
        self._inflight.discard(key)
        if self._held:
            value = self._held.pop(key, None)
            if value is not None:
                self._filling[key] = value

    def _pending(self, key: Key) -> Value | None:
        return self._draining.get(key) or self._held.get(key) or self._filling.get(key)

    def _replace(self, key: Key, value: Value) -> None:
        if self._draining.get(key) is not None:
            self._draining[key] = value
        elif key in self._held:
            self._held[key] = value
        else:
            self._filling[key] = value

    def _overtake(self, old: Value, new: Value) -> Value:
        _receipt(old).outstanding -= 1
        self._budget.text_bytes -= _size(old)
        if isinstance(old, tuple):
            if isinstance(new, Entry):
                new.since_us = old[2].time_us
        elif isinstance(old, Entry) and isinstance(new, Entry):
            if old.since_us:
                new.since_us = old.since_us
            if new.kind is _INSERT and old.kind is not _INSERT:
                new.kind = _UPDATE  # an embedding of the row's former life may stand
        return new

    def _forget_text(self, value: Value, receipt: Receipt) -> Value:
        if isinstance(value, Commit):
            return value
        self._budget.text_bytes -= _size(value)
        return Entry(_REREAD, None, receipt, value[2].time_us if isinstance(value, tuple) else value.since_us)

    def _release(self, value: Value) -> None:
        self._budget.rows -= 1
        _receipt(value).outstanding -= 1
        self._budget.text_bytes -= _size(value)


def _receipt(value: Value) -> Receipt:
    if isinstance(value, tuple):
        return value[2]
    return value.receipt if isinstance(value, Entry) else value


def _size(value: Value) -> int:
    """Return what the value counts for in the text budget, in bytes."""
    if isinstance(value, tuple):
        return len(value[0]) + SEALED_BYTES
    return len(value.text) if isinstance(value, Entry) and value.text is not None else 0
