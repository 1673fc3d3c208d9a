"""From rows to embeddings, all of it: ``walvec run`` with the ``hash`` runtime beside its server, no vector index.

The clock starts with the work, not with the process: when the consumer says that the backfill began or that it streams,
or when the first row is written to a consumer that runs already. It stops when the last embedding is visible to another
session. Afterwards every row is compared with its embedding, outside the time.
"""

from __future__ import annotations

import time
from typing import Final

from cdc.bench.figures import Figure, ratio
from cdc.bench.scene import event_time, scene
from cdc.bench.writeback import plain_write
from cdc.testing.cluster import Cluster

TARGET = 20_000
ROWS = 100_000
PER_COMMIT: Final = 1000


def plain(cluster: Cluster, rows: int, repeat: int) -> tuple[Figure, Figure]:
    """Return how fast plain SQL writes as many vectors, with synchronous_commit off and local."""
    off, local = [], []
    with scene(cluster) as stage:
        for _ in range(repeat):
            off.append(plain_write(stage, rows, "off"))
            local.append(plain_write(stage, rows, "local"))
    label = f"plain SQL write-back of {rows:,} vectors, synchronous_commit"
    return Figure(f"{label} off", "rows/s", tuple(off)), Figure(f"{label} local", "rows/s", tuple(local))


def backfill(cluster: Cluster, rows: int | None, repeat: int) -> list[Figure]:
    """Measure the backfill of a table that is full before the consumer starts.

    Raises:
        WrongResult: source and embeddings differ afterwards.
    """
    rows = rows or ROWS
    off, local = plain(cluster, rows, repeat)
    rates = tuple(_backfill(cluster, rows) for _ in range(repeat))
    return [
        off,
        local,
        Figure(f"backfill of {rows:,} rows", "rows/s", rates, TARGET),
        ratio("backfill to plain SQL, off", rates, off.values),
        ratio("backfill to plain SQL, local", rates, local.values),
    ]


def _backfill(cluster: Cluster, rows: int) -> float:
    with scene(cluster) as stage:
        stage.insert(1, rows)
        stage.settle()
        with stage.consumer() as consumer:
            end = stage.wait_for_embeddings(rows, consumer)
            begin = event_time(consumer, "reconcile_started")
            stage.check(consumer)
    return rows / (end - begin)


def stream(cluster: Cluster, rows: int | None, repeat: int) -> list[Figure]:
    """Measure a backlog that was written while the consumer was away, then rows written while it runs.

    Raises:
        WrongResult: source and embeddings differ afterwards.
    """
    rows = rows or ROWS
    off, local = plain(cluster, rows, repeat)
    runs = [_stream(cluster, rows) for _ in range(repeat)]
    backlog, live = tuple(run[0] for run in runs), tuple(run[1] for run in runs)
    return [
        off,
        local,
        Figure(f"stream backlog of {rows:,} rows", "rows/s", backlog, TARGET),
        Figure(f"stream of {rows:,} rows while they are written", "rows/s", live),
        ratio("stream backlog to plain SQL, off", backlog, off.values),
        ratio("stream backlog to plain SQL, local", backlog, local.values),
    ]


def _stream(cluster: Cluster, rows: int) -> tuple[float, float]:
    with scene(cluster) as stage:
        with stage.consumer() as consumer:
            consumer.wait_for("reconcile_finished", 60.0)
            consumer.stop()
        stage.insert(1, rows, per_commit=PER_COMMIT)
        stage.settle()
        with stage.consumer() as consumer:
            end = stage.wait_for_embeddings(rows, consumer)
            backlog = rows / (end - event_time(consumer, "slot_streaming"))
            stage.check(consumer)
            begin = time.time()
            stage.insert(rows + 1, rows, per_commit=PER_COMMIT)
            live = rows / (stage.wait_for_embeddings(2 * rows, consumer) - begin)
            stage.check(consumer)
    return backlog, live
