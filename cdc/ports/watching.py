"""Who watches: those who hear what happened, and those who ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from cdc.ports.target import DeadLetter
from cdc.status import EngineStatus


class Observer(Protocol):
    """Hears what happened. Every method may be called from any thread and never raises.

    ``pipeline`` is a pipeline's name; no key, text or SQL is ever passed.
    """

    def changes(self, pipeline: str, op: str, rows: int) -> None:
        """``rows`` row changes of kind ``op`` (insert, update, delete, truncate) were decoded."""

    def coalesced(self, pipeline: str, rows: int) -> None:
        """``rows`` pending changes were overtaken by newer ones of the same key."""

    def skipped_unchanged(self, pipeline: str, rows: int) -> None:
        """``rows`` changes left the embedded text as it was, so nothing was embedded."""

    def batch(self, pipeline: str, rows: int) -> None:
        """A request of ``rows`` texts goes to the model."""

    def inference(self, pipeline: str, outcome: str, seconds: float) -> None:
        """A request came back after ``seconds``; ``outcome`` is ``ok`` or ``error``."""

    def inference_error(self, pipeline: str, reason: str) -> None:
        """A request failed; ``reason`` is a short stable word."""

    def embedded(self, pipeline: str, rows: int, tokens: int) -> None:
        """``rows`` embeddings of about ``tokens`` tokens were written."""

    def written(self, pipeline: str, seconds: float) -> None:
        """A write-back transaction took ``seconds``."""

    def visible(self, pipeline: str, seconds: Sequence[float]) -> None:
        """Embeddings became visible, each this long after the commit that asked for it."""

    def slot_lost(self) -> None:
        """The replication slot was lost."""

    def publish(self, status: EngineStatus) -> None:
        """The state of everything, at least every second."""


class Failures(Protocol):
    """Hears of rows that were set aside, their keys and answers included."""

    def buried(self, pipeline: str, letters: Sequence[DeadLetter]) -> None:
        """These letters are in the database now. Called from the event loop; returns at once and never raises."""
        ...


class EngineView(Protocol):
    """What the HTTP server asks of the engine. Called from threads other than the engine's, also while it is stuck."""

    def status(self) -> EngineStatus:
        """Return the latest snapshot at once: never blocks, never does input or output."""
        ...

    def heartbeat_age_s(self) -> float:
        """Return the seconds since the engine's loop last turned. Never blocks."""
        ...

    def search(
        self,
        pipeline: str,
        *,
        query: str | None,
        vector: Sequence[float] | None,
        k: int,
        filter: Mapping[str, object] | None,
        ef: int | None = None,
    ) -> list[dict[str, object]]:
        """Return up to ``k`` rows nearest to ``query`` or ``vector`` (one is None), nearest first. May block.

        Each is ``{"key": {column: value}, "distance": float, "content": str or None}``. ``ef`` is how many candidates
        an HNSW index looks at; None: what it is set to.

        Raises:
            cdc.errors.UnknownPipeline: no pipeline has this name.
            cdc.errors.ConfigError: the request does not fit the pipeline (dimension, filter).
            cdc.errors.Unavailable: the model or the database is away.
        """
        ...

    def sync(self, timeout_s: float) -> bool:
        """Wait until all that was committed before the call is settled; False when time ran out. Blocks."""
        ...
