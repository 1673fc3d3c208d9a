"""The model, as the services need it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cdc.flow.disposition import Failure
from cdc.ports.target import Vectors


class EmbedFailed(Exception):
    """An embedding request failed. ``reason`` is a short stable word; the message holds no text of a row."""

    def __init__(self, failure: Failure, reason: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.failure = failure
        self.reason = reason
        self.retry_after_s = retry_after_s


class Model(Protocol):
    """The model, as the services need it."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    async def start(self) -> int:
        """Reach the model; return the dimension of its vectors. Raises EmbedFailed."""
        ...

    async def embed(self, texts: Sequence[str], *, query: bool = False, bulk: bool = False) -> Vectors:
        """Return one vector per text, in order; others may pass ``bulk`` work. Raises EmbedFailed."""
        ...

    def tokens(self, size: int) -> int:
        """Return about how many tokens a text of ``size`` bytes comes to, at most what the model reads."""
        ...

    @property
    def pads(self) -> bool:
        """Whether texts of a request cost as much as the longest of them, so that many must be seen to find likes."""
        ...

    def pack(self, tokens: Sequence[int]) -> list[list[int]]:
        """Return batches of indexes into ``tokens``, each within what one request may hold, each index once."""
        ...

    async def close(self) -> None:
        """Let go of it."""
        ...
