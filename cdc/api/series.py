"""The last minutes, second by second, for the plots of the status page."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass

from cdc.status import EngineStatus
from cdc.telemetry.catalogue import SECONDS_TO_VISIBLE
from cdc.telemetry.histogram import quantile
from cdc.telemetry.metrics import Metrics

KEPT = 600
"""Points, one a second: ten minutes."""

WINDOW = 10
"""Points over which rates and quantiles are taken: steady enough to read, short enough to follow."""


@dataclass(frozen=True, slots=True)
class Point:
    """One second. Rates are rows per second; times are seconds; None where nothing happened in the window."""

    at: float  # seconds since 1970, for labels only
    changes_rate: float
    embedded_rate: float
    visible_p50: float | None
    visible_p99: float | None
    lag_seconds: float
    lag_bytes: int
    retained_bytes: int
    unprocessed_rows: int


class Series:
    """A ring of points. Used from one thread."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._points: deque[Point] = deque(maxlen=KEPT)
        self._totals: deque[tuple[float, int, int, list[int]]] = deque(maxlen=WINDOW + 1)

    def sample(self, status: EngineStatus, monotonic_s: float, wall_s: float) -> None:
        """Add the point of this moment."""
        changes, embedded, visible = self._metrics.totals()
        self._totals.append((monotonic_s, changes, embedded, visible))
        then_s, changes_then, embedded_then, visible_then = self._totals[0]
        elapsed = max(monotonic_s - then_s, 1e-9)
        # Sums shrink when a pipeline goes away; that is no negative rate.
        fresh = [max(0, now - then) for now, then in zip(visible, visible_then, strict=True)]
        self._points.append(
            Point(
                at=wall_s,
                changes_rate=max(0, changes - changes_then) / elapsed,
                embedded_rate=max(0, embedded - embedded_then) / elapsed,
                visible_p50=quantile(0.5, SECONDS_TO_VISIBLE, fresh),
                visible_p99=quantile(0.99, SECONDS_TO_VISIBLE, fresh),
                lag_seconds=max((p.lag_seconds for p in status.pipelines), default=0.0),
                lag_bytes=status.slot.lag_bytes,
                retained_bytes=status.slot.retained_bytes,
                unprocessed_rows=sum(p.pending_rows for p in status.pipelines if not p.is_volume),
            )
        )

    def to_json(self, status: EngineStatus) -> dict[str, object]:
        """Return what the status page draws: the snapshot, and the points column by column."""
        columns = {name: [getattr(point, name) for point in self._points] for name in Point.__slots__}
        pipelines = [
            {
                **p.to_json(status.slot.lag_bytes),
                "model": p.model,
                "reason": p.reason,
                "backfill_done": p.backfill_done,
                "backfill_total": p.backfill_total,
            }
            for p in status.pipelines
        ]
        return {
            "slot": asdict(status.slot),
            "inflight_requests": status.inflight_requests,
            "pipelines": pipelines,
            "recent_errors": list(status.recent_errors),
            "points": columns,
        }
