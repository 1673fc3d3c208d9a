"""``make bench-index``: an external index beside what it is made of – COPY to nowhere, a bare hnswlib loop, a commit.

Vectors are embeddings of sentences where ``.cache`` has enough of them (``python -m cdc.bench.index --embed`` makes
them), else clustered random ones of the same width; the first line says which. The server keeps PostgreSQL's defaults.
Each pair is measured in turn, run by run, over the same rows, and what was built is compared with an exact search.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import hnswlib
import numpy as np
import psycopg
from numpy.typing import NDArray

from cdc.bench import machine
from cdc.bench.corpus import CACHE, embeddings
from cdc.bench.figures import Figure, WrongResult, ratio, render
from cdc.bench.scene import server
from cdc.external_indexes import HnswIndexes
from cdc.flow.keycodec import KeyCodec
from cdc.flow.vectorformat import VectorFormat
from cdc.jobs import IndexSpec, Job, JobId, JobKind
from cdc.postgres.external_index import PostgresIndexSource
from cdc.postgres.vector_copy import copy_statement, copy_vectors
from cdc.rows import Column, Table
from cdc.services.external_index import IndexRunner, IndexTuning
from cdc.testing.cluster import Cluster
from cdc.testing.database import Database
from inference.vector_index import default_threads

Vectors = NDArray[np.float32]

TABLE: Final = Table("public", "t")
KEY: Final = (Column("id", "integer", "int4"),)
DIMENSION: Final = 384
SPEC: Final = IndexSpec("v", "cosine", 16, 64, 64)
_RATE: Final = 200  # rows per second
_ASKED: Final = 200
_LEAST_RECALL: Final = 0.8


def main(arguments: list[str]) -> int:
    """Measure and print; return the exit status: 1 where a result came out wrong."""
    parser = argparse.ArgumentParser(prog="make bench-index", description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=20, help="of commits whose freshness is measured")
    parser.add_argument("--threads", type=int, default=0, help="that build; 0: one a core")
    parser.add_argument("--pg", default="18", choices=["18"])
    parser.add_argument("--embed", action="store_true", help="embed sentences first, some hundreds a second")
    chosen = parser.parse_args(arguments)
    vectors, what = _vectors(chosen.rows + chosen.seconds * _RATE, embed=chosen.embed)
    base, later = vectors[: chosen.rows], vectors[chosen.rows :]
    threads = chosen.threads or default_threads()
    try:
        with server(chosen.pg) as cluster, _table(cluster, base) as database:
            print(f"{chosen.rows} {what}, {threads} threads, {machine.describe(cluster.major)}", flush=True)
            figures = [*load(database, chosen.rows, chosen.runs), *build(database, base, chosen.runs, threads, later)]
    except WrongResult as exc:
        print(f"bench-index: {exc}", file=sys.stderr)
        return 1
    print(render(figures))
    return 0


def _vectors(rows: int, *, embed: bool) -> tuple[Vectors, str]:
    kept = CACHE / "sentences.npy"
    if embed or (kept.exists() and len(np.load(kept, mmap_mode="r")) >= rows):
        return embeddings(rows), "embeddings of sentences"
    random = np.random.default_rng(7)
    centres = random.normal(size=(rows // 50 + 1, DIMENSION))
    found = centres[random.integers(len(centres), size=rows)] + random.normal(size=(rows, DIMENSION)) * 0.7
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found.astype(np.float32), "clustered random vectors"


@contextmanager
def _table(cluster: Cluster, vectors: Vectors) -> Iterator[Database]:
    database = cluster.create_database("bench_index")
    with database.connect() as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute(f"CREATE TABLE t (id int PRIMARY KEY, v vector({DIMENSION}))")
        layout = [("n", ">i2"), ("a", ">i4"), ("id", ">i4"), ("b", ">i4"), ("dim", ">i2"), ("zero", ">i2")]
        rows = np.zeros(len(vectors), np.dtype([*layout, ("v", ">f4", (DIMENSION,))]))
        rows["n"], rows["a"], rows["b"], rows["dim"] = 2, 4, 4 + 4 * DIMENSION, DIMENSION
        rows["id"], rows["v"] = np.arange(len(vectors)), vectors
        with connection.cursor().copy("COPY t FROM STDIN (FORMAT binary)") as copy:
            copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
            for start in range(0, len(rows), 4096):
                copy.write(rows[start : start + 4096].tobytes())
            copy.write(b"\xff\xff")
        connection.execute("VACUUM ANALYZE t")
        connection.execute("CHECKPOINT")
    yield database


def load(database: Database, rows: int, runs: int) -> list[Figure]:
    """Return the figures of reading the table into arrays, beside psql that throws the same stream away."""
    codec, form = KeyCodec(KEY), VectorFormat("vector", SPEC.metric)
    statement = copy_statement(TABLE, KEY, "v", codec)
    megabytes = rows * (2 + 4 + 4 + 4 + 4 + 4 * DIMENSION) / 1e6
    ours, theirs = [], []
    for _ in range(runs + 1):
        started = time.perf_counter()
        command = [str(database.cluster.bin("psql")), "-q", "-d", database.url, "-c", statement.as_string(None)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        theirs.append(megabytes / (time.perf_counter() - started))
        started = time.perf_counter()
        with database.connect() as connection:
            read = sum(len(chunk.vectors) for chunk in copy_vectors(connection, statement, codec, form, DIMENSION))
        ours.append(megabytes / (time.perf_counter() - started))
        if read != rows:
            raise WrongResult(f"{read} of {rows} rows were read.")
    ours, theirs = ours[1:], theirs[1:]  # the first run warms the server's buffers
    return [
        Figure("COPY binary, psql to /dev/null", "MB/s", tuple(theirs)),
        Figure("load into arrays", "MB/s", tuple(ours)),
        ratio("load / COPY to null", ours, theirs, 0.8),
    ]


class _Report:
    """A job's row that nobody keeps."""

    def __init__(self) -> None:
        self.done = asyncio.Event()

    async def anew(self) -> None:
        """Nothing."""

    async def started(self) -> None:
        """Nothing to note."""

    async def progress(self, percent: int) -> None:
        """Nothing to note."""

    async def finished(self) -> None:
        """Let go who waits."""
        self.done.set()

    async def failed(self, reason: str) -> None:
        """Raise it."""
        raise WrongResult(reason)

    async def waits(self, reason: str) -> None:
        """Nothing to note."""

    async def result(self, row: Mapping[str, object]) -> None:
        """Nothing to note."""

    async def forget_results(self) -> None:
        """Nothing to forget."""


def build(database: Database, base: Vectors, runs: int, threads: int, later: Vectors) -> list[Figure]:
    """Return the figures of building through the runner, beside a bare loop, and of freshness afterwards."""
    ours, theirs, fresh = [], [], []
    for run in range(runs):
        theirs.append(len(base) / _bare(base, threads))
        with tempfile.TemporaryDirectory(prefix="walvec-bench-") as folder:
            last = later if run == runs - 1 else later[:0]
            seconds, found = asyncio.run(_through_runner(database, base, threads, Path(folder), last))
        ours.append(len(base) / seconds)
        fresh += found
    figures = [
        Figure("bare hnswlib loop", "rows/s", tuple(theirs)),
        Figure("build through the runner", "rows/s", tuple(ours)),
        ratio("runner / bare loop", ours, theirs, 0.9),
    ]
    if fresh:
        p50, p99 = np.percentile(np.array(fresh) * 1000, [50, 99])
        figures += [
            Figure(f"behind a commit at {_RATE} rows/s, p50", "ms", (float(p50),), 20.0, "lower"),
            Figure(f"behind a commit at {_RATE} rows/s, p99", "ms", (float(p99),)),
        ]
    return figures


def _bare(vectors: Vectors, threads: int) -> float:
    """Return the seconds that hnswlib takes over the same array, in portions as a loop over it would have."""
    started = time.perf_counter()
    index: Any = hnswlib.Index("cosine", DIMENSION)
    index.init_index(len(vectors), M=SPEC.m, ef_construction=SPEC.ef_construction)
    for start in range(0, len(vectors), 8192):
        index.add_items(vectors[start : start + 8192], np.arange(start, min(start + 8192, len(vectors))), threads)
    return time.perf_counter() - started


async def _through_runner(
    database: Database, base: Vectors, threads: int, folder: Path, later: Vectors
) -> tuple[float, list[float]]:
    job = Job(JobId("bench", Table("public", "jobs"), 1), JobKind.EXTERNAL_INDEX, database.url, "bench", TABLE, SPEC)
    runner = IndexRunner(folder, HnswIndexes(threads, 0), PostgresIndexSource, IndexTuning())
    report = _Report()
    started = time.perf_counter()
    running = asyncio.create_task(runner.run(job, report))
    waiting = asyncio.create_task(report.done.wait())
    await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
    seconds = time.perf_counter() - started
    try:
        if running.done():
            running.result()
        await asyncio.to_thread(_compare, runner, base)
        fresh = await asyncio.to_thread(_freshness, runner, database, len(base), later) if len(later) else []
    finally:
        running.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        await runner.discard(job)
    return seconds, fresh


def _compare(runner: IndexRunner, base: Vectors) -> None:
    """Raise WrongResult unless the index finds about what an exact search finds."""
    random = np.random.default_rng(3)
    asked = base[random.integers(len(base), size=_ASKED)] + random.normal(size=(_ASKED, DIMENSION)).astype("f4") * 0.02
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    hits = 0
    for query, distances in zip(asked, 1 - asked @ (base / np.linalg.norm(base, axis=1, keepdims=True)).T, strict=True):
        exact = set(np.argpartition(distances, 10)[:10].tolist())
        found = runner.search("public.t.v", query, 10, 128)
        hits += sum(int(str(dict(hit["key"])["id"])) in exact for hit in found)  # type: ignore[call-overload]
    recall = hits / 10 / _ASKED
    if recall < _LEAST_RECALL:
        raise WrongResult(f"The index finds {recall:.3f} of the ten nearest.")


def _freshness(runner: IndexRunner, database: Database, first: int, vectors: Vectors) -> list[float]:
    """Return, for each of ``vectors``, the seconds from just before its INSERT was sent until a search finds it."""
    sent: deque[tuple[int, float]] = deque()
    over = threading.Event()

    def write() -> None:
        with database.connect() as connection:
            begun = time.perf_counter()
            for number, vector in enumerate(vectors):
                value = "[" + ",".join(f"{x:.7g}" for x in vector.tolist()) + "]"
                time.sleep(max(0.0, begun + number / _RATE - time.perf_counter()))
                sent.append((number, time.perf_counter()))
                connection.execute("INSERT INTO t VALUES (%s, %s)", (first + number, value))
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    behind: list[float] = []
    while sent or not over.is_set():
        if not sent:
            time.sleep(0.0005)
            continue
        number, at = sent[0]
        found = runner.search("public.t.v", vectors[number], 3, 64)
        if any(hit["key"] == {"id": first + number} for hit in found):
            behind.append(time.perf_counter() - at)
            sent.popleft()
        elif time.perf_counter() - at > 10:
            raise WrongResult("A row that was inserted is not found within ten seconds.")
        else:
            time.sleep(0.0005)
    writer.join()
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("DELETE FROM t WHERE id >= %s", [first])
    return behind


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
