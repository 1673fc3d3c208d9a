"""hnswlib without its faults: concurrent use, few results, deletions, growth, saving."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.exact import nearest
from inference.index_gate import Gate
from inference.vector_index import METRICS, VectorIndex, VectorIndexError, memory_estimate

WIDTH = 24


def made(metric: str = "l2", rows: int = 0, *, seed: int = 1, m: int = 12) -> tuple[VectorIndex, np.ndarray]:
    vectors = np.random.default_rng(seed).normal(size=(rows, WIDTH)).astype(np.float32)
    if metric == "hamming":
        vectors = (vectors > 0).astype(np.float32)
    index = VectorIndex(WIDTH, metric, m=m, ef_construction=80, threads=2)
    index.add(np.arange(rows), vectors)
    return index, vectors


@pytest.mark.parametrize("metric", METRICS)
def test_distances_are_the_metrics_and_recall_is_that_of_hnsw(metric: str) -> None:
    index, vectors = made(metric, 2000)
    queries = (vectors[:50] + (0 if metric == "hamming" else 0.05)).astype(np.float32)
    rows = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if metric == "cosine" else vectors
    best, near = nearest(queries, [(np.arange(2000), rows)], metric, 10)
    labels, distances = index.search_many(queries, 10, 120)
    hits = [len(set(found) & set(exact)) for found, exact in zip(labels.tolist(), best.tolist(), strict=True)]
    assert np.mean(hits) >= (7 if metric == "hamming" else 9.5)  # whole numbers tie
    assert np.abs(np.sort(distances, axis=1)[:, 0] - near[:, 0]).max() < 1e-4


def test_fewer_than_k_come_back_where_there_are_fewer_and_only_there(tmp_path: Path) -> None:
    index, vectors = made(rows=600)
    index.remove(range(20, 600))
    for k in (1, 20, 50):
        labels, distances = index.search(vectors[3], k, 1)
        assert len(labels) == min(k, 20) and set(labels) <= set(range(20))
        assert labels[0] == 3 and list(distances) == sorted(distances)
    index.remove(range(20))
    assert index.search(vectors[3], 5, 10)[0].size == 0
    index.save(tmp_path / "graph")
    again = VectorIndex.load(tmp_path / "graph", np.zeros(600, np.bool_), WIDTH, "l2", m=12, ef_construction=80)
    assert again.search(vectors[3], 5, 10)[0].size == 0 and (again.count, again.deleted) == (0, 600)
    again.add(np.array([600]), vectors[:1])
    assert again.search(vectors[0], 5, 10)[0].tolist() == [600]


def test_an_empty_index_is_saved_loaded_and_filled_by_several_threads(tmp_path: Path) -> None:
    VectorIndex(WIDTH, "cosine", m=8, ef_construction=50).save(tmp_path / "graph")
    index = VectorIndex.load(
        tmp_path / "graph", np.zeros(0, np.bool_), WIDTH, "cosine", m=8, ef_construction=50, threads=4
    )
    assert index.search(np.ones(WIDTH, np.float32), 3, 10)[0].size == 0
    vectors = np.random.default_rng(5).normal(size=(500, WIDTH)).astype(np.float32)
    index.add(np.arange(500), vectors)
    assert [int(index.search(vector, 1, 100)[0][0]) for vector in vectors[:50]] == list(range(50))


class Probe:
    """hnswlib's index, which notes who is inside together and whether ``ef`` changes under a search."""

    def __init__(self, index: Any) -> None:
        self.index = index
        self.inside = {"add": 0, "ask": 0}
        self.faults: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.index, name)

    def add_items(self, *args: Any, **options: Any) -> None:
        self.inside["add"] += 1
        if self.inside["ask"]:
            self.faults.append("added while somebody searched")
        time.sleep(0.0005)
        self.index.add_items(*args, **options)
        self.inside["add"] -= 1

    def knn_query(self, *args: Any, **options: Any) -> Any:
        self.inside["ask"] += 1
        ef = self.index.ef
        if self.inside["add"]:
            self.faults.append("searched while somebody added")
        found = self.index.knn_query(*args, **options)
        if self.index.ef != ef:
            self.faults.append("ef changed under a search")
        self.inside["ask"] -= 1
        return found


def test_searches_and_changes_from_many_threads_at_once() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    index, vectors = made(rows=300, seed=seed)
    probe = index._index = Probe(index._index)
    stop, wrong = threading.Event(), list[object]()

    def ask(ef: int, k: int) -> None:
        while not stop.is_set():
            try:
                labels, distances = index.search(vectors[7], k, ef)
                if len(labels) < min(k, 100) or labels[0] != 7 or distances[0] > 1e-6:
                    wrong.append((ef, k, labels, distances))
            except Exception as exc:
                wrong.append(exc)

    threads = [threading.Thread(target=ask, args=args) for args in ((10, 5), (50, 5), (10, 40), (200, 100))]
    for thread in threads:
        thread.start()
    choose = np.random.default_rng(seed)
    for start in range(300, 3300, 30):
        fresh = choose.normal(size=(30, WIDTH)).astype(np.float32)
        old = choose.choice(np.arange(8, start), 30, replace=False)
        index.add(np.arange(start, start + 30), fresh, old)
        present, _ = index.vectors(np.arange(start + 30))
        assert present.sum() == index.count
        index.remove(old[:5])
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]
    assert not probe.faults, probe.faults[:3]


def test_a_change_waits_for_no_more_than_the_searches_before_it() -> None:
    gate = Gate(lambda kind: None)
    stop, turns = threading.Event(), []

    def read(kind: int) -> None:
        while not stop.is_set():
            with gate.shared(kind):
                time.sleep(0.001)

    readers = [threading.Thread(target=read, args=(kind,)) for kind in (1, 1, 2, 3)]
    for reader in readers:
        reader.start()
    started = time.monotonic()
    for _ in range(20):
        with gate.alone():
            turns.append(1)
    stop.set()
    for reader in readers:
        reader.join()
    assert len(turns) == 20 and time.monotonic() - started < 10


def test_readers_of_one_kind_are_inside_together_and_of_another_never() -> None:
    kinds: list[int] = []
    gate = Gate(kinds.append)
    inside = threading.Barrier(2, timeout=10)

    def read() -> None:
        with gate.shared(5):
            inside.wait()

    pair = [threading.Thread(target=read) for _ in range(2)]
    for thread in pair:
        thread.start()
    for thread in pair:
        thread.join()
    with gate.shared(6):
        assert kinds == [5, 6]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda index: index.add(np.array([0]), np.ones((1, WIDTH), np.float32)), "in use"),
        (lambda index: index.add(np.array([9000]), np.ones((1, 3), np.float32)), f"{WIDTH} dimensions"),
        (lambda index: index.search(np.ones(3), 1, 10), f"{WIDTH} dimensions"),
        (lambda index: VectorIndex(WIDTH, "nope", m=8, ef_construction=10), "not a metric"),
        (lambda index: VectorIndex(WIDTH, "l2", m=1, ef_construction=10), "m of an HNSW index"),
    ],
)
def test_what_is_refused(change, said):
    index, _ = made(rows=10)
    with pytest.raises(VectorIndexError, match=said):
        change(index)


def test_the_estimate_of_memory_is_about_the_size_of_the_file(tmp_path: Path) -> None:
    index, _ = made(rows=5000, m=16)
    index.save(tmp_path / "graph")
    assert 0.9 < memory_estimate(5000, WIDTH, 16) / (tmp_path / "graph").stat().st_size < 1.7
