from cdc.api.series import KEPT, Series
from cdc.telemetry.metrics import Metrics
from tests.api.conftest import STATUS


def test_rates_and_quantiles_over_the_window():
    metrics = Metrics()
    series = Series(metrics)
    metrics.publish(STATUS)
    for second in range(30):
        metrics.changes("public.articles", "insert", 200)
        metrics.embedded("public.articles", 100, 1000)
        metrics.visible("public.articles", [0.009] * 98 + [0.4] * 2)
        series.sample(STATUS, float(second), 1e9 + second)
    points = series.to_json(STATUS)["points"]
    assert isinstance(points, dict)
    assert points["at"] == [1e9 + s for s in range(30)]
    assert points["changes_rate"][-1] == 200
    assert points["embedded_rate"][-1] == 100
    assert 0.008 < points["visible_p50"][-1] <= 0.01
    assert 0.2 < points["visible_p99"][-1] <= 0.5
    assert points["unprocessed_rows"][-1] == 3
    assert points["lag_seconds"][-1] == 0.25


def test_quiet_seconds_have_no_quantile_and_gone_pipelines_no_negative_rate():
    metrics = Metrics()
    series = Series(metrics)
    metrics.publish(STATUS)
    metrics.embedded("files", 500, 1)
    metrics.visible("files", [1.0])
    series.sample(STATUS, 0.0, 0.0)
    metrics.publish(type(STATUS)(STATUS.slot, STATUS.pipelines[:1]))
    series.sample(STATUS, 1.0, 1.0)
    points = series.to_json(STATUS)["points"]
    assert isinstance(points, dict)
    assert points["embedded_rate"] == [0, 0]
    assert points["visible_p50"] == [None, None]


def test_the_ring_is_bounded():
    series = Series(Metrics())
    for second in range(KEPT * 2):
        series.sample(STATUS, float(second), float(second))
    points = series.to_json(STATUS)["points"]
    assert isinstance(points, dict)
    assert len(points["at"]) == KEPT
