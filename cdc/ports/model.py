"""Models, as the services need them, and which of them a pipeline uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cdc.flow.disposition import Failure
from cdc.ports.target import Results

CANARY = "walvec"
"""The text that shows whether a model of texts works."""


class EmbedFailed(Exception):
    """An embedding request failed. ``reason`` is a short stable word; the message holds no text of a row."""

    def __init__(self, failure: Failure, reason: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.failure = failure
        self.reason = reason
        self.retry_after_s = retry_after_s


class Embedded(NamedTuple):
    """Results, and the tokens that the model counted for them; None: it does not say, and they can only be guessed."""

    results: Results
    tokens: int | None


class Model(Protocol):
    """The model, as the services need it."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    async def start(self) -> int:
        """Reach the model; return the dimension of its vectors, 0 where it answers in words. Raises EmbedFailed."""
        ...

    async def embed(self, texts: Sequence[str], *, query: bool = False, bulk: bool = False) -> Results:
        """Return one vector or answer per text, in order; others may pass ``bulk`` work. Raises EmbedFailed."""
        ...

    async def embed_counted(self, texts: Sequence[str], *, bulk: bool = False) -> Embedded:
        """Return what :meth:`embed` does, and the tokens that were counted for it. Raises EmbedFailed."""
        ...

    async def probe(self) -> None:
        """Find out whether the model works at all, with the least that it takes. Raises EmbedFailed."""
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


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The model of a pipeline.

    ``name`` is what people see and the control schema keeps. ``recipe`` is all that its results depend on, and what the
    hashes of rows are made with: another recipe, and everything is made anew. It holds no secret. Pipelines whose
    choices hold the same ``model`` object share its requests. ``note`` is what people should know of it, or empty.
    """

    name: str
    recipe: str
    model: Model
    note: str = ""


class Models(Protocol):
    """Which model each pipeline uses. Who made the models closes them, once the engine has ended."""

    def choose(self, pipeline: str) -> ModelChoice:
        """Return the model of ``pipeline`` at once: it is asked again and again, and an edit shows in the answer.

        Raises:
            PipelineFault: there is none for it; the sentence says why.
        """
        ...

    def at_start(self) -> Sequence[ModelChoice]:
        """Return the models to start before any pipeline asks for them, so that a standby is warm."""
        ...
