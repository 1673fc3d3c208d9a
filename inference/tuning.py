"""Which HNSW parameters reach a recall at the least cost: decisions only, no clock and no index.

``m`` and ``ef_construction`` are tried as rungs of a short ladder, from sparse graphs that are quick to build to dense
ones that few steps search. ``ef`` is then the least that reaches the recall, found by galloping from a guess and
bisecting. Both are asked and told: :meth:`EfSearch.ask` says what to measure, :meth:`EfSearch.tell` takes what came
out, so that whoever measures may do it in a thread, in PostgreSQL, or in a test.

The recall of pgvector's graphs is higher than hnswlib's at the same parameters, for it keeps the pruned candidates as
neighbours too; over six rungs and four ``ef`` each their ranks agreed to 0.99. So the ladder may be climbed on hnswlib,
and only ``ef`` has to be measured in PostgreSQL.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

MOST_EF: Final = 1_000
"""pgvector's limit of ``hnsw.ef_search``."""

PGVECTOR_SHARE: Final = 0.55
"""What pgvector's ``ef`` is of hnswlib's for the same recall, to begin the search with (67 → 38, 85 → 55, 63 → 31)."""

AS_FAST: Final = 1.25
"""Latencies within this factor count as equal, and the quicker build wins: from run to run they differ by nearly as
much, and the next rung costs half as much again or twice to build and to keep."""

MOST_RUNGS: Final = 3
"""Graphs built on the ladder, at most; more where none of these reaches the target."""


@dataclass(frozen=True, slots=True, order=True)
class Rung:
    """The parameters of a graph."""

    m: int
    ef_construction: int

    def __str__(self) -> str:
        return f"m {self.m}, ef_construction {self.ef_construction}"


LADDER: Final = (Rung(8, 32), Rung(12, 48), Rung(16, 64), Rung(24, 100), Rung(32, 160), Rung(48, 256))
"""From the quickest build to the densest graph."""


class EfSearch:
    """The least ``ef`` whose recall reaches a target, recall being taken to rise with ``ef``.

    Args:
        target: The recall to reach, a share of 1.
        start: Where to begin.
        low: The least ``ef`` that is of use: k, for no search returns more rows than ``ef``.
        high: The most.
        enough: A recall from ``target`` to ``target + enough`` ends the search at once: its ``ef`` is the least one, or
            so near it that the queries cannot tell.
        coarse: How near to the least one is near enough, as a share of it.
    """

    def __init__(
        self, target: float, *, start: int, low: int, high: int = MOST_EF, enough: float = 0.0, coarse: float = 0.0
    ) -> None:
        if not 1 <= low <= high:
            raise ValueError(f"ef cannot be from {low} to {high}")
        self.target = target
        self.found: int | None = None
        """The least ``ef`` known to reach the target; None as yet, or because none does."""
        self._low, self._high = low, high
        self._failed = low - 1
        self._enough, self._coarse = enough, coarse
        self._stride = 1.4
        self._next: int | None = max(low, min(start, high))

    def ask(self) -> int | None:
        """Return the ``ef`` to measure; None when the search has ended."""
        return self._next

    def tell(self, ef: int, recall: float) -> None:
        """Take the recall measured at ``ef``."""
        if recall >= self.target:
            self.found = ef
        else:
            self._failed = max(self._failed, ef)
        self._next = self._step(near=0 <= recall - self.target <= self._enough)

    def _step(self, near: bool) -> int | None:
        if self.found is None:  # gallop up
            if self._failed >= self._high:
                return None
            return max(self._failed + 1, min(math.ceil(max(self._failed, 1) * self._longer()), self._high))
        if near or self.found - self._failed <= max(1, self._coarse * self.found):
            return None
        if self._failed < self._low:  # gallop down
            return max(self._low, min(int(self.found / self._longer()), self.found - 1))
        return max(self._failed + 1, math.isqrt(self._failed * self.found))  # recall is about linear in log ef

    def _longer(self) -> float:
        stride, self._stride = self._stride, min(self._stride * 1.25, 4.0)
        return stride


@dataclass(frozen=True, slots=True)
class Climbed:
    """What one rung came to: the least ``ef`` that reaches the target, or, where none does, the best."""

    rung: Rung
    ef: int
    recall: float
    latency_ms: float  # the median of one search
    build_s: float
    reached: bool


class Ladder:
    """Which graphs to build, and which of them is the cheapest.

    It begins where the target usually lies and climbs while a denser graph answers faster; only then does it look one
    rung down, where building is cheaper.
    """

    def __init__(self, target: float, *, rungs: Sequence[Rung] = LADDER, most: int = MOST_RUNGS) -> None:
        self._rungs = rungs
        self._most = most
        self._done: dict[int, Climbed] = {}
        usual = next((i for i, bound in enumerate((0.80, 0.90, 0.97, 0.99)) if target < bound), 4)
        self._next: int | None = min(usual, len(rungs) - 1)

    def ask(self) -> Rung | None:
        """Return the rung to build; None when the ladder has been climbed."""
        return None if self._next is None else self._rungs[self._next]

    def tell(self, climbed: Climbed, latencies: Mapping[Rung, float] | None = None) -> None:
        """Take what came of the rung that was asked for, and the latencies of all as measured side by side."""
        at = self._next
        assert at is not None, "nothing was asked"
        self._done[at] = climbed
        for i, told in self._done.items():
            self._done[i] = replace(told, latency_ms=(latencies or {}).get(told.rung, told.latency_ms))
        climbed = self._done[at]
        enough = len(self._done) >= self._most and any(c.reached for c in self.climbed)
        self._next = None if enough else self._after(at, climbed)

    @property
    def climbed(self) -> list[Climbed]:
        """What has been told, in order."""
        return list(self._done.values())

    def best(self) -> Climbed:
        """Return the cheapest rung that reaches the target; where none does, that of the highest recall.

        Raises:
            ValueError: nothing has been told.
        """
        return cheapest(self.climbed)

    def _after(self, at: int, climbed: Climbed) -> int | None:
        above, below = at + 1, at - 1
        if not climbed.reached:
            lower = [i for i in self._done if i < at and self._done[i].reached]
            up = above if above < len(self._rungs) and above not in self._done and not self._sparser_ended(at) else None
            return None if lower else up
        if above < len(self._rungs) and above not in self._done and self._is_fastest(at) and not self._went_down(at):
            return above
        lowest = min(i for i in self._done if self._done[i].reached)
        fastest = min(c.latency_ms for c in self.climbed if c.reached)
        below = lowest - 1
        if below >= 0 and below not in self._done and self._done[lowest].latency_ms <= fastest * AS_FAST:
            return below
        return None

    def _is_fastest(self, at: int) -> bool:
        """Whether going up to ``at`` made the search clearly faster (the first rung counts as faster)."""
        others = [c.latency_ms for i, c in self._done.items() if i != at and c.reached]
        return not others or self._done[at].latency_ms * AS_FAST < min(others)

    def _went_down(self, at: int) -> bool:
        return any(i > at for i in self._done)

    def _sparser_ended(self, at: int) -> bool:
        """Whether a rung above has been reached already, so that failing here only ends the way down."""
        return any(i > at and c.reached for i, c in self._done.items())


def cheapest(climbed: Sequence[Climbed]) -> Climbed:
    """Return the rung to take: of those that answer about as fast as the fastest the one that is built quickest.

    Raises:
        ValueError: there is none.
    """
    if not climbed:
        raise ValueError("no rung was climbed")
    reached = [c for c in climbed if c.reached]
    if not reached:
        return max(climbed, key=lambda c: (c.recall, -c.rung.m))
    fastest = min(c.latency_ms for c in reached)
    return min((c for c in reached if c.latency_ms <= fastest * AS_FAST), key=lambda c: c.rung)


def guess(k: int, target: float) -> int:
    """Return the ``ef`` to begin with on hnswlib where nothing is known."""
    return max(k, int(k * math.pow(0.5 / max(1 - target, 0.005), 0.75)))
