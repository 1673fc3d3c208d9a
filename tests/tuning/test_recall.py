"""Exact neighbours against brute force, and queries that the index does not hold."""

from __future__ import annotations

import numpy as np
import pytest

from inference import queries as asking
from inference.proxy import Proxy, quicker_threads
from inference.recall import METRICS, TILE_ROWS, Exact, Metric, Vectors, distances, prepared
from inference.tuning import Rung
from inference.vector_index import default_threads
from tests.tuning.clusters import embeddings


def sample(metric: Metric, rows: int, seed: int) -> Vectors:
    rng = np.random.default_rng(seed)
    if metric == "hamming":
        return rng.integers(0, 2, (rows, 40)).astype(np.float32)
    return rng.standard_normal((rows, 12)).astype(np.float32) * rng.uniform(0.1, 9, (rows, 1)).astype(np.float32)


def brute(queries: Vectors, rows: Vectors, metric: Metric, k: int) -> np.ndarray:
    """The k least distances of each query, written down as the metric's definition says."""
    found = []
    for q in queries.astype(np.float64):
        r = rows.astype(np.float64)
        if metric == "l2":
            d = np.sqrt(((r - q) ** 2).sum(axis=1))
        elif metric == "cosine":
            d = 1 - (r @ q) / np.linalg.norm(r, axis=1) / np.linalg.norm(q)
        elif metric == "ip":
            d = -(r @ q)
        else:
            d = (r != q).sum(axis=1).astype(np.float64)
        found.append(np.sort(d)[:k])
    return np.array(found)


@pytest.mark.parametrize("metric", METRICS)
def test_exact_is_brute_force(metric: Metric) -> None:
    """Whatever the metric, and wherever tiles and portions end."""
    rows, queries = sample(metric, TILE_ROWS + 700, 1), sample(metric, 70, 2)
    exact = Exact(queries, metric, 10)
    for start in range(0, len(rows), 5_000):
        exact.add(rows[start : start + 5_000])
    truth = exact.truth()
    np.testing.assert_allclose(truth.distances, brute(queries, rows, metric, 10), rtol=1e-5, atol=1e-6)
    again = distances(
        np.repeat(prepared(queries, metric), 10, axis=0), prepared(rows, metric)[truth.ids.ravel()], metric
    )
    np.testing.assert_allclose(truth.distances.ravel(), again, rtol=1e-6, atol=1e-7)
    assert truth.recall(truth.distances) == 1.0


def test_near_rows_survive_single_precision() -> None:
    """Far from the origin the differences drown in a product's rounding: the spare candidates make up for it."""
    rng = np.random.default_rng(3)
    rows = (1_000 + rng.standard_normal((3_000, 8)) * 3).astype(np.float32)
    queries = (1_000 + rng.standard_normal((50, 8)) * 3).astype(np.float32)
    exact = Exact(queries, "l2", 5)
    exact.add(rows)
    np.testing.assert_allclose(exact.truth().distances, brute(queries, rows, "l2", 5), rtol=1e-6)


def test_fewer_rows_than_k() -> None:
    rows = sample("l2", 4, 5)
    exact = Exact(rows + 1, "l2", 10)
    with pytest.raises(ValueError):
        exact.truth()
    exact.add(rows)
    assert exact.truth().k == 4


def test_recall_counts_equal_rows_and_misses() -> None:
    """A row as near as the k-th neighbour counts, whichever of equal ones it is; one further away does not."""
    rows = np.array([[0.0], [1.0], [1.0], [1.0], [5.0]], np.float32)
    exact = Exact(np.zeros((1, 1), np.float32), "l2", 2)
    exact.add(rows)
    truth = exact.truth()
    assert truth.recall(np.array([[0.0, 1.0]])) == 1.0
    assert truth.recall(np.array([[1.0, 1.0]])) == 1.0
    assert truth.recall(np.array([[0.0, 5.0]])) == 0.5
    assert truth.recall(np.array([[0.0, np.nan]])) == 0.5


def test_held_out_rows_are_not_in_the_index() -> None:
    rng = np.random.default_rng(7)
    for rows in (2, 9, 10, 1_000, 100_000):
        held, kept = asking.hold_out(rows, asking.MOST, rng)
        assert not set(held) & set(kept)
        assert len(held) + len(kept) == rows
        assert 1 <= len(held) <= max(1, rows // 20)


def test_doubles_of_indexed_rows_are_no_queries() -> None:
    """A held-out row whose double stayed in the index would be found at once, and its neighbours along with it."""
    rows = sample("cosine", 300, 9)
    queries = np.concatenate([rows[:20], sample("cosine", 20, 10)])
    exact = Exact(queries, "cosine", 3)
    exact.add(rows)
    assert asking.unseen(exact.truth().distances[:, 0], "cosine").tolist() == [False] * 20 + [True] * 20


@pytest.mark.parametrize("metric", METRICS)
def test_moved_rows_are_as_far_as_asked(metric: Metric) -> None:
    rng = np.random.default_rng(11)
    rows = sample(metric, 200, 12)
    apart = {"hamming": np.full(200, 6.0), "cosine": np.full(200, 0.3)}.get(metric, np.full(200, 2.5))
    queries = asking.moved(rows, metric, apart, rng)
    measure: Metric = "l2" if metric == "ip" else metric
    np.testing.assert_allclose(
        distances(prepared(queries, measure), prepared(rows, measure), measure), apart, rtol=1e-4
    )


def test_asking_for_indexed_rows_overstates_recall() -> None:
    """The trap: the same graph, the same ef; rows of the index as queries, each left out of its own answer."""
    rows = embeddings(6_000, seed=13)
    rng = np.random.default_rng(14)
    held, kept = asking.hold_out(len(rows), 500, rng)
    index, ef = rows[kept], 12
    proxy = Proxy(index, "cosine", Rung(6, 24), 1, lambda: None)

    def truth(queries: Vectors, k: int) -> Exact:
        exact = Exact(queries, "cosine", k)
        exact.add(index)
        return exact

    honest = proxy.measure(rows[held], truth(rows[held], 10).truth(), ef, lambda: None).recall
    own = index[rng.choice(len(index), 500, replace=False)]
    with_itself = truth(own, 11).truth()
    found = proxy.measure(own, with_itself, ef, lambda: None).recall
    without_itself = (found * 11 - 1) / 10  # every query finds itself; that one is left out
    assert without_itself > honest + 0.03, (without_itself, honest)


def test_threads_are_measured() -> None:
    assert quicker_threads(16) in (1, 2, default_threads())
