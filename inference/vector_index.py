"""An approximate nearest-neighbour index in memory: hnswlib, with its known faults kept from whoever uses it.

What hnswlib 0.8.0 leaves to its users, and where it is seen to here:

* adding and searching at once is not safe, and ``ef`` is a property of the index: :class:`inference.index_gate.Gate`;
* a search that finds fewer than ``k`` raises RuntimeError: wider search, then an exact one;
* an element that is updated in place leaves others unreachable: an element never changes here, it is marked as deleted
  and another is added. What is deleted still costs memory and time, so whoever keeps an index counts
  :attr:`VectorIndex.deleted` and builds a fresh one (:meth:`VectorIndex.vectors` gives what it is built from);
* the first element added from several threads at once, or after an empty index was loaded, can be lost: it is added
  alone;
* saving does not say when the disk is full: the size of the file is compared with what it should be;
* loading trusts its input: only load what you have saved, and know by a checksum to be unchanged.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from inference.exact import nearest
from inference.index_gate import Gate

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

METRICS: Final = ("l2", "l2sq", "cosine", "ip", "hamming")
"""``l2``: Euclidean distance; ``l2sq``: its square; ``cosine``: 1 - cosine; ``ip``: the negative inner product, as
pgvector's ``<#>``; ``hamming``: the number of different bits, each bit a component that is 0 or 1."""

_SPACES: Final = {"l2": "l2", "l2sq": "l2", "cosine": "cosine", "ip": "ip", "hamming": "l2"}

SLICE: Final = 1024
"""Rows added at once: a search waits no longer than these take."""

_WIDEST: Final = 4
"""How often ``ef`` is widened fourfold before an exact search."""

_EXACT_ROWS: Final = 8192


class VectorIndexError(Exception):
    """The index cannot do what was asked: one sentence."""


def _hnswlib() -> Any:
    """Return the package, which must be compiled and so may be missing where the rest of walvec is not.

    Raises:
        VectorIndexError: it is.
    """
    try:
        import hnswlib
    except ImportError:
        raise VectorIndexError(
            "hnswlib is not installed, which external indexes and autotune need: install a C++ compiler and Python's "
            "headers (apt-get install g++ python3-dev), then run `tools/setup.sh hnswlib`, or "
            "`pip install walvec[index]`."
        ) from None
    return hnswlib


def default_threads() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_estimate(rows: int, dimension: int, m: int) -> int:
    """Return about how many bytes an index of ``rows`` vectors takes, in memory and within a few per cent on disk.

    An element holds its vector, 2 m links of 4 bytes on the lowest layer, about m / (m - 1) links of m on those above,
    its label, a lock of 40 bytes, and a place in a hash table.
    """
    lowest = 4 * dimension + 8 * m + 4 + 8
    above = (4 * m + 4) / max(m - 1, 1) + 8
    return int(rows * (lowest + above + 4 + 40 + 56))


class VectorIndex:
    """HNSW over float32 vectors, each under a label of its own that is used once and never again.

    Every method may be called from any thread, at any time. Changes made by one thread are seen by its next search.

    Args:
        dimension: Width of the vectors, 1 or more.
        metric: One of :data:`METRICS`.
        m: Links per element, 2 or more.
        ef_construction: Candidates looked at when an element is added.
        capacity: Elements to make room for; it grows by itself.
        threads: For additions and for searches of many vectors at once; 0: all cores.
        seed: Of the random layers.

    Raises:
        VectorIndexError: a parameter is out of range, or there is no memory for ``capacity``.
    """

    def __init__(
        self,
        dimension: int,
        metric: str,
        *,
        m: int,
        ef_construction: int,
        capacity: int = 0,
        threads: int = 0,
        seed: int = 100,
    ) -> None:
        _check(dimension, metric, m, ef_construction)
        self.dimension = dimension
        self.metric = metric
        self.m = m
        self.ef_construction = ef_construction
        self.threads = threads or default_threads()
        self._seed = seed
        self._live = np.zeros(max(capacity, 1), np.bool_)
        self._count = 0
        self._index: Any = _hnswlib().Index(_SPACES[metric], dimension)
        self._gate = Gate(lambda ef: self._index.set_ef(ef))
        try:
            self._index.init_index(max(capacity, 1), M=m, ef_construction=ef_construction, random_seed=seed)
        except (RuntimeError, MemoryError) as exc:
            raise VectorIndexError(f"There is no memory for an index of {capacity} vectors: {exc}.") from exc

    @classmethod
    def load(
        cls, path: Path, live: NDArray[np.bool_], dimension: int, metric: str, *, m: int, ef_construction: int,
        threads: int = 0,
    ) -> VectorIndex:  # fmt: skip
        """Return the index that :meth:`save` wrote to ``path``. **Never load a file of unknown origin.**

        Args:
            path: The file.
            live: Shape ``(highest label + 1,)``: which labels are present and not deleted.
            dimension: As when it was made, like what follows.
            metric: One of :data:`METRICS`.
            m: Links per element.
            ef_construction: Candidates looked at when an element is added.
            threads: As of the class.

        Raises:
            VectorIndexError: hnswlib cannot read it, or it is another index.
        """
        made = cls(dimension, metric, m=m, ef_construction=ef_construction, threads=threads)
        index = _hnswlib().Index(_SPACES[metric], dimension)
        try:
            index.load_index(str(path))
        except (RuntimeError, MemoryError) as exc:
            raise VectorIndexError(f"The saved index cannot be read: {exc}.") from exc
        if m != index.M or index.ef_construction != ef_construction or index.element_count < np.count_nonzero(live):
            raise VectorIndexError("The saved index is of other parameters than it says.")
        made._index = index
        made._live = live.astype(np.bool_, copy=True) if len(live) else np.zeros(1, np.bool_)
        made._count = int(np.count_nonzero(live))
        return made

    # -- what there is ----------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many vectors a search can find."""
        return self._count

    @property
    def deleted(self) -> int:
        """How many are deleted and still there."""
        return int(self._index.element_count) - self._count

    @property
    def bytes(self) -> int:
        """About how much memory it takes."""
        return memory_estimate(int(self._index.max_elements), self.dimension, self.m)

    # -- changes ----------------------------------------------------------------------------------------------------

    def add(self, labels: Labels, vectors: Floats, instead_of: Labels | None = None) -> None:
        """Add vectors, in slices between which searches get their turn. Runs without the interpreter's lock.

        Args:
            labels: Shape ``(rows,)``, each 0 or more and never used before.
            vectors: Shape ``(rows, dimension)``, finite; for ``cosine`` none of them zero.
            instead_of: Shape ``(rows,)``: labels that are deleted as those come, -1 for none. No search sees both.

        Raises:
            VectorIndexError: shapes do not fit, a label was used before, or there is no memory.
        """
        if vectors.ndim != 2 or vectors.shape != (len(labels), self.dimension):
            raise VectorIndexError(f"The index takes vectors of {self.dimension} dimensions, one for each label.")
        start = 0
        while start < len(labels):
            with self._gate.alone():
                stop = min(start + SLICE, len(labels)) if self._index.element_count else 1
                self._add(labels[start:stop], vectors[start:stop])
                if instead_of is not None:
                    self._remove(instead_of[start:stop])
            start = stop

    def _add(self, labels: Labels, vectors: Floats) -> None:
        highest = int(labels.max())
        if highest >= len(self._live):
            more = np.zeros(max(highest + 1, len(self._live) * 3 // 2), np.bool_)
            more[: len(self._live)] = self._live
            self._live = more
        if self._live[labels].any():
            raise VectorIndexError("A label is in use already.")
        needed = int(self._index.element_count) + len(labels)
        try:
            if needed > self._index.max_elements:
                self._index.resize_index(self._capacity(needed, int(self._index.max_elements)))
            self._index.add_items(vectors, labels, num_threads=self.threads if len(labels) > 1 else 1)
        except (RuntimeError, MemoryError) as exc:
            raise VectorIndexError(f"Vectors could not be added to the index: {exc}.") from exc
        self._live[labels] = True
        self._count += len(labels)

    def _capacity(self, needed: int, held: int) -> int:
        """Return for how many elements to make room when ``needed`` must be held, and there is room for ``held``."""
        return max(needed, held * 5 // 4 + SLICE)

    def remove(self, labels: Labels | Sequence[int]) -> None:
        """Mark labels as deleted; those that are not there are passed over."""
        with self._gate.alone():
            self._remove(labels)

    def _remove(self, labels: Labels | Sequence[int]) -> None:
        for label in labels:
            if 0 <= label < len(self._live) and self._live[label]:
                self._index.mark_deleted(int(label))
                self._live[label] = False
                self._count -= 1

    # -- questions --------------------------------------------------------------------------------------------------

    def search(self, vector: Floats, k: int, ef: int) -> tuple[Labels, Floats]:
        """Return the labels of up to ``k`` nearest vectors and their distances, nearest first.

        Fewer than ``k`` come back only where there are fewer.

        Args:
            vector: Shape ``(dimension,)``.
            k: How many.
            ef: Candidates to look at; at least ``k`` are.

        Raises:
            VectorIndexError: ``vector`` has another dimension.
        """
        labels, distances = self.search_many(np.asarray(vector, np.float32).reshape(1, -1), k, ef, threads=1)
        found = labels[0] >= 0
        return labels[0][found], distances[0][found]

    def search_many(self, vectors: Floats, k: int, ef: int, threads: int = 0) -> tuple[Labels, Floats]:
        """Return the same for many vectors at once: shapes ``(queries, k)``, -1 and infinity where there are fewer.

        Args:
            vectors: Shape ``(queries, dimension)``.
            k: How many for each.
            ef: Candidates to look at for each; at least ``k`` are.
            threads: 0: as the index was made.

        Raises:
            VectorIndexError: ``vectors`` have another dimension.
        """
        vectors = np.ascontiguousarray(vectors, np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise VectorIndexError(f"The index holds vectors of {self.dimension} dimensions; ask with one of these.")
        labels = np.full((len(vectors), k), -1, np.int64)
        distances = np.full((len(vectors), k), np.inf, np.float32)
        ef = max(ef, k, 1)
        for attempt in range(_WIDEST + 1):
            with self._gate.shared(ef):
                count = self._count
                wanted = min(k, count)
                if not wanted or not len(vectors):
                    return labels, distances
                if attempt < _WIDEST and ef < 4 * count:
                    try:
                        found, near = self._index.knn_query(vectors, wanted, num_threads=threads or self.threads)
                    except RuntimeError:  # fewer than k: the graph has parts that the search did not reach
                        found = None
                    if found is not None:
                        labels[:, :wanted], distances[:, :wanted] = found, self._as_metric(near)
                        return labels, distances
                else:
                    near_labels, near = self._exact(vectors, wanted)
                    labels[:, :wanted], distances[:, :wanted] = near_labels, near
                    return labels, distances
            ef *= 4
        return labels, distances

    def vectors(self, labels: Labels) -> tuple[NDArray[np.bool_], Floats]:
        """Return which of ``labels`` are present, and the vectors of those; for ``cosine`` of length 1."""
        with self._gate.shared(self._any_ef()):
            present = (labels >= 0) & (labels < len(self._live))
            present[present] = self._live[labels[present]]
            return present, self._vectors(labels[present])

    def save(self, path: Path) -> None:
        """Write the index to ``path``. Searches go on, changes wait.

        Raises:
            OSError: it could not be written whole.
        """
        with self._gate.shared(self._any_ef()):
            self._index.save_index(str(path))
            expected = int(self._index.index_file_size())
        if path.stat().st_size != expected:
            raise OSError(errno.ENOSPC, "it could not be written whole; is the disk full", str(path))

    def _any_ef(self) -> int:
        """Return the kind under which to enter the gate where ``ef`` does not matter: the present one."""
        return self._gate.kind or 10

    def _vectors(self, labels: Labels) -> Floats:
        if not len(labels):
            return np.empty((0, self.dimension), np.float32)
        found: Floats = np.asarray(self._index.get_items(labels, return_type="numpy"), np.float32)
        return found

    def _exact(self, vectors: Floats, k: int) -> tuple[Labels, Floats]:
        """Compare with every vector. Inside the gate."""
        present = np.flatnonzero(self._live)
        parts = (present[start : start + _EXACT_ROWS] for start in range(0, len(present), _EXACT_ROWS))
        return nearest(vectors, ((part, self._vectors(part)) for part in parts), self.metric, k)

    def _as_metric(self, distances: Floats) -> Floats:
        """Return hnswlib's distances (squared, or 1 - product) as those of the metric."""
        if self.metric == "l2":
            return np.sqrt(np.maximum(distances, 0))
        return distances - 1 if self.metric == "ip" else distances


def _check(dimension: int, metric: str, m: int, ef_construction: int) -> None:
    if metric not in METRICS:
        raise VectorIndexError(f"{metric} is not a metric; there are {', '.join(METRICS)}.")
    bounds = {"dimension": (dimension, 1, 65_536), "m": (m, 2, 1024), "ef_construction": (ef_construction, 1, 65_536)}
    for name, (value, low, high) in bounds.items():
        if not low <= value <= high or math.isnan(value):
            raise VectorIndexError(f"{name} of an HNSW index is {low} to {high}; {value} is not.")
