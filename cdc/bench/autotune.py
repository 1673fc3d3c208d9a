"""Autotune beside a sweep of six builds, on real embeddings: how long it takes, and whether its promise holds.

The recall is measured here and not by what tuned: one search per query, as anybody's client would, with sentences that
were never in the table, by primary keys compared with those that NumPy finds.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any, Final

import numpy as np
import psycopg
from numpy.typing import NDArray

from cdc.autotune import autotune
from cdc.autotune.tuner import SCHEMA
from cdc.bench import machine
from cdc.bench.corpus import embeddings
from cdc.bench.figures import Figure, render
from cdc.bench.scene import server
from cdc.jobs import AutotuneSpec
from cdc.postgres import control
from cdc.postgres.tuning_rows import binary_rows
from cdc.rows import Table
from cdc.testing.cluster import Cluster
from cdc.testing.database import Database

Vectors = NDArray[np.float32]

ROWS: Final = 100_000
UNSEEN: Final = 4_000
"""Sentences kept out of the table; the recall at 10 of so many queries is known to about ±0.0015."""
TARGET: Final = 0.95
K: Final = 10
SWEEP: Final = ((64, 32, 6), (64, 40, 8), (64, 48, 12), (76, 60, 16), (96, 96, 32), (128, 128, 48))
"""Lantern's variants: ef, ef_construction, m."""
_SWEEP_QUERIES: Final = 10  # Lantern's number
_MEMORY: Final = "1GB"  # for building, the same for both


def run(cluster: Cluster, rows: int | None = None, repeat: int = 1) -> list[Figure]:
    """Return the figures of autotune against the sweep, on ``rows`` embeddings (100,000)."""
    count = rows or ROWS
    vectors = embeddings(count + UNSEEN)
    database = cluster.create_database("bench_autotune")
    try:
        _fill(database, vectors[:count])
        with database.connect() as connection:  # as in a daemon's database: the copy is an unlogged table there
            control.ensure(connection, SCHEMA)
        return _figures(database, vectors[:count], vectors[count:], repeat)
    finally:
        database.drop()


def _figures(database: Database, rows: Vectors, unseen: Vectors, repeat: int) -> list[Figure]:
    truth = _neighbours(unseen, rows)
    ratios: dict[bool, list[float]] = {True: [], False: []}
    apart: dict[bool, list[float]] = {True: [], False: []}
    took: dict[bool, list[float]] = {True: [], False: []}
    sweeps: list[float] = []
    for _ in range(repeat):
        sweeps.append(_sweep(database, unseen, truth))
        for stays in (True, False):
            seconds, recall = _tuned(database, unseen, truth, stays)
            took[stays].append(seconds)
            ratios[stays].append(seconds / sweeps[-1])
            apart[stays].append(100 * abs(recall - TARGET))
    size = f"{len(rows):,} x {rows.shape[1]}"
    figures = [Figure(f"six builds by pgvector, {size}", "s", tuple(sweeps))]
    for stays, name in ((True, "index made"), (False, "scratch copy")):
        figures += [
            Figure(f"autotune, {name}, {size}", "s", tuple(took[stays])),
            Figure(f"autotune, {name} / six builds", "x", tuple(ratios[stays]), 0.4, "lower"),
            Figure(f"autotune, {name}: recall off target", "%", tuple(apart[stays]), 0.5, "lower"),
        ]
    return figures


def _tuned(database: Database, unseen: Vectors, truth: NDArray[np.int64], stays: bool) -> tuple[float, float]:
    """Tune; return the seconds it took and the recall that its advice has on rows it never saw."""
    spec = AutotuneSpec("e", "cosine", TARGET, K, create_index=stays)
    with database.connect() as db:
        _drop(db)
        db.execute("CHECKPOINT")
        begun = time.monotonic()
        result = asyncio.run(autotune(database.url, Table("public", "docs"), spec))
        seconds = time.monotonic() - begun
        print(f"  {seconds:.0f} s: {result.summary}", flush=True)
        if not stays:
            _build(db, result.best.ef_construction, result.best.m)
        return seconds, _recall(db, result.best.ef, unseen, truth)


def _sweep(database: Database, unseen: Vectors, truth: NDArray[np.int64]) -> float:
    """Build and measure Lantern's six variants with pgvector; return the seconds that took."""
    with database.connect() as db:
        _drop(db)
        db.execute("CHECKPOINT")
        begun = time.monotonic()
        for ef, ef_construction, m in SWEEP:
            _drop(db)
            _build(db, ef_construction, m)
            recall = _recall(db, ef, unseen[:_SWEEP_QUERIES], truth[:_SWEEP_QUERIES])
            so_far = time.monotonic() - begun
            print(f"  {so_far:.0f} s: m {m}, ef_construction {ef_construction}, ef {ef}: {recall:.3f}", flush=True)
        _drop(db)
        return time.monotonic() - begun


def _build(db: psycopg.Connection[Any], ef_construction: int, m: int) -> None:
    db.execute(f"SET maintenance_work_mem = '{_MEMORY}'")
    db.execute(
        f"CREATE INDEX bench_index ON docs USING hnsw (e vector_cosine_ops) "
        f"WITH (m = {m}, ef_construction = {ef_construction})"
    )


def _drop(db: psycopg.Connection[Any]) -> None:
    db.execute("DROP INDEX IF EXISTS bench_index, walvec_autotune_docs_e_cosine")


def _recall(db: psycopg.Connection[Any], ef: int, queries: Vectors, truth: NDArray[np.int64]) -> float:
    db.execute(f"SET enable_seqscan = off; SET hnsw.ef_search = {ef}")
    hits = 0
    for query, nearest in zip(queries, truth, strict=True):
        literal = "[" + ",".join(map(repr, query.tolist())) + "]"
        found = db.execute(f"SELECT id FROM docs ORDER BY e <=> %s::vector LIMIT {K}", (literal,)).fetchall()
        hits += len({number for (number,) in found} & set(nearest.tolist()))
    return hits / (K * len(queries))


def _neighbours(queries: Vectors, rows: Vectors) -> NDArray[np.int64]:
    """Return the ids of the K nearest rows of each query, by one matrix product after the other."""
    parts = np.array_split(queries, max(1, len(queries) // 64))
    return np.concatenate([np.argpartition(-(part @ rows.T), K, axis=1)[:, :K] for part in parts]).astype(np.int64)


def _fill(database: Database, rows: Vectors) -> None:
    with database.connect() as db:
        db.execute("CREATE EXTENSION vector")
        identity = "int GENERATED ALWAYS AS IDENTITY (MINVALUE 0 START 0)"
        db.execute(f"CREATE TABLE docs (id {identity}, e vector({rows.shape[1]}))")
        with db.cursor().copy("COPY docs (e) FROM STDIN (FORMAT binary)") as copy:
            for block in binary_rows(rows, "vector"):
                copy.write(block)
        db.execute("VACUUM ANALYZE docs")


def main() -> None:
    """Run the benchmark by itself."""
    parser = argparse.ArgumentParser(prog="python -m cdc.bench.autotune", description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--repeat", type=int, default=1)
    chosen = parser.parse_args()
    before = machine.load()
    with server("18") as cluster:
        figures = run(cluster, chosen.rows, chosen.repeat)
    print(render(figures))
    print(f"load average before {before}, after {machine.load()}")


if __name__ == "__main__":
    main()
