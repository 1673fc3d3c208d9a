"""An index whose elements are rows: searched by vector, changed by key, and made fresh when it has decayed.

A row that changes is added anew and its old element marked as deleted, so an index decays as rows change: searches
walk through what is deleted, and find less. When a share of it is deleted, a fresh index is built from what lives,
beside the old one, which goes on serving and taking changes; what changed meanwhile is brought over, and the fresh one
takes over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np

from cdc.flow.keycodec import IndexKey, KeyCodec, Keys
from cdc.flow.keymap import KeyMap, new_map
from cdc.ports.indexes import Floats, Labels, VectorIndex
from cdc.services.index_journal import Change

REBUILD_LEAST: Final = 1000
"""Deleted elements below which nothing is made fresh: an index this small is searched well enough."""

_ROWS: Final = 1024
_LAST_ROUND: Final = 256
_ROUNDS: Final = 6

Make = Callable[[int, int], VectorIndex]
"""Makes an empty index: dimension, capacity."""


class KeyedIndex:
    """Rows by vector. One thread changes it, any may search it, one more may rebuild it.

    Args:
        codec: Of the keys.
        make: Makes indexes.
        dimension: Of the vectors, as it is declared; None: that of the first, and of others once that has none.
    """

    def __init__(self, codec: KeyCodec, make: Make, dimension: int | None) -> None:
        self.codec = codec
        self.dimension = self._declared = dimension
        self._misfits: set[IndexKey] = set()  # rows left out for their width, where none is declared
        self._misfits_saved = 0  # and those that were when the base was saved
        self.skipped = 0
        self._make = make
        self._now: tuple[VectorIndex | None, KeyMap] = (None, new_map(codec))
        self._changing = threading.Lock()
        self._touched: set[IndexKey] | None = None  # keys changed since a rebuild began

    # -- what there is ----------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Rows that a search can find."""
        index = self._now[0]
        return index.count if index is not None else 0

    @property
    def deleted(self) -> int:
        """Elements that are deleted and still there."""
        index = self._now[0]
        return index.deleted if index is not None else 0

    @property
    def now(self) -> tuple[VectorIndex | None, KeyMap]:
        """The index, None while no vector has been seen, and its keys. To be saved by the thread that changes it."""
        return self._now

    @property
    def misfits(self) -> int:
        """Rows that are left out because of their vector's width, as far as changes have told."""
        return self._misfits_saved + len(self._misfits)

    @property
    def is_outgrown(self) -> bool:
        """Whether more rows are left out because of their width than there are in the index."""
        return self.misfits > self.count

    def decayed(self, share: float) -> bool:
        """Whether more than ``share`` of the elements are deleted."""
        deleted = self.deleted
        return deleted >= REBUILD_LEAST and deleted > share * (deleted + self.count)

    def search(self, vector: Floats, k: int, ef: int) -> list[tuple[IndexKey, float]]:
        """Return up to ``k`` rows nearest to ``vector`` with their distances, nearest first."""
        index, keys = self._now
        if index is None:
            return []
        labels, distances = index.search(vector, k, ef)
        return list(zip(keys.keys(labels), distances.tolist(), strict=True))

    # -- the base ---------------------------------------------------------------------------------------------------

    def adopt(self, index: VectorIndex, keys: KeyMap) -> None:
        """Take an index that was saved."""
        self._now = (index, keys)
        self.dimension = index.dimension

    def adopt_misfits(self, misfits: int) -> None:
        """Take over how many rows were left out because of their width when the index was saved."""
        self._misfits_saved = misfits

    def load(self, keys: Keys, vectors: Floats, capacity: int) -> None:
        """Add rows that are not there yet: the base.

        Args:
            keys: Shape ``(rows,)``.
            vectors: Shape ``(rows, dimension)``.
            capacity: Rows to make room for, if these are the first.
        """
        if not len(vectors):
            return
        index, known = self._index(vectors.shape[1], capacity)
        index.add(known.append(keys), vectors)

    def _index(self, dimension: int, capacity: int) -> tuple[VectorIndex, KeyMap]:
        index, keys = self._now
        if index is None:
            self.dimension = dimension
            index = self._make(dimension, capacity)
            self._now = (index, keys)
        return index, keys

    # -- changes ----------------------------------------------------------------------------------------------------

    def apply(self, changes: Sequence[Change]) -> None:
        """Make changes, in order; vectors of another dimension are left out and counted, their rows dropped."""
        pending: dict[IndexKey, Floats | None] = {}
        for change in changes:
            if change.what == "put":
                pending[change.key] = change.vector
            elif change.what == "drop":
                pending[change.key] = None
            else:
                self._flush(pending)
                pending = {}
                if change.what == "clear":
                    self._clear()
                else:
                    self._rename(change.key, change.other)
        self._flush(pending)

    def _flush(self, pending: dict[IndexKey, Floats | None]) -> None:
        if not pending:
            return
        drops = [key for key, vector in pending.items() if vector is None]
        widths = {key: vector for key, vector in pending.items() if vector is not None}
        with self._changing:
            if self._touched is not None:
                self._touched.update(pending)
            self._misfits.difference_update(pending)
            self._drop(drops)
            for key in self._put(widths):
                self.skipped += 1
                if self._declared is None:
                    self._misfits.add(key)

    def _put(self, wanted: dict[IndexKey, Floats]) -> Sequence[IndexKey]:
        """Add vectors; return the keys of those that are of another width, whose rows are dropped."""
        puts, others = self._of_width(wanted)
        self._drop(others)
        if others and not puts and not self.count and self._declared is None and not self.misfits:
            self._forget()  # nothing is of the old width any more
            puts, others = self._of_width(wanted)
        if puts:
            vectors = np.stack([wanted[key] for key in puts])
            index, keys = self._index(vectors.shape[1], 0)
            labels, old = keys.put(puts)
            index.add(labels, vectors, old)
        return others

    def _of_width(self, wanted: dict[IndexKey, Floats]) -> tuple[list[IndexKey], list[IndexKey]]:
        """Part keys by whether their vectors have the index's width; where it has none, the first one's."""
        width = self.dimension or next((len(vector) for vector in wanted.values()), 0)
        puts = [key for key, vector in wanted.items() if len(vector) == width]
        return puts, [key for key, vector in wanted.items() if len(vector) != width]

    def _drop(self, gone: Sequence[IndexKey]) -> None:
        index, keys = self._now
        labels = [label for label in map(keys.drop, gone) if label >= 0]
        if index is not None and labels:
            index.remove(labels)

    def _rename(self, old: IndexKey, new: IndexKey) -> None:
        with self._changing:
            index, keys = self._now
            _, displaced = keys.rename(old, new)
            if index is not None and displaced >= 0:
                index.remove([displaced])
            if self._touched is not None:
                self._touched |= {old, new}
            if old != new:
                self._misfits.discard(new)
                if old in self._misfits:
                    self._misfits.remove(old)
                    self._misfits.add(new)

    def _clear(self) -> None:
        with self._changing:
            self._misfits.clear()
            self._misfits_saved = 0
            self._forget()

    def _forget(self) -> None:
        self._now = (None, new_map(self.codec))
        self._touched = None  # what a rebuild was making is of no use any more
        self.dimension = self._declared

    # -- making fresh -----------------------------------------------------------------------------------------------

    def rebuild(self, stop: Callable[[], bool]) -> bool:
        """Build a fresh index of what lives and let it take over; return whether it did. Runs in a thread of its own.

        Args:
            stop: Whether to give up.
        """
        with self._changing:
            index, keys = self._now
            if index is None:
                return False
            labels = np.flatnonzero(keys.live)
            taken = keys.take(labels)
            touched = self._touched = set()
        fresh_keys = new_map(self.codec)
        fresh = self._make(index.dimension, len(labels) * 11 // 10 + _ROWS)
        for part, names in _parts(labels, taken):
            if stop() or self._touched is not touched:
                return False
            present, vectors = index.vectors(part)
            fresh.add(fresh_keys.append(names[present]), vectors)
        for round in range(_ROUNDS):
            with self._changing:
                if stop() or self._touched is not touched:
                    return False
                behind, last = list(touched), len(touched) <= _LAST_ROUND or round == _ROUNDS - 1
                touched.clear()
                if last:
                    self._bring_over(behind, index, keys, fresh, fresh_keys)
                    self._now, self._touched = (fresh, fresh_keys), None
                    return True
                found = np.array([keys.find(key) for key in behind], np.int64)
            self._bring_over(behind, index, keys, fresh, fresh_keys, found)
        return False

    @staticmethod
    def _bring_over(
        behind: Sequence[IndexKey],
        index: VectorIndex,
        keys: KeyMap,
        fresh: VectorIndex,
        fresh_keys: KeyMap,
        labels: Labels | None = None,
    ) -> None:
        """Give the fresh index what the old one has of these keys; what changes meanwhile will be touched again."""
        if not behind:
            return
        if labels is None:
            labels = np.array([keys.find(key) for key in behind], np.int64)
        present, vectors = index.vectors(labels)
        gone = [key for key, here in zip(behind, present.tolist(), strict=True) if not here]
        there = [key for key, here in zip(behind, present.tolist(), strict=True) if here]
        dropped = [label for label in map(fresh_keys.drop, gone) if label >= 0]
        if dropped:
            fresh.remove(dropped)
        if there:
            new, old = fresh_keys.put(there)
            fresh.add(new, vectors, old)


def _parts(labels: Labels, keys: Keys) -> Iterator[tuple[Labels, Keys]]:
    for start in range(0, len(labels), _ROWS):
        yield labels[start : start + _ROWS], keys[start : start + _ROWS]
