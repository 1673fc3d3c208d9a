"""What a search for HNSW parameters is asked, what it tells on the way, and what it comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from cdc.jobs import AutotuneSpec, Job
from cdc.rows import Table

METRICS: Final = {"l2": "l2", "l2sq": "l2", "cosine": "cosine", "ip": "ip", "hamming": "hamming"}
"""What a job may call a distance, and the one whose neighbours are the same."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One measurement: parameters, and what came of them. ``backend`` is ``hnswlib`` or ``pgvector``."""

    backend: str
    m: int
    ef_construction: int
    ef: int
    recall: float  # a share of 1
    p50_ms: float
    p99_ms: float
    build_s: float | None  # None: the index was there
    size_bytes: int
    rows: int  # in the index
    queries: int
    query_kind: str  # held out, noise, logged


@dataclass(frozen=True, slots=True)
class Earlier:
    """The winner of an earlier search, to begin with."""

    m: int
    ef_construction: int
    ef: int
    backend: str
    recall: float
    metric: str
    k: int
    rows: int
    dimension: int


@dataclass(frozen=True, slots=True)
class AutotuneResult:
    """What a search came to.

    Attributes:
        trials: Every measurement, in order.
        best: The one to use: the cheapest that reaches the target, or the best there is.
        reached: Whether it reaches the target.
        summary: The same in one sentence, with the reason.
        index: The index that was made in the database, schema and name; None where none was asked for.
        dimension: Width of the vectors.
    """

    trials: tuple[Trial, ...]
    best: Trial
    reached: bool
    summary: str
    index: Table | None
    dimension: int


class Say(Protocol):
    """Hears of a search while it runs. Called from another thread; must return at once."""

    def progress(self, percent: int) -> None:
        """How much is done, 0 to 100; may repeat itself."""
        ...

    def trial(self, trial: Trial, dimension: int) -> None:
        """A measurement was made."""
        ...


class Tuner(Protocol):
    """Searches for parameters."""

    async def tune(
        self, url: str, table: Table, spec: AutotuneSpec, *, owner: str, earlier: Sequence[Earlier], say: Say
    ) -> AutotuneResult:
        """Search; cancelling it ends what runs in the server and drops what was made on the way.

        Args:
            url: The database.
            table: The table.
            spec: What is wanted.
            owner: Names the scratch objects: two searches of one owner cannot run at once.
            earlier: Winners of earlier searches for the same model, newest first.
            say: Hears of it.

        Raises:
            Unavailable: the server is away, or a search of this owner runs already.
            ConfigError, PipelineFault: it cannot be done; the sentence says why.
        """
        ...

    async def discard(self, url: str, table: Table, spec: AutotuneSpec, *, owner: str) -> None:
        """Drop what a search that was killed has left behind.

        Raises:
            Unavailable: the server is away.
        """
        ...


class Experiments(Protocol):
    """Earlier searches."""

    async def of(self, job: Job) -> Sequence[Mapping[str, Any]]:
        """Return rows of the job's results table that won for ``job.spec.model``, newest first."""
        ...
