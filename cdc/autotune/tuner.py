"""Autotune: HNSW graphs compared on hnswlib, the winner built and measured in PostgreSQL.

A search (:mod:`cdc.autotune.search`) is one long piece of blocking work: it has a thread of its own here, which a
cancellation stops in the middle, in the server too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final, TypeVar

from cdc.autotune.ground import ROW_BYTES, Stop
from cdc.autotune.search import Search
from cdc.errors import ConfigError
from cdc.jobs import AutotuneSpec
from cdc.ports.jobs import JobRunner
from cdc.ports.tuning import METRICS, AutotuneResult, Earlier, Experiments, Say, Trial
from cdc.postgres.tuning import Place, sweep
from cdc.rows import Table
from cdc.services.autotune import AutotuneRunner
from inference.vector_index import VectorIndexError

T = TypeVar("T")

SCHEMA: Final = "walvec"
_AGAIN_S: Final = 0.5


class HnswTuner:
    """Searches with hnswlib and pgvector. Implements :class:`cdc.ports.tuning.Tuner`.

    Args:
        schema: The control schema in the target databases: scratch tables are made in it where it is there.
        threads: For building on hnswlib; 0: as many as are seen to be fastest.
        row_bytes: Vectors held in memory, at most; a search needs about four times as much. Of a table that is larger a
            random sample is looked at.
    """

    def __init__(self, schema: str = SCHEMA, *, threads: int = 0, row_bytes: int = ROW_BYTES) -> None:
        self._schema = schema
        self._threads = threads
        self._row_bytes = row_bytes

    async def tune(
        self, url: str, table: Table, spec: AutotuneSpec, *, owner: str, earlier: Sequence[Earlier], say: Say
    ) -> AutotuneResult:
        """Search for the parameters that ``spec`` asks for."""
        checked = _checked(spec)
        stop = Stop()
        search = Search(
            Place(url), self._schema, table, checked, owner, earlier, say, stop, self._threads, self._row_bytes
        )
        return await _in_thread(search.run, stop)

    async def discard(self, url: str, table: Table, spec: AutotuneSpec, *, owner: str) -> None:
        """Drop what a killed search has left behind."""
        await asyncio.to_thread(sweep, Place(url), self._schema, owner)


def autotune_runner(schema: str = SCHEMA, *, threads: int = 0, experiments: Experiments | None = None) -> JobRunner:
    """Return what runs autotune jobs; ``experiments`` knows earlier ones."""
    return AutotuneRunner(HnswTuner(schema, threads=threads), experiments)


async def autotune(
    url: str, table: Table, spec: AutotuneSpec, *,
    schema: str = SCHEMA, threads: int = 0, earlier: Sequence[Earlier] = (), say: Say | None = None,
) -> AutotuneResult:  # fmt: skip
    """Search for the parameters of one column's index, for the command line. See :class:`HnswTuner`."""
    owner = f"{table}.{spec.column}"
    return await HnswTuner(schema, threads=threads).tune(
        url, table, spec, owner=owner, earlier=earlier, say=say or _Silent()
    )


class _Silent:
    """Says nothing to nobody."""

    def progress(self, percent: int) -> None:
        """Nothing."""

    def trial(self, trial: Trial, dimension: int) -> None:
        """Nothing."""


def _checked(spec: AutotuneSpec) -> AutotuneSpec:
    """Return ``spec`` with its metric in our words.

    Raises:
        ConfigError: a value of it makes no sense.
    """
    if spec.metric not in METRICS:
        raise ConfigError(f"There is no distance {spec.metric!r}.", f"Use one of {', '.join(METRICS)}.")
    if not 0 < spec.target_recall <= 1:
        raise ConfigError(f"A recall of {100 * spec.target_recall:g} % cannot be reached.", "Ask for up to 100 %.")
    if not 1 <= spec.k <= 1_000:
        raise ConfigError(f"k is {spec.k}.", "Ask for 1 to 1000 neighbours: pgvector's HNSW returns no more.")
    if bool(spec.query_table) != bool(spec.query_column):
        given, missing = ("query_table", "query_column") if spec.query_table else ("query_column", "query_table")
        raise ConfigError(
            f"There is a {given} without a {missing}.", "Logged queries need both; without them, set none."
        )
    if spec.sample < 0:
        raise ConfigError(f"A sample of {spec.sample} rows cannot be taken.", "0 takes all rows.")
    return replace(spec, metric=METRICS[spec.metric])


async def _in_thread(work: Callable[[], T], stop: Stop) -> T:
    """Run ``work``; where this is cancelled, stop it and return only when it has cleaned up."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="walvec-autotune")
    future = asyncio.get_running_loop().run_in_executor(pool, work)
    try:
        return await asyncio.shield(future)
    except VectorIndexError as exc:
        raise ConfigError(str(exc)) from exc
    except asyncio.CancelledError:
        while not future.done():  # whoever ends us may cancel again and again
            try:
                await asyncio.to_thread(stop.set)  # again and again: a cancel may come between two statements
                await asyncio.wait({future}, timeout=_AGAIN_S)
            except asyncio.CancelledError:
                continue
        if not future.cancelled():
            future.exception()  # looked at: what a stopped search raises tells nothing
        raise
    finally:
        pool.shutdown(wait=False)
