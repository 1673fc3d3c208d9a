"""Nearest neighbours by comparing with every vector."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


def nearest(queries: Floats, parts: Iterable[tuple[Labels, Floats]], metric: str, k: int) -> tuple[Labels, Floats]:
    """Return the labels of the ``k`` vectors nearest to each query and their distances, nearest first.

    Args:
        queries: Shape ``(queries, dimension)``.
        parts: All vectors, some thousands at a time: labels, and rows of shape ``(rows, dimension)``; for ``cosine`` of
            length 1. At least ``k`` in all.
        metric: One of :data:`inference.vector_index.METRICS`.
        k: How many.
    """
    if metric == "cosine":
        queries = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-30)
    best = np.empty((len(queries), 0), np.int64)
    near = np.empty((len(queries), 0), np.float32)
    for labels, rows in parts:
        near = np.concatenate([near, _distances(queries, rows, metric)], axis=1)
        best = np.concatenate([best, np.broadcast_to(labels, (len(queries), len(labels)))], axis=1)
        order = np.argsort(near, axis=1, kind="stable")[:, :k]
        near, best = np.take_along_axis(near, order, 1), np.take_along_axis(best, order, 1)
    return best, near


def _distances(queries: Floats, rows: Floats, metric: str) -> Floats:
    if metric in ("cosine", "ip"):
        products = queries @ rows.T
        return -products if metric == "ip" else 1 - products
    squares = np.stack([((rows - query) ** 2).sum(axis=1) for query in queries])
    return np.sqrt(squares) if metric == "l2" else squares
