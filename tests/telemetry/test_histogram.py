import bisect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.telemetry.catalogue import CATALOGUE
from cdc.telemetry.histogram import Histogram, quantile


@given(st.lists(st.floats(0, 10_000)))
def test_cumulative_counts_are_those_of_the_sorted_values(values):
    bounds = (0.5, 1.0, 60.0)
    histogram = Histogram(bounds)
    histogram.observe_many(values)
    ordered = sorted(values)
    expected = [(str(b), float(bisect.bisect_right(ordered, b))) for b in bounds]
    assert histogram.cumulative() == [*expected, ("+Inf", float(len(values)))]


@pytest.mark.parametrize("metric", [m for m in CATALOGUE if m.kind == "histogram"], ids=lambda m: m.name)
def test_buckets_ascend(metric):
    assert metric.bounds
    assert all(a < b for a, b in zip(metric.bounds, metric.bounds[1:], strict=False))


def test_targets_are_bounds():
    by_name = {m.name: m.bounds for m in CATALOGUE}
    assert {0.008, 0.01, 0.03, 3600.0} <= set(by_name["walvec_commit_to_visible_seconds"])


def test_quantiles():
    assert quantile(0.5, (1.0, 2.0), (0, 0, 0)) is None
    assert quantile(0.5, (1.0, 2.0), (10, 0, 0)) == 0.5
    assert quantile(0.5, (1.0, 2.0), (5, 5, 0)) == 1.0
    assert quantile(0.75, (1.0, 2.0), (5, 5, 0)) == 1.5
    assert quantile(0.99, (1.0, 2.0), (0, 0, 5)) == 2.0
