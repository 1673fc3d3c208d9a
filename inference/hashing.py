"""Runtime ``hash``: vectors from a digest of the text, for tests and benchmarks.

Equal texts get equal vectors, different texts get unrelated ones, and no model is needed. For text ``t`` and dimension
``D`` the vector is the first ``2 D`` bytes of SHAKE-256 (FIPS 202) over ``t`` in UTF-8, read as little-endian int16,
cast to float32 and divided by its Euclidean norm. Anybody can compute it again in one line to check a row.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from hashlib import shake_256

import numpy as np

from inference.embedder import Limits, Vectors
from inference.errors import ModelMisconfigured, ModelUnavailable

DEFAULT_DIMENSION = 384
MAX_DIMENSION = 16_000
"""pgvector stores no wider vector."""

INLINE_CHARACTERS = 1 << 18
"""More text than this is hashed in a thread: about a millisecond of work. Below it a thread would only add latency, for
hashlib keeps the GIL on short inputs."""


class HashEmbedder:
    """Vectors by digest, computed in process."""

    runtime = "hash"
    limits = Limits(max_rows=1024, max_padded_tokens=1 << 20, max_tokens=8192, concurrency=4)

    def __init__(self, model: str) -> None:
        """Take the dimension from a model called ``hash-D``; any other name means 384.

        Raises:
            ModelMisconfigured: ``D`` is not between 1 and 16000.
        """
        self.model = model
        self.dimension = dimension_of(model)
        self._open = False

    async def start(self) -> None:
        """Nothing to load."""
        self._open = True

    async def embed(self, texts: Sequence[str], *, query: bool = False, bulk: bool = False) -> Vectors:
        """Return unit vectors, shape ``(texts, dimension)``. Questions are hashed like documents.

        Raises:
            ModelUnavailable: before :meth:`start` or after :meth:`close`.
        """
        if not self._open:
            raise ModelUnavailable("The hash runtime is not started: call start() first.", reason="not_started")
        if sum(map(len, texts)) <= INLINE_CHARACTERS:
            return hash_vectors(texts, self.dimension)
        return await asyncio.get_running_loop().run_in_executor(None, hash_vectors, texts, self.dimension)

    def bare(self, texts: Sequence[str]) -> Callable[[], Awaitable[object]]:
        """Return the bare loop's body: the digests of ``texts``, and nothing around them."""

        async def compute() -> Vectors:
            return hash_vectors(texts, self.dimension)

        return compute

    async def close(self) -> None:
        """Nothing to let go of."""
        self._open = False


def hash_vectors(texts: Sequence[str], dimension: int = DEFAULT_DIMENSION) -> Vectors:
    """Return the digest vectors of ``texts``, shape ``(texts, dimension)``, each of norm 1.

    Lone surrogates, which UTF-8 has no bytes for, are hashed as the three bytes that UTF-8 would give them.
    """
    width = 2 * dimension
    digests = [shake_256(text.encode("utf-8", "surrogatepass")).digest(width) for text in texts]
    vectors = np.frombuffer(b"".join(digests), "<i2").astype(np.float32).reshape(len(texts), dimension)
    # vecdot sums as numpy.linalg.norm does on one vector, so the result equals the definition bit for bit.
    norms: Vectors = np.sqrt(np.vecdot(vectors, vectors))[:, None]
    if dimension < 8 and not norms.all():  # all-zero digests: thinkable only for a handful of bytes
        vectors[norms[:, 0] == 0.0] = np.float32(1.0)
        norms = np.sqrt(np.vecdot(vectors, vectors))[:, None]
    vectors /= norms
    return vectors


def dimension_of(model: str) -> int:
    """Return ``D`` of ``hash-D``, or 384 for any other name.

    Raises:
        ModelMisconfigured: ``D`` is out of range.
    """
    match = re.fullmatch(r"hash-(\d+)", model)
    if match is None:
        return DEFAULT_DIMENSION
    dimension = int(match[1][:9])
    if not 1 <= dimension <= MAX_DIMENSION:
        raise ModelMisconfigured(
            f"Model {model[:40]!r} asks the hash runtime for {dimension} dimensions: "
            f"choose hash-1 to hash-{MAX_DIMENSION}.",
            reason="bad_model",
        )
    return dimension
