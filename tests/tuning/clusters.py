"""Vectors that lie together as embeddings of texts do: topics within topics, on a sphere."""

from __future__ import annotations

import numpy as np

from inference.recall import Vectors


def embeddings(rows: int, seed: int, dimension: int = 48) -> Vectors:
    """Return unit vectors, shape ``(rows, dimension)``; the rows of one seed are of one kind, whatever their number."""
    world = np.random.default_rng(1_234)
    topics = world.standard_normal((10, dimension))
    stretch = world.standard_normal((dimension, dimension)) / dimension**0.5
    rng = np.random.default_rng(seed)
    vectors = topics[rng.integers(0, len(topics), rows)] + rng.standard_normal((rows, dimension)) @ stretch * 3
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)
