"""hnswlib as an index under test: built from an array in memory, asked one query at a time, timed.

It builds several times faster than PostgreSQL does, so the graphs of a ladder can be compared in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Final

import numpy as np

from inference.recall import Distances, Metric, Truth, Vectors, distances, prepared
from inference.tuning import Climbed, EfSearch, Ladder, Rung, guess
from inference.vector_index import VectorIndex, default_threads

Check = Callable[[], None]
"""Called between steps; raises to end the work."""

BLOCK: Final = 4_096
"""Rows added between two looks at whether to go on."""
_TRIAL_ROWS: Final = 1_500
_NEAR_ENOUGH: Final = 0.004  # of the recall, where only graphs are compared
_COARSE: Final = 0.05  # of ef, likewise
_TURNS: Final = 6
_TURN_QUERIES: Final = 100


@dataclass(frozen=True, slots=True)
class Measured:
    """What one ``ef`` came to: recall, and milliseconds of a search in this process."""

    ef: int
    recall: float
    p50_ms: float
    p99_ms: float


class Proxy:
    """A graph over ``rows``.

    Args:
        rows: Shape ``(rows, dimension)``, none of them zero where the metric is ``cosine``.
        metric: What near means.
        rung: The graph's parameters.
        threads: For building; 0: all cores.
        check: Called every few thousand rows.
    """

    def __init__(self, rows: Vectors, metric: Metric, rung: Rung, threads: int, check: Check) -> None:
        self.rung = rung
        self._metric = metric
        self._rows = prepared(rows, metric)
        begun = time.perf_counter()
        self._index = VectorIndex(
            rows.shape[1], metric, m=rung.m, ef_construction=rung.ef_construction, capacity=len(rows), threads=threads
        )
        for start in range(0, len(rows), BLOCK):
            check()
            block = self._rows[start : start + BLOCK]
            self._index.add(np.arange(start, start + len(block), dtype=np.int64), block)
        self.build_s = time.perf_counter() - begun
        """Seconds it took to build."""

    @property
    def rows(self) -> int:
        """How many rows it holds."""
        return len(self._rows)

    @property
    def bytes(self) -> int:
        """About how much memory it takes."""
        return self._index.bytes

    def measure(self, queries: Vectors, truth: Truth, ef: int, check: Check) -> Measured:
        """Search for each query by itself, with one thread."""
        asked = prepared(queries, self._metric)
        found: Distances = np.full((len(asked), truth.k), np.nan)
        took = np.empty(len(asked))
        for at, vector in enumerate(asked):
            if at % 256 == 0:
                check()
            begun = time.perf_counter()
            labels, _ = self._index.search(vector, truth.k, ef)
            took[at] = time.perf_counter() - begun
            rows = self._rows[labels]
            found[at, : len(rows)] = distances(np.broadcast_to(vector, rows.shape), rows, self._metric)
        p50, p99 = np.percentile(took * 1000, (50, 99))
        return Measured(ef, truth.recall(found), float(p50), float(p99))

    def least(
        self, queries: Vectors, truth: Truth, search: EfSearch, heard: Callable[[Measured], None], check: Check
    ) -> Climbed:
        """Run ``search``; return the least ``ef`` that reaches its target, or the best recall there is."""
        seen: dict[int, Measured] = {}
        while (ef := search.ask()) is not None:
            seen[ef] = self.measure(queries, truth, ef, check)
            heard(seen[ef])
            search.tell(ef, seen[ef].recall)
        best = seen[search.found] if search.found else max(seen.values(), key=lambda m: (m.recall, -m.ef))
        return Climbed(self.rung, best.ef, best.recall, best.p50_ms, self.build_s, search.found is not None)


def climb(
    rows: Vectors, queries: Vectors, truth: Truth, metric: Metric, ladder: Ladder, target: float, *,
    threads: int, heard: Callable[[Proxy, Measured], None], check: Check,
) -> tuple[Climbed, Proxy]:  # fmt: skip
    """Climb the ladder; return the cheapest rung, and its graph.

    Args:
        rows: What the graphs hold.
        queries: What is asked.
        truth: The queries' neighbours among ``rows``.
        metric: What near means.
        ladder: The rungs.
        target: The recall to reach.
        threads: For building; 0: all cores.
        heard: Called with every measurement.
        check: Called between steps; raises to end the work.
    """
    graphs: dict[Rung, Proxy] = {}
    efs: dict[Rung, int] = {}
    start = guess(truth.k, target)
    while (rung := ladder.ask()) is not None:
        proxy = Proxy(rows, metric, rung, threads, check)
        search = EfSearch(target, start=start, low=truth.k, enough=_NEAR_ENOUGH, coarse=_COARSE)
        climbed = proxy.least(queries, truth, search, partial(heard, proxy), check)
        start = climbed.ef
        graphs[rung], efs[rung] = proxy, climbed.ef
        ladder.tell(climbed, _side_by_side(graphs, efs, queries, truth, check))
    return ladder.best(), graphs[ladder.best().rung]


def _side_by_side(
    graphs: Mapping[Rung, Proxy], efs: Mapping[Rung, int], queries: Vectors, truth: Truth, check: Check
) -> dict[Rung, float]:
    """Return milliseconds of a search of each graph, measured in turns: what else the machine does hits all alike."""
    few = np.arange(len(queries)) < _TURN_QUERIES
    part = truth.only(few)
    took: dict[Rung, list[float]] = {rung: [] for rung in graphs}
    for _ in range(_TURNS if len(graphs) > 1 else 1):
        for rung, graph in graphs.items():
            took[rung].append(graph.measure(queries[few], part, efs[rung], check).p50_ms)
    return {rung: min(times) for rung, times in took.items()}


@cache
def quicker_threads(dimension: int) -> int:
    """Return how many threads build a graph of such vectors fastest here: measured, for two can be slower than one."""
    counts = sorted({1, min(2, default_threads()), default_threads()})
    if len(counts) == 1:
        return 1
    rows = np.random.default_rng(0).standard_normal((_TRIAL_ROWS, dimension), np.float32)
    took = {count: Proxy(rows, "l2", Rung(16, 64), count, _go_on).build_s for count in counts}
    return min(counts, key=lambda count: took[count])


def _go_on() -> None:
    """Nothing ends a measurement of a moment."""
