"""The observer that counts, and what Prometheus reads from it.

Counters and histograms are plain numbers behind one lock per pipeline: a call costs about a microsecond, and a
scrape copies them before it formats anything, so that a slow scraper never holds up the engine. Gauges are made at
scrape time from the last :class:`~cdc.status.EngineStatus`, so that all figures of one scrape are of one moment and a
pipeline that is gone leaves no series behind.
"""

from __future__ import annotations

import platform
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest as text_format
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_format

import cdc
from cdc.jobs import JobKind, JobState
from cdc.status import EngineStatus, PipelineState, PipelineStatus, SlotState
from cdc.telemetry.catalogue import BY_NAME, CATALOGUE, OPS, OUTCOMES, REASONS, SECONDS_TO_VISIBLE, Metric
from cdc.telemetry.histogram import Histogram

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PLAIN_TEXT = "text/plain; version=0.0.4; charset=utf-8"

MAX_REASONS = 32
"""Beyond this many words per pipeline a failure counts as ``other``: labels stay bounded whatever is passed."""

Sample = tuple[dict[str, str], "float | Histogram"]


class _Counts:
    """What is counted for one pipeline. Every access happens under ``lock``."""

    __slots__ = (
        *("lock", "changes", "coalesced", "skipped", "embedded", "tokens"),
        *("batch_rows", "inference", "inference_errors", "write", "visible"),
    )

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.changes: dict[str, int] = dict.fromkeys(OPS, 0)
        self.coalesced = self.skipped = self.embedded = self.tokens = 0
        self.batch_rows = _histogram("walvec_batch_rows")
        self.inference = {outcome: _histogram("walvec_inference_seconds") for outcome in OUTCOMES}
        self.inference_errors: dict[str, int] = dict.fromkeys(REASONS, 0)
        self.write = _histogram("walvec_write_seconds")
        self.visible = _histogram("walvec_commit_to_visible_seconds")

    def samples(self) -> dict[str, list[Sample]]:
        """Return a copy of everything, by metric name, without the pipeline's label."""
        with self.lock:
            return {
                "walvec_changes_total": [({"op": op}, float(n)) for op, n in self.changes.items()],
                "walvec_coalesced_total": [({}, float(self.coalesced))],
                "walvec_skipped_unchanged_total": [({}, float(self.skipped))],
                "walvec_rows_embedded_total": [({}, float(self.embedded))],
                "walvec_tokens_total": [({}, float(self.tokens))],
                "walvec_batch_rows": [({}, self.batch_rows.copy())],
                "walvec_inference_seconds": [({"outcome": o}, h.copy()) for o, h in self.inference.items()],
                "walvec_inference_errors_total": [({"reason": r}, float(n)) for r, n in self.inference_errors.items()],
                "walvec_write_seconds": [({}, self.write.copy())],
                "walvec_commit_to_visible_seconds": [({}, self.visible.copy())],
            }


class Metrics:
    """An :class:`~cdc.ports.Observer` with a Prometheus registry of its own.

    Args:
        clock: Seconds from a clock that never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[str, _Counts] = {}
        self._retired: set[str] = set()
        self._slots_lost = 0
        self._status: EngineStatus | None = None
        self._jobs: Mapping[tuple[str, str], int] | None = None
        self._published_at = 0.0
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    # What happened. Called once per batch, not once per row.

    def changes(self, pipeline: str, op: str, rows: int) -> None:
        """Count ``rows`` decoded changes of kind ``op``."""
        counts = self._of(pipeline)
        with counts.lock:
            counts.changes[op] = counts.changes.get(op, 0) + rows

    def coalesced(self, pipeline: str, rows: int) -> None:
        """Count ``rows`` pending changes that newer ones overtook."""
        counts = self._of(pipeline)
        with counts.lock:
            counts.coalesced += rows

    def skipped_unchanged(self, pipeline: str, rows: int) -> None:
        """Count ``rows`` changes that embedded nothing."""
        counts = self._of(pipeline)
        with counts.lock:
            counts.skipped += rows

    def batch(self, pipeline: str, rows: int) -> None:
        """Count one request of ``rows`` texts."""
        counts = self._of(pipeline)
        with counts.lock:
            counts.batch_rows.observe(rows)

    def inference(self, pipeline: str, outcome: str, seconds: float) -> None:
        """Count one reply of the model; any ``outcome`` but ``ok`` is an error."""
        counts = self._of(pipeline)
        with counts.lock:
            counts.inference["ok" if outcome == "ok" else "error"].observe(seconds)

    def inference_error(self, pipeline: str, reason: str) -> None:
        """Count one failed request."""
        counts = self._of(pipeline)
        with counts.lock:
            if reason not in counts.inference_errors and len(counts.inference_errors) >= MAX_REASONS:
                reason = "other"
            counts.inference_errors[reason] = counts.inference_errors.get(reason, 0) + 1

    def embedded(self, pipeline: str, rows: int, tokens: int) -> None:
        """Count ``rows`` embeddings written, of ``tokens`` tokens in all."""
        counts = self._of(pipeline)
        with counts.lock:
            counts.embedded += rows
            counts.tokens += tokens

    def written(self, pipeline: str, seconds: float) -> None:
        """Count one write-back transaction."""
        counts = self._of(pipeline)
        with counts.lock:
            counts.write.observe(seconds)

    def visible(self, pipeline: str, seconds: Sequence[float]) -> None:
        """Count embeddings that became visible, each so long after its commit."""
        counts = self._of(pipeline)
        with counts.lock:
            counts.visible.observe_many(seconds)

    def slot_lost(self) -> None:
        """Count one loss of the replication slot."""
        with self._lock:
            self._slots_lost += 1

    def publish(self, status: EngineStatus) -> None:
        """Take over ``status``: new pipelines count from zero, and pipelines that are gone are forgotten."""
        names = {p.pipeline for p in status.pipelines}
        with self._lock:
            gone = {p.pipeline for p in self._status.pipelines} - names if self._status else set()
            for name in gone:
                self._counts.pop(name, None)
            # A late event of a pipeline that is gone must not bring its series back.
            self._retired = (self._retired | gone) - names
            for name in names - self._counts.keys():
                self._counts[name] = _Counts()
            self._status, self._published_at = status, self._clock()

    def jobs(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Take over how many jobs there are, by (kind, state); only a daemon has any."""
        with self._lock:
            self._jobs = dict(counts)

    # What is read.

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Return ``(body, content type)``: OpenMetrics 1.0, or the older text format for who asks for that alone.

        Args:
            accept: The request's ``Accept`` header.
        """
        offered = [part.split(";")[0].strip() for part in accept.split(",")]
        if "text/plain" in offered and "application/openmetrics-text" not in offered:
            return text_format(self.registry), PLAIN_TEXT
        body: bytes = openmetrics_format(self.registry)  # type: ignore[no-untyped-call]
        return body, OPENMETRICS

    def totals(self) -> tuple[int, int, list[int]]:
        """Return changes decoded, rows embedded, and the buckets of commit-to-visible, over all pipelines."""
        changes = embedded = 0
        visible = [0] * (len(SECONDS_TO_VISIBLE) + 1)
        for _, counts in self._snapshot():
            with counts.lock:
                changes += sum(counts.changes.values())
                embedded += counts.embedded
                visible = [a + b for a, b in zip(visible, counts.visible.counts, strict=True)]
        return changes, embedded, visible

    def collect(self) -> Iterator[Family]:
        """Yield every family of the catalogue, also those without a sample: prometheus-client's collector protocol."""
        samples: dict[str, list[Sample]] = defaultdict(list)
        for pipeline, counts in self._snapshot():
            for name, rows in counts.samples().items():
                samples[name] += [({"pipeline": pipeline, **labels}, value) for labels, value in rows]
        with self._lock:
            status, published_at, lost, jobs = self._status, self._published_at, self._slots_lost, self._jobs
        samples["walvec_slot_lost_total"].append(({}, float(lost)))
        samples["walvec_build_info"].append((_build(), 1.0))
        if jobs is not None:
            samples["walvec_jobs"] += [
                ({"kind": kind.value, "state": state.value}, float(jobs.get((kind.value, state.value), 0)))
                for kind in JobKind
                for state in JobState
            ]
        if status is not None:
            samples["walvec_status_age_seconds"].append(({}, max(0.0, self._clock() - published_at)))
            _slot_samples(status, samples)
            for p in status.pipelines:
                _pipeline_samples(p, samples)
        return (_family(metric, samples[metric.name]) for metric in CATALOGUE)

    def _of(self, pipeline: str) -> _Counts:
        counts = self._counts.get(pipeline)
        if counts is not None:
            return counts
        with self._lock:
            if pipeline in self._retired:
                return _Counts()
            return self._counts.setdefault(pipeline, _Counts())

    def _snapshot(self) -> list[tuple[str, _Counts]]:
        with self._lock:
            return sorted(self._counts.items())


def _histogram(name: str) -> Histogram:
    return Histogram(BY_NAME[name].bounds)


def _build() -> dict[str, str]:
    return {
        "version": cdc.__version__,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
    }


def _slot_samples(status: EngineStatus, samples: dict[str, list[Sample]]) -> None:
    slot = status.slot
    samples["walvec_inflight_requests"].append(({}, float(status.inflight_requests)))
    samples["walvec_slot_active"].append(({}, float(slot.state is SlotState.STREAMING)))
    samples["walvec_slot_state"] += [({"state": s.value}, float(s is slot.state)) for s in SlotState]
    samples["walvec_slot_lag_bytes"].append(({}, float(slot.lag_bytes)))
    samples["walvec_slot_retained_bytes"].append(({}, float(slot.retained_bytes)))
    if slot.safe_bytes is not None:
        samples["walvec_slot_safe_bytes"].append(({}, float(slot.safe_bytes)))
    samples["walvec_oldest_unacked_seconds"].append(({}, slot.oldest_unacked_seconds))


def _pipeline_samples(p: PipelineStatus, samples: dict[str, list[Sample]]) -> None:
    own = {"pipeline": p.pipeline}
    info = {**own, "mode": p.mode, "source_type": p.source_type, "model": p.model}
    samples["walvec_pipeline_info"].append((info, 1.0))
    if p.is_volume:
        samples["walvec_volume_scans_completed_total"].append((own, float(p.scans_completed or 0)))
    else:
        samples["walvec_unprocessed_rows"].append((own, float(p.pending_rows)))
    samples["walvec_source_records"].append((own, float(p.source_records)))
    samples["walvec_embeddings"].append((own, float(p.embeddings)))
    samples["walvec_dead_letters"].append((own, float(p.errors)))
    samples["walvec_pipeline_lag_seconds"].append((own, p.lag_seconds))
    samples["walvec_pipeline_state"] += [({**own, "state": s.value}, float(s is p.state)) for s in PipelineState]
    remaining = max(0, p.backfill_total - p.backfill_done)
    samples["walvec_backfill_rows"] += [
        ({**own, "state": "done"}, float(p.backfill_done)),
        ({**own, "state": "remaining"}, float(remaining)),
    ]


def _family(metric: Metric, samples: list[Sample]) -> Family:
    suffix = {"counter": "_total", "info": "_info"}.get(metric.kind, "")
    # UNIT lines are for names that end in the unit; bytes and seconds are the only units walvec has.
    base = metric.name.removesuffix(suffix)
    unit = next((u for u in ("seconds", "bytes") if base.endswith("_" + u)), "")
    family = Family(base, metric.help, metric.kind, unit)
    for labels, value in samples:
        if isinstance(value, Histogram):
            pairs = value.cumulative()
            for le, count in pairs:
                family.add_sample(base + "_bucket", {**labels, "le": le}, count)
            family.add_sample(base + "_count", labels, pairs[-1][1])
            family.add_sample(base + "_sum", labels, value.total)
        else:
            family.add_sample(metric.name, labels, value)
    return family
