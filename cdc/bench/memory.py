"""The most memory that the consumer ever holds (``VmHWM``), when one transaction changes a million rows.

Twice: with the ``hash`` runtime, which keeps up, and with a model that cannot be reached, so that every key waits.
"""

from __future__ import annotations

from cdc.bench.figures import Figure
from cdc.bench.scene import scene
from cdc.testing.cluster import Cluster

TARGET = 300
ROWS = 1_000_000
MODEL = "hash-384"
AWAY = "grpc://127.0.0.1:1"
"""Nobody listens there."""


def run(cluster: Cluster, rows: int | None, repeat: int) -> list[Figure]:
    """Measure; return the peaks in MiB. Once is enough for a peak, so ``repeat`` counts only where it is asked for.

    Raises:
        WrongResult: source and embeddings differ afterwards.
    """
    rows = rows or ROWS
    runs = [_peaks(cluster, rows) for _ in range(repeat)]
    label = f"peak memory, one transaction of {rows:,} rows"
    return [
        Figure(f"{label}, hash", "MiB", tuple(run[0] for run in runs), TARGET, "lower"),
        Figure(f"{label}, model away", "MiB", tuple(run[1] for run in runs), TARGET, "lower"),
    ]


def _peaks(cluster: Cluster, rows: int) -> tuple[float, float]:
    with scene(cluster) as stage:
        with stage.consumer(WALVEC_MODEL=MODEL) as consumer:
            consumer.wait_for("reconcile_finished", 60.0)
            stage.insert(1, rows)
            stage.wait_for_embeddings(rows, consumer)
            busy = consumer.rss_bytes() / 2**20
            stage.check(consumer)
            consumer.stop()
        stage.settle()
        with stage.consumer(WALVEC_MODEL=MODEL, WALVEC_RUNTIME="triton", WALVEC_TRITON_URL=AWAY) as consumer:
            consumer.wait_for("slot_streaming", 60.0)
            stage.connection.execute("UPDATE articles SET body = body || ' and more'")
            stage.wait_for_pending(rows, consumer)
            waiting = consumer.rss_bytes() / 2**20
    return busy, waiting
