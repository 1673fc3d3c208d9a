"""The face that every runtime has towards its users: it puts prefixes before texts, and counts what is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from inference.embedder import ByteEmbedder, Embedder, Limits, Vectors
from inference.errors import EmbedError, ModelMisconfigured
from inference.prefixes import Prefixes
from inference.tokens import estimate


@dataclass(slots=True)
class Usage:
    """What was used since the process began. ``failures`` are requests that failed, by reason."""

    requests: int = 0
    rows: int = 0
    tokens: int = 0
    exact: bool = False
    """Whether ``tokens`` are counted by the runtime, and not estimated from the texts' lengths."""
    failures: Counter[str] = field(default_factory=Counter)


@runtime_checkable
class CountsTokens(Protocol):
    """A runtime that knows how many tokens it has read."""

    tokens_used: int


@runtime_checkable
class HasBareLoop(Protocol):
    """A runtime that can show its ceiling: a prepared request, sent with nothing of ours around it."""

    def bare(self, texts: Sequence[str]) -> Callable[[], Awaitable[object]]:
        """Prepare a request; what is returned sends it, as often as it is called."""
        ...


class Front:
    """An embedder with prefixes and a count: an embedder itself, and one that takes files where the runtime does."""

    def __init__(self, embedder: Embedder, prefixes: Prefixes | None = None) -> None:
        """Stand before ``embedder``."""
        self.runtime = embedder.runtime
        self.model = embedder.model
        self.prefixes = prefixes or Prefixes()
        self._embedder = embedder
        self._usage = Usage()

    @property
    def inner(self) -> Embedder:
        """The runtime behind."""
        return self._embedder

    @property
    def dimension(self) -> int:
        """Width of the vectors. Known once :meth:`start` has returned."""
        return self._embedder.dimension

    @property
    def limits(self) -> Limits:
        """Bounds for one request. Known once :meth:`start` has returned."""
        return self._embedder.limits

    @property
    def usage(self) -> Usage:
        """What was used so far."""
        if isinstance(self._embedder, CountsTokens):
            self._usage.tokens, self._usage.exact = self._embedder.tokens_used, True
        return self._usage

    async def start(self) -> None:
        """Load or reach the model.

        Raises:
            EmbedError: as the runtime has it; counted.
        """
        try:
            await self._embedder.start()
        except EmbedError as error:
            self._usage.failures[error.reason] += 1
            raise

    async def embed(self, texts: Sequence[str], *, query: bool = False, bulk: bool = False) -> Vectors:
        """Return one vector per text, in order.

        Raises:
            EmbedError: as the runtime has it; counted.
        """
        prefix = self.prefixes.of(query)
        asked = [prefix + text for text in texts] if prefix else texts
        vectors = await self._counted(self._embedder.embed(asked, query=query, bulk=bulk), len(texts))
        if not isinstance(self._embedder, CountsTokens):
            most = self._embedder.limits.max_tokens
            self._usage.tokens += sum(estimate(len(text), most) for text in asked)
        return vectors

    async def embed_bytes(self, contents: Sequence[bytes], *, bulk: bool = False) -> Vectors:
        """Return one vector per file, in order.

        Raises:
            ModelMisconfigured: the runtime takes text alone.
            EmbedError: as the runtime has it; counted.
        """
        if not isinstance(self._embedder, ByteEmbedder):
            raise ModelMisconfigured(
                f"The {self.runtime} runtime takes text, not files: serve an image model on Triton.",
                reason="text_only",
            )
        return await self._counted(self._embedder.embed_bytes(contents, bulk=bulk), len(contents))

    async def _counted(self, request: Awaitable[Vectors], rows: int) -> Vectors:
        self._usage.requests += 1
        try:
            vectors = await request
        except EmbedError as error:
            self._usage.failures[error.reason] += 1
            raise
        self._usage.rows += rows
        return vectors

    def bare(self, texts: Sequence[str]) -> Callable[[], Awaitable[object]] | None:
        """Prepare a request of the bare loop, prefixes included; None where the runtime has none."""
        prefix = self.prefixes.document
        return (
            self._embedder.bare([prefix + text for text in texts]) if isinstance(self._embedder, HasBareLoop) else None
        )

    async def close(self) -> None:
        """Let go of connections and threads."""
        await self._embedder.close()
