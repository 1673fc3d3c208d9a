"""From token states to one vector a text, and token ids to the rectangles that a network takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.embedder import Vectors

Ids = NDArray[np.int64]
"""Shape ``(rows, tokens)``."""

POOLINGS = ("mean", "cls", "last")


def pad(rows: Sequence[Sequence[int]], padding: int = 0, width: int | None = None) -> tuple[Ids, Ids]:
    """Return token ids and attention mask (1 for a token, 0 for padding), each of shape ``(rows, width)``.

    Args:
        rows: token ids of each text.
        padding: the id that fills a row up, which matters to models that count positions by it (RoBERTa).
        width: tokens a row, for models of a fixed length; by default the longest row's.
    """
    longest = max(map(len, rows)) if width is None else width
    ids = np.full((len(rows), longest), padding, np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask


def pool(states: NDArray[Any], mask: Ids, how: str) -> Vectors:
    """Return one vector a text, shape ``(rows, dimension)``.

    Args:
        states: floats, shape ``(rows, tokens, dimension)``.
        mask: shape ``(rows, tokens)``, padding behind the tokens, at least one token a row.
        how: ``mean`` over the tokens, ``cls`` (the first), or ``last`` (the last that is no padding).
    """
    if how == "cls":
        return np.ascontiguousarray(states[:, 0, :], np.float32)
    if how == "last":
        ends = mask.sum(axis=1) - 1
        return np.ascontiguousarray(states[np.arange(len(states)), ends, :], np.float32)
    # What a model leaves in the places of padding may be anything, NaN too, and NaN times zero is NaN.
    real = states.astype(np.float32, copy=False) if mask.all() else np.where(mask[:, :, None] == 1, states, 0)
    sums = np.matmul(mask.astype(np.float32)[:, None, :], real.astype(np.float32, copy=False))[:, 0, :]
    vectors: Vectors = sums / mask.sum(axis=1, dtype=np.float32)[:, None]
    return vectors


def unit(vectors: Vectors) -> Vectors:
    """Scale each vector to norm 1, in place."""
    norms = np.sqrt(np.vecdot(vectors, vectors))[:, None]
    vectors /= np.maximum(norms, np.finfo(np.float32).tiny)
    return vectors
