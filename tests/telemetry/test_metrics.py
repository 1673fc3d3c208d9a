"""What Prometheus reads: the public names, and figures that are those of the status."""

import threading

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from cdc.ports import Observer
from cdc.status import EngineStatus, PipelineState, PipelineStatus, SlotState, SlotStatus
from cdc.telemetry.metrics import MAX_REASONS, OPENMETRICS, PLAIN_TEXT, Metrics

# The public names, spelled out here on purpose: dashboards and alerts of users depend on each.
PUBLIC = {
    "walvec_pipeline_info": ("info", {"pipeline", "mode", "source_type", "model"}),
    "walvec_unprocessed_rows": ("gauge", {"pipeline"}),
    "walvec_volume_scans_completed_total": ("counter", {"pipeline"}),
    "walvec_source_records": ("gauge", {"pipeline"}),
    "walvec_embeddings": ("gauge", {"pipeline"}),
    "walvec_commit_to_visible_seconds_bucket": ("histogram", {"pipeline", "le"}),
    "walvec_commit_to_visible_seconds_count": ("histogram", {"pipeline"}),
    "walvec_commit_to_visible_seconds_sum": ("histogram", {"pipeline"}),
    "walvec_changes_total": ("counter", {"pipeline", "op"}),
    "walvec_coalesced_total": ("counter", {"pipeline"}),
    "walvec_skipped_unchanged_total": ("counter", {"pipeline"}),
    "walvec_rows_embedded_total": ("counter", {"pipeline"}),
    "walvec_tokens_total": ("counter", {"pipeline"}),
    "walvec_batch_rows_bucket": ("histogram", {"pipeline", "le"}),
    "walvec_inflight_requests": ("gauge", set()),
    "walvec_inference_seconds_bucket": ("histogram", {"pipeline", "outcome", "le"}),
    "walvec_inference_errors_total": ("counter", {"pipeline", "reason"}),
    "walvec_write_seconds_bucket": ("histogram", {"pipeline", "le"}),
    "walvec_dead_letters": ("gauge", {"pipeline"}),
    "walvec_slot_lag_bytes": ("gauge", set()),
    "walvec_slot_retained_bytes": ("gauge", set()),
    "walvec_slot_safe_bytes": ("gauge", set()),
    "walvec_slot_active": ("gauge", set()),
    "walvec_slot_lost_total": ("counter", set()),
    "walvec_oldest_unacked_seconds": ("gauge", set()),
    "walvec_backfill_rows": ("gauge", {"pipeline", "state"}),
    "walvec_build_info": ("info", {"version", "python", "implementation"}),
}

ARTICLES = PipelineStatus(
    pipeline="public.articles",
    model="all-minilm-l6-v2",
    state=PipelineState.BACKFILLING,
    unprocessed_rows=7,
    source_records=100,
    embeddings=93,
    lag_seconds=1.5,
    errors=2,
    backfill_done=60,
    backfill_total=100,
)
FILES = PipelineStatus(pipeline="files", source_type="volume", scans_completed=3, source_records=5, embeddings=5)
SLOT = SlotStatus("walvec", SlotState.STREAMING, lag_bytes=10, retained_bytes=20, safe_bytes=30)
STATUS = EngineStatus(SLOT, (ARTICLES, FILES), inflight_requests=4)


def scrape(metrics, **labels):
    """Return {sample name: [(labels, value)]} of the samples that carry ``labels``."""
    found: dict[str, list] = {}
    for family in text_string_to_metric_families(metrics.exposition()[0].decode()):
        for sample in family.samples:
            if labels.items() <= sample.labels.items():
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(metrics, name, **labels):
    samples = [v for found, v in scrape(metrics).get(name, []) if found == labels]
    assert len(samples) == 1, f"{name}{labels}: {samples}"
    return samples[0]


@pytest.fixture
def metrics():
    metrics = Metrics(clock=lambda: 0.0)
    metrics.publish(STATUS)
    return metrics


def test_it_is_an_observer(metrics):
    observer: Observer = metrics
    assert observer is metrics


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name(metrics, name):
    kind, labels = PUBLIC[name]
    families = list(text_string_to_metric_families(metrics.exposition()[0].decode()))
    found = [(f, s) for f in families for s in f.samples if s.name == name]
    assert found, f"{name} is not exposed from the start"
    assert {family.type for family, _ in found} == {kind}
    assert all(set(sample.labels) == labels for _, sample in found)


def test_nothing_but_the_exact_names_of_a_scrape(metrics):
    for name in scrape(metrics):
        assert name.startswith("walvec_")
        assert not name.endswith("_created")


def test_gauges_are_the_status(metrics):
    own = {"pipeline": "public.articles"}
    assert value(metrics, "walvec_unprocessed_rows", **own) == 7
    assert value(metrics, "walvec_source_records", **own) == 100
    assert value(metrics, "walvec_embeddings", **own) == 93
    assert value(metrics, "walvec_dead_letters", **own) == 2
    assert value(metrics, "walvec_pipeline_lag_seconds", **own) == 1.5
    assert value(metrics, "walvec_backfill_rows", **own, state="done") == 60
    assert value(metrics, "walvec_backfill_rows", **own, state="remaining") == 40
    assert value(metrics, "walvec_pipeline_state", **own, state="backfilling") == 1
    assert value(metrics, "walvec_pipeline_state", **own, state="ready") == 0
    info = {**own, "mode": "Background", "source_type": "table", "model": "all-minilm-l6-v2"}
    assert value(metrics, "walvec_pipeline_info", **info) == 1
    assert value(metrics, "walvec_inflight_requests") == 4
    assert value(metrics, "walvec_slot_lag_bytes") == 10
    assert value(metrics, "walvec_slot_retained_bytes") == 20
    assert value(metrics, "walvec_slot_safe_bytes") == 30
    assert value(metrics, "walvec_slot_active") == 1


def test_volumes_have_scans_and_tables_have_unprocessed_rows(metrics):
    assert scrape(metrics)["walvec_volume_scans_completed_total"] == [({"pipeline": "files"}, 3.0)]
    assert scrape(metrics)["walvec_unprocessed_rows"] == [({"pipeline": "public.articles"}, 7.0)]


def test_disabled_has_nothing_unprocessed(metrics):
    metrics.publish(EngineStatus(SLOT, (PipelineStatus("p", mode="Disabled", unprocessed_rows=9),)))
    assert value(metrics, "walvec_unprocessed_rows", pipeline="p") == 0


def test_slot_without_a_limit_has_no_safe_bytes(metrics):
    metrics.publish(EngineStatus(SlotStatus("walvec", SlotState.STANDBY)))
    assert "walvec_slot_safe_bytes" not in scrape(metrics)
    assert value(metrics, "walvec_slot_active") == 0
    assert value(metrics, "walvec_slot_state", state="standby") == 1


def test_counters_count(metrics):
    own = {"pipeline": "public.articles"}
    metrics.changes("public.articles", "insert", 5)
    metrics.changes("public.articles", "insert", 2)
    metrics.coalesced("public.articles", 3)
    metrics.skipped_unchanged("public.articles", 4)
    metrics.embedded("public.articles", 6, 600)
    metrics.inference_error("public.articles", "unavailable")
    metrics.slot_lost()
    assert value(metrics, "walvec_changes_total", **own, op="insert") == 7
    assert value(metrics, "walvec_changes_total", **own, op="delete") == 0
    assert value(metrics, "walvec_coalesced_total", **own) == 3
    assert value(metrics, "walvec_skipped_unchanged_total", **own) == 4
    assert value(metrics, "walvec_rows_embedded_total", **own) == 6
    assert value(metrics, "walvec_tokens_total", **own) == 600
    assert value(metrics, "walvec_inference_errors_total", **own, reason="unavailable") == 1
    assert value(metrics, "walvec_slot_lost_total") == 1


def test_histograms_count_in_the_right_buckets(metrics):
    own = {"pipeline": "public.articles"}
    metrics.visible("public.articles", [0.008, 0.0081, 0.5, 7200.0])
    name = "walvec_commit_to_visible_seconds"
    for le, count in {"0.004": 0, "0.008": 1, "0.01": 2, "0.03": 2, "0.5": 3, "3600.0": 3, "+Inf": 4}.items():
        assert value(metrics, f"{name}_bucket", **own, le=le) == count, le
    assert value(metrics, f"{name}_count", **own) == 4
    assert value(metrics, f"{name}_sum", **own) == pytest.approx(7200.5161)
    metrics.batch("public.articles", 256)
    assert value(metrics, "walvec_batch_rows_bucket", **own, le="256.0") == 1
    assert value(metrics, "walvec_batch_rows_bucket", **own, le="128.0") == 0
    metrics.inference("public.articles", "ok", 0.02)
    metrics.inference("public.articles", "cancelled", 0.02)
    assert value(metrics, "walvec_inference_seconds_count", **own, outcome="ok") == 1
    assert value(metrics, "walvec_inference_seconds_count", **own, outcome="error") == 1
    metrics.written("public.articles", 0.003)
    assert value(metrics, "walvec_write_seconds_sum", **own) == pytest.approx(0.003)


def test_a_clock_behind_the_database_makes_no_negative_sum(metrics):
    metrics.visible("public.articles", [-5.0])
    assert value(metrics, "walvec_commit_to_visible_seconds_sum", pipeline="public.articles") == 0
    assert value(metrics, "walvec_commit_to_visible_seconds_bucket", pipeline="public.articles", le="0.001") == 1


def test_a_pipeline_that_is_gone_leaves_nothing_behind(metrics):
    metrics.embedded("files", 1, 1)
    metrics.publish(EngineStatus(SLOT, (ARTICLES,)))
    metrics.embedded("files", 1, 1)  # a batch that was still under way
    assert not scrape(metrics, pipeline="files")
    assert scrape(metrics, pipeline="public.articles")
    metrics.publish(STATUS)
    assert value(metrics, "walvec_rows_embedded_total", pipeline="files") == 0


def test_events_before_the_first_status_are_not_lost():
    metrics = Metrics()
    metrics.changes("public.articles", "insert", 5)
    assert "walvec_slot_active" not in scrape(metrics)
    metrics.publish(STATUS)
    assert value(metrics, "walvec_changes_total", pipeline="public.articles", op="insert") == 5


def test_labels_stay_bounded(metrics):
    for i in range(1000):
        metrics.inference_error("public.articles", f"reason {i}")
    reasons = scrape(metrics, pipeline="public.articles")["walvec_inference_errors_total"]
    assert len(reasons) <= MAX_REASONS + 1
    assert sum(count for _, count in reasons) == 1000


def test_odd_names_survive_the_format(metrics):
    odd = 'we"ird\\schema\n.tä ble{}'
    metrics.publish(EngineStatus(SLOT, (PipelineStatus(odd, unprocessed_rows=1),)))
    assert value(metrics, "walvec_unprocessed_rows", pipeline=odd) == 1


def test_age_of_the_figures_shows_a_stuck_engine():
    now = [100.0]
    metrics = Metrics(clock=lambda: now[0])
    metrics.publish(STATUS)
    now[0] = 142.0
    assert value(metrics, "walvec_status_age_seconds") == 42


def test_two_registries_share_nothing():
    one, other = Metrics(), Metrics()
    one.publish(STATUS)
    assert not scrape(other, pipeline="files")


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", OPENMETRICS),
        ("*/*", OPENMETRICS),
        ("text/html,application/xhtml+xml,*/*;q=0.8", OPENMETRICS),
        # Prometheus 2.42 and 3
        ("application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
         "text/plain;version=0.0.4;q=0.5,*/*;q=0.1", OPENMETRICS),
        ("text/plain;version=0.0.4", PLAIN_TEXT),
    ],
)  # fmt: skip
def test_content_negotiation(metrics, accept, content_type):
    body, found = metrics.exposition(accept)
    assert found == content_type
    if content_type == PLAIN_TEXT:
        names = {s.name for f in text_families(body.decode()) for s in f.samples}
        assert names >= PUBLIC.keys()
    else:
        assert body.endswith(b"# EOF\n")


def test_counting_from_many_threads_loses_nothing(metrics):
    def work():
        for _ in range(2000):
            metrics.embedded("public.articles", 1, 2)
            metrics.visible("public.articles", (0.01, 0.02))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        scrape(metrics)
    assert value(metrics, "walvec_rows_embedded_total", pipeline="public.articles") == 16000
    assert value(metrics, "walvec_commit_to_visible_seconds_count", pipeline="public.articles") == 32000
    changes, embedded, visible = metrics.totals()
    assert (changes, embedded, sum(visible)) == (0, 16000, 32000)
