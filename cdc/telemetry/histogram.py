"""A histogram that takes a whole batch of observations at once."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence


class Histogram:
    """Counts of observations per bucket. Not synchronised: its owner holds the lock.

    Args:
        bounds: Inclusive upper bounds of the buckets, ascending; a last bucket without a bound is implied.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one observation. A negative one (clocks of two machines) counts as zero: sums must not go down."""
        value = max(value, 0.0)
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def observe_many(self, values: Iterable[float]) -> None:
        """Count each of ``values``."""
        for value in values:
            self.observe(value)

    def copy(self) -> Histogram:
        """Return an independent copy."""
        twin = Histogram(self.bounds)
        twin.counts = self.counts.copy()
        twin.total = self.total
        return twin

    def cumulative(self) -> list[tuple[str, float]]:
        """Return ``(le, observations up to le)`` per bucket, as the exposition formats want them, ``+Inf`` last."""
        running = 0
        pairs: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            running += count
            pairs.append((bound, float(running)))
        return pairs


def quantile(q: float, bounds: Sequence[float], counts: Sequence[int]) -> float | None:
    """Return the ``q`` quantile (0 to 1) by interpolation within its bucket, as PromQL's ``histogram_quantile`` does.

    None without observations; the highest bound when the quantile lies beyond it.
    """
    total = sum(counts)
    if total <= 0:
        return None
    rank = q * total
    below = 0
    for index, bound in enumerate(bounds):
        if below + counts[index] >= rank and counts[index]:
            lower = bounds[index - 1] if index else 0.0
            return lower + (bound - lower) * (rank - below) / counts[index]
        below += counts[index]
    return bounds[-1]
