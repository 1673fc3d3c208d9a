"""Queries to measure an index with: rows that it does not hold.

Rows of the index itself make poor queries: a search for one lands on its own node and finds its neighbours along its
own links, also where it is left out of the answer. Measured on 50,000 sentence embeddings that overstates recall by
up to 0.1, and a tuner that believes it picks an ``ef`` that reaches 0.85 in place of 0.95. Three kinds of query do not:

*held out*
    Random rows kept out of the index under test. The best where the index is made for the trial.
*noise*
    Indexed rows moved away at random, as far as unseen rows are from their nearest neighbours. They are easier than
    unseen rows, by how much depends on graph and ``ef``: good for telling whether two indexes of the same kind are
    equally good, and for no more.
*logged*
    What was really asked for, where somebody kept it. The best of all.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.recall import Distances, Metric, Vectors, prepared

MOST: Final = 2_000
"""Queries of one trial. Recall at 10 of 2,000 queries is known to about ±0.002."""
SHARE: Final = 20
"""At most one row in so many is held out, for the index must stay like that of the whole table."""


def hold_out(rows: int, wanted: int, rng: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indexes of the rows held out and of those kept, each in order; at least one row is held out.

    Raises:
        ValueError: there are fewer than two rows.
    """
    if rows < 2:
        raise ValueError("two rows are needed: one to ask for, one to find")
    held = np.zeros(rows, bool)
    held[rng.choice(rows, max(1, min(wanted, rows // SHARE)), replace=False)] = True
    return np.flatnonzero(held), np.flatnonzero(~held)


def unseen(nearest: Distances, metric: Metric) -> NDArray[np.bool_]:
    """Return which queries are not themselves rows of the index, by the distance to their nearest row.

    For ``ip`` the distance does not tell; give the ``l2`` one.
    """
    least = {"hamming": 0.5, "cosine": 1e-6}.get(metric, 1e-6)
    return np.asarray(nearest > least)


def moved(rows: Vectors, metric: Metric, distance: Distances, rng: np.random.Generator) -> Vectors:
    """Return ``rows`` moved by ``distance``, each in a random direction. Shapes ``(rows, dimension)``, ``(rows,)``.

    The distance is cosine distance for ``cosine``, bits for ``hamming``, Euclidean for ``l2`` and ``ip``.
    """
    if metric == "hamming":
        bits = np.clip(np.rint(distance), 0, rows.shape[1]).astype(int)
        flips = rng.random(rows.shape).argsort(axis=1).argsort(axis=1) < bits[:, None]
        return np.abs(rows - flips.astype(np.float32))
    start = prepared(rows, metric)
    away = rng.standard_normal(rows.shape, np.float32)
    if metric == "cosine":
        away -= np.vecdot(away, start)[:, None] * start  # across, so that the angle is exact
    away /= np.maximum(np.sqrt(np.vecdot(away, away)), np.finfo(np.float32).tiny)[:, None]
    if metric != "cosine":
        return np.asarray(start + distance[:, None] * away, np.float32)
    cosine = np.clip(1 - distance, -1, 1)[:, None]
    return np.asarray(cosine * start + np.sqrt(1 - cosine**2) * away, np.float32)
