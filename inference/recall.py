"""The exact nearest neighbours of some queries, and the share of them that an approximate search found.

The exact answer comes from matrix products over tiles, so that memory is bounded by the tile and a table may be larger
than memory: rows are added as they come, and only the nearest few of each query are kept. A product in single
precision picks the candidates; their distances are then computed again in double precision, so that neither
cancellation nor the library's order of summation decides who is a neighbour.

Recall is measured by distance, as ANN-Benchmarks does (https://github.com/erikbern/ann-benchmarks, ``metrics.py``): a
row counts where it is no further away than the k-th nearest. Equal rows, of which texts give many, then do not count
as misses, and no key has to travel with the vectors.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Metric = Literal["l2", "cosine", "ip", "hamming"]
Vectors = NDArray[np.float32]
"""Shape ``(rows, dimension)``. For ``hamming`` every number is one bit, 0 or 1."""
Distances = NDArray[np.float64]

METRICS: Final[tuple[Metric, ...]] = ("l2", "cosine", "ip", "hamming")
TILE_ROWS: Final = 16_384
TILE_QUERIES: Final = 512
SPARE: Final = 16
"""Candidates kept beyond k, for the errors of single precision."""

_PAIRS: Final = 1 << 14  # pairs whose differences are held in double precision at once
_TOLERANCE: Final = 1e-5  # what a server's sums in single precision may differ by, relative to the numbers summed


def prepared(rows: Vectors, metric: Metric) -> Vectors:
    """Return ``rows`` as they are compared: of norm 1 for ``cosine`` (rows of zeros stay), else as they are."""
    rows = np.ascontiguousarray(rows, np.float32)
    if metric != "cosine":
        return rows
    norms = np.sqrt(np.vecdot(rows, rows))[:, None]
    unit: Vectors = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return unit


def distances(queries: Vectors, rows: Vectors, metric: Metric) -> Distances:
    """Return the distance of ``queries[i]`` to ``rows[i]``, both :func:`prepared`, in pgvector's terms.

    ``l2``: Euclidean; ``cosine``: 1 - cosine; ``ip``: the product, negated; ``hamming``: the bits that differ.
    """
    return _in_terms(_scores(queries, rows, metric), metric)


class Exact:
    """Collects the nearest rows of each query.

    Args:
        queries: Shape ``(queries, dimension)``; not prepared.
        metric: What near means.
        k: How many neighbours; where there are fewer rows in the end, all of them.
    """

    def __init__(self, queries: Vectors, metric: Metric, k: int) -> None:
        if k < 1:
            raise ValueError("k must be at least 1")
        self.metric = metric
        self.k = k
        self.rows = 0
        """Rows added so far."""
        self._queries = prepared(queries, metric)
        self._norms = np.vecdot(self._queries, self._queries)
        self._longest = 0.0
        shape = (len(queries), k + SPARE)
        self._scores = np.full(shape, np.inf)
        self._ids = np.full(shape, -1, np.int64)

    def add(self, rows: Vectors) -> None:
        """Take more rows; they are numbered in the order they come, from 0. Not prepared."""
        for start in range(0, len(rows), TILE_ROWS):
            tile = prepared(rows[start : start + TILE_ROWS], self.metric)
            norms = np.vecdot(tile, tile)
            self._longest = max(self._longest, float(norms.max()) ** 0.5)
            for first in range(0, len(self._queries), TILE_QUERIES):
                self._add_tile(slice(first, first + TILE_QUERIES), tile, norms)
            self.rows += len(tile)

    def truth(self) -> Truth:
        """Return the neighbours among all rows added.

        Raises:
            ValueError: no row was added.
        """
        if not self.rows:
            raise ValueError("there are no rows to be near to")
        k = min(self.k, self.rows)
        found = _in_terms(self._scores[:, :k], self.metric)
        size = {"ip": self._longest * np.sqrt(self._norms), "cosine": np.float64(0.5)}.get(self.metric, np.float64(0))
        limit = found[:, -1] + _TOLERANCE * (np.abs(found[:, -1]) + size) + np.finfo(np.float32).tiny
        return Truth(self._ids[:, :k].copy(), found, limit, self.rows)

    def _add_tile(self, part: slice, tile: Vectors, norms: Vectors) -> None:
        queries, kept = self._queries[part], self._scores[part]
        if self.metric in ("cosine", "ip"):
            rough = queries @ tile.T
            np.negative(rough, out=rough)
        else:
            rough = queries @ (-2 * tile).T
            rough += norms
            rough += self._norms[part, None]
        width = min(kept.shape[1], len(tile))
        limit = kept[:, -1].astype(np.float32)
        if np.isinf(limit).any():  # nothing to compare with yet: the nearest of this tile
            limit = np.minimum(limit, np.partition(rough, width - 1, axis=1)[:, width - 1])
        at, row = np.nonzero(rough <= limit[:, None])
        scores = np.concatenate(
            [
                _scores(queries[at[i : i + _PAIRS]], tile[row[i : i + _PAIRS]], self.metric)
                for i in range(0, len(at), _PAIRS)
            ]
            or [np.empty(0)]
        )
        self._keep(part, at, scores, row + self.rows)

    def _keep(self, part: slice, at: NDArray[np.intp], scores: Distances, ids: NDArray[np.int64]) -> None:
        """Merge candidates of the queries ``part``, given as (query, score, row), with what is kept."""
        count, width = self._scores[part].shape
        owners = np.concatenate([np.repeat(np.arange(count), width), at])
        scores = np.concatenate([self._scores[part].ravel(), scores])
        ids = np.concatenate([self._ids[part].ravel(), ids])
        order = np.lexsort((scores, owners))
        starts = np.searchsorted(owners[order], np.arange(count))
        chosen = order[(starts[:, None] + np.arange(width)).ravel()]  # each query has at least its own ``width``
        self._scores[part] = scores[chosen].reshape(count, width)
        self._ids[part] = ids[chosen].reshape(count, width)


class Truth:
    """The exact neighbours: ``ids`` and ``distances``, both of shape ``(queries, k)``, nearest first."""

    def __init__(self, ids: NDArray[np.int64], distances: Distances, limit: Distances, rows: int) -> None:
        self.ids = ids
        self.distances = distances
        self.rows = rows
        """Among how many rows."""
        self._limit = limit  # per query: no further than this is a neighbour

    @property
    def k(self) -> int:
        """Neighbours of each query."""
        return int(self.ids.shape[1])

    def only(self, chosen: NDArray[np.bool_]) -> Truth:
        """Return the neighbours of some of the queries."""
        return Truth(self.ids[chosen], self.distances[chosen], self._limit[chosen], self.rows)

    def recall(self, found: Distances) -> float:
        """Return the share of neighbours that a search found, 0 to 1.

        Args:
            found: Distances of what it returned, shape ``(queries, any)``, in the terms of :func:`distances`; NaN where
                it returned fewer.
        """
        return float(self.recalls(found).mean())

    def recalls(self, found: Distances) -> Distances:
        """Return the recall of each query."""
        with np.errstate(invalid="ignore"):
            hits = (found[:, : self.k] <= self._limit[:, None]).sum(axis=1)
        return np.asarray(hits / self.k, np.float64)


def _scores(queries: Vectors, rows: Vectors, metric: Metric) -> Distances:
    """Return what ranks as the distance does: squared for ``l2``, the product negated for ``cosine`` and ``ip``."""
    if metric in ("cosine", "ip"):
        return np.asarray(-np.vecdot(queries.astype(np.float64), rows.astype(np.float64)), np.float64)
    apart = queries.astype(np.float64) - rows
    return np.asarray(np.vecdot(apart, apart))


def _in_terms(scores: Distances, metric: Metric) -> Distances:
    if metric == "l2":
        return np.asarray(np.sqrt(scores), np.float64)
    return 1 + scores if metric == "cosine" else scores.copy()
