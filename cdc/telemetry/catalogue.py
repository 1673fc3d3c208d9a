"""Every metric, named once: what it is called, what it means, and which labels it carries.

Names follow https://prometheus.io/docs/practices/naming/ (base units, unit in the name); types are OpenMetrics 1.0's.
A label never holds a key, a text, or SQL: only names of pipelines and short words from closed sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram", "info"]

SECONDS_TO_VISIBLE = (
    *(0.001, 0.002, 0.004, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0),
)
"""From a live commit on one machine to a backlog of an hour; 8, 10 and 30 ms are the targets people alert on."""

SECONDS_OF_INFERENCE = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""From a small batch on a GPU to the longest request timeout that makes sense."""

SECONDS_OF_WRITE = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""From one row without an index to a full batch into a large HNSW index."""

BATCH_ROWS = tuple(float(2**n) for n in range(13))
"""1 to 4096 rows, doubling."""

OPS = ("insert", "update", "delete", "truncate")
OUTCOMES = ("ok", "error")
REASONS = ("unavailable", "overloaded", "timeout", "too_large", "invalid_argument", "failed", "misconfigured")
"""Failures that are counted from zero, so that their first occurrence is a rate and not a gap."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. ``name`` is what a query types; histograms add ``_bucket``, ``_sum`` and ``_count`` to it."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ("pipeline",)
    bounds: tuple[float, ...] = ()


CATALOGUE: tuple[Metric, ...] = (
    Metric(
        "walvec_pipeline_info",
        "info",
        "A pipeline and how it is set up: mode is Live, Background or Disabled.",
        ("pipeline", "mode", "source_type", "model"),
    ),
    Metric(
        "walvec_unprocessed_rows", "gauge", "Unique rows waiting or in flight; 0 when Disabled, absent for volumes."
    ),
    Metric("walvec_volume_scans_completed_total", "counter", "Full scans of the volume that ended; absent for tables."),
    Metric("walvec_source_records", "gauge", "Records in the source (for a volume: as of its last full scan)."),
    Metric("walvec_embeddings", "gauge", "Embeddings in the destination."),
    Metric(
        "walvec_commit_to_visible_seconds",
        "histogram",
        "From the commit of a row to the moment its embedding can be read: the service level.",
        bounds=SECONDS_TO_VISIBLE,
    ),
    Metric("walvec_changes_total", "counter", "Row changes decoded from the write-ahead log.", ("pipeline", "op")),
    Metric("walvec_coalesced_total", "counter", "Pending changes overtaken by a newer one of the same row."),
    Metric("walvec_skipped_unchanged_total", "counter", "Changes that left the embedded text as it was."),
    Metric("walvec_rows_embedded_total", "counter", "Rows whose embedding was written."),
    Metric("walvec_tokens_total", "counter", "Tokens embedded, by estimate where the runtime does not count them."),
    Metric("walvec_batch_rows", "histogram", "Texts per request to the model.", bounds=BATCH_ROWS),
    Metric("walvec_inflight_requests", "gauge", "Requests to the model that are under way.", ()),
    Metric(
        "walvec_inference_seconds",
        "histogram",
        "Duration of a request to the model; outcome is ok or error.",
        ("pipeline", "outcome"),
        SECONDS_OF_INFERENCE,
    ),
    Metric("walvec_inference_errors_total", "counter", "Failed requests to the model.", ("pipeline", "reason")),
    Metric("walvec_write_seconds", "histogram", "Duration of a write-back transaction.", bounds=SECONDS_OF_WRITE),
    Metric("walvec_dead_letters", "gauge", "Rows set aside with an error, waiting for a person."),
    Metric(
        "walvec_backfill_rows",
        "gauge",
        "Rows of the reconcile under way; state is done or remaining.",
        ("pipeline", "state"),
    ),
    Metric("walvec_pipeline_lag_seconds", "gauge", "Age of the oldest commit not yet embedded; 0 when there is none."),
    Metric(
        "walvec_pipeline_state",
        "gauge",
        "1 for the state the pipeline is in, 0 for the others.",
        ("pipeline", "state"),
    ),
    Metric("walvec_jobs", "gauge", "Rows of the tables of jobs, by kind and state.", ("kind", "state")),
    Metric("walvec_slot_active", "gauge", "1 while this process streams from the replication slot.", ()),
    Metric(
        "walvec_slot_state", "gauge", "1 for the state the consumer is in with its slot, 0 for the others.", ("state",)
    ),
    Metric("walvec_slot_lag_bytes", "gauge", "WAL written by the server and not yet acknowledged.", ()),
    Metric("walvec_slot_retained_bytes", "gauge", "WAL that the server keeps for the slot.", ()),
    Metric(
        "walvec_slot_safe_bytes",
        "gauge",
        "WAL that may still be written before the slot is lost; absent without max_slot_wal_keep_size.",
        (),
    ),
    Metric("walvec_slot_lost_total", "counter", "Times the replication slot was found lost.", ()),
    Metric("walvec_oldest_unacked_seconds", "gauge", "Age of the oldest commit received and not yet acknowledged.", ()),
    Metric(
        "walvec_status_age_seconds", "gauge", "Age of the figures in the gauges: large when the engine is stuck.", ()
    ),
    Metric("walvec_build_info", "info", "The software that runs.", ("version", "python", "implementation")),
)

BY_NAME = {metric.name: metric for metric in CATALOGUE}
