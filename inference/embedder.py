"""What every runtime promises: texts in, one unit-free float32 vector each out, in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
"""Shape ``(texts, dimension)``, C-contiguous, finite, no zero rows."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a runtime can take in one request.

    ``max_rows`` and ``max_padded_tokens`` bound a request (longest text times rows); ``max_tokens`` is where the model
    truncates a text; ``concurrency`` is how many requests it serves at once to any profit. ``alike`` is the share (0 to
    1) of a request's longest text that each of its texts should have, where the model pads a request to its longest.
    """

    max_rows: int
    max_padded_tokens: int
    max_tokens: int
    concurrency: int
    alike: float = 0.0


class Embedder(Protocol):
    """A model on a runtime."""

    runtime: str
    model: str

    @property
    def dimension(self) -> int:
        """Width of the vectors. Known once :meth:`start` has returned."""
        ...

    @property
    def limits(self) -> Limits:
        """Bounds for one request. Known once :meth:`start` has returned."""
        ...

    async def start(self) -> None:
        """Load or reach the model and learn its dimension.

        Raises:
            inference.errors.ModelUnavailable: not now; try again later.
            inference.errors.ModelMisconfigured: never, until a person mends it.
        """
        ...

    async def embed(self, texts: Sequence[str], *, query: bool = False, bulk: bool = False) -> Vectors:
        """Return one vector per text, in order.

        Args:
            texts: what to embed.
            query: a search question, not a document; some models treat the two differently.
            bulk: work that can wait, such as a backfill; a server that knows priorities lets others pass it.

        Raises:
            inference.errors.EmbedError: one of its kinds, by what can be done next.
        """
        ...

    async def close(self) -> None:
        """Let go of connections and threads."""
        ...


@runtime_checkable
class ByteEmbedder(Embedder, Protocol):
    """A model that takes files too, such as an image encoder that shares its space with a text encoder."""

    async def embed_bytes(self, contents: Sequence[bytes], *, bulk: bool = False) -> Vectors:
        """Return one vector per file (a PNG, a JPEG: whatever the model decodes), in order.

        Raises:
            inference.errors.EmbedError: as :meth:`embed`; ModelMisconfigured where the model takes text alone.
        """
        ...


@runtime_checkable
class Probed(Protocol):
    """An embedder that no short text shows to be working: it takes images, or a text costs it an answer."""

    async def probe(self) -> None:
        """Find out whether the model works at all.

        Raises:
            inference.errors.EmbedError: as :meth:`Embedder.embed`.
        """
        ...
