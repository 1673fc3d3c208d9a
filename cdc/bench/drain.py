"""How fast a backlog is read from a slot, beside PostgreSQL's own ``pg_recvlogical`` on the same position.

One slot is made before the rows; every run reads from a copy of it, in turn: ``pg_recvlogical`` into ``/dev/null``,
then walvec's own connection and intake up to the dirty set, with no work behind it. Both ask for the same stream.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from typing import Final

import psycopg

from cdc.app import calm_collector
from cdc.bench.decode import intake
from cdc.bench.figures import Figure, WrongResult, ratio
from cdc.bench.scene import WAIT_S, Scene, scene
from cdc.config import Settings
from cdc.flow.dirty import Budget
from cdc.lsn import parse_lsn
from cdc.postgres.replication import open_stream
from cdc.telemetry.metrics import Metrics
from cdc.testing.cluster import Cluster

TARGET = 1.0
ROWS = 1_000_000
PER_COMMIT: Final = 1000
ORIGIN: Final = "bench_origin"


def run(cluster: Cluster, rows: int | None, repeat: int) -> list[Figure]:
    """Measure; return both rates and their ratio.

    Raises:
        WrongResult: not every row became a dirty key.
    """
    rows = rows or ROWS
    calm_collector()  # as the consumer does
    with scene(cluster) as stage:
        stage.connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (ORIGIN,))
        stage.connection.execute("SET synchronous_commit = off")
        stage.insert(1, rows, per_commit=PER_COMMIT)
        stage.settle()
        end = str(stage.one("SELECT pg_current_wal_flush_lsn()"))
        theirs, ours = [], []
        for turn in range(repeat):
            theirs.append(rows / _recvlogical(stage, _copy(stage, f"bench_theirs_{turn}"), end))
            ours.append(rows / asyncio.run(_walvec(stage, _copy(stage, f"bench_ours_{turn}"), end, rows)))
    return [
        Figure(f"drain {rows:,} rows: pg_recvlogical to /dev/null", "rows/s", tuple(theirs)),
        Figure(f"drain {rows:,} rows: walvec up to the dirty set", "rows/s", tuple(ours)),
        ratio("drain: walvec to pg_recvlogical", ours, theirs, TARGET),
    ]


def _copy(stage: Scene, name: str) -> str:
    stage.connection.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", (ORIGIN, name))
    return name


def _recvlogical(stage: Scene, slot: str, end: str) -> float:
    """Return the seconds that ``pg_recvlogical`` takes from its start to ``end``."""
    cluster = stage.database.cluster
    options = ["proto_version=1", "publication_names=walvec", "messages=true"]
    command = [str(cluster.bin("pg_recvlogical")), "--dbname", stage.database.url, "--slot", slot, "--start"]
    command += ["--no-loop", "--endpos", end, "--file", os.devnull, *(f"--option={option}" for option in options)]
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise WrongResult(f"pg_recvlogical: {done.stderr.strip()}")
    return seconds


async def _walvec(stage: Scene, slot: str, end: str, rows: int) -> float:
    """Return the seconds that walvec takes from connecting until it has taken in all up to ``end``."""
    settings = Settings(database_url=stage.database.url, slot=slot)
    listening, desk = intake(Budget(settings.queue_bytes, 2 * rows + 1), Metrics())
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    until = parse_lsn(end)
    begin = time.perf_counter()

    def over() -> None:
        loop.call_soon_threadsafe(ended.set)

    stream = await open_stream(settings, listening, over)
    stream.begin()
    try:
        while listening.received() < until and not ended.is_set() and time.perf_counter() - begin < WAIT_S:
            await asyncio.sleep(0.01)
        seconds = time.perf_counter() - begin
    finally:
        await stream.close(drain=False)
    if desk.dirty.rows != rows:
        raise WrongResult(f"{desk.dirty.rows} of {rows} rows became dirty keys. {stream.failure or ''}")
    await asyncio.to_thread(_until_free, stage, slot)
    return seconds


def _until_free(stage: Scene, slot: str) -> None:
    """Wait until the server has ended the slot's session, so that it does not run into the next measurement."""
    while True:
        try:
            stage.connection.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
            return
        except psycopg.errors.ObjectInUse:
            time.sleep(0.02)
