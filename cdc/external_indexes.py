"""External index jobs put together: the runner of :mod:`cdc.services` over the index of :mod:`inference`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from cdc.config import Settings
from cdc.errors import ConfigError
from cdc.jobs import IndexSpec
from cdc.ports import Observer
from cdc.ports.indexes import Flags, Floats, Labels
from cdc.postgres.external_index import PostgresIndexSource
from cdc.services.external_index import IndexRunner, IndexTuning
from inference.vector_index import VectorIndex, VectorIndexError, memory_estimate

T = TypeVar("T")

_SHARE = 0.8
"""Of the memory that is available when an index is built, where nobody sets ``WALVEC_INDEX_MEMORY``."""


def make_index_runner(
    settings: Settings, tuning: IndexTuning | None = None, observer: Observer | None = None
) -> IndexRunner:
    """Return a runner of external index jobs, which tells ``observer``. Call it where an event loop runs."""
    if tuning is None:
        tuning = IndexTuning(rebuild_share=settings.index_rebuild_percent / 100)
    indexes = HnswIndexes(settings.index_threads, settings.index_memory)
    return IndexRunner(Path(settings.index_dir).absolute(), indexes, PostgresIndexSource, tuning, observer)


class HnswIndexes:
    """Implements :class:`cdc.ports.indexes.Indexes` with hnswlib.

    Args:
        threads: For building; 0: all cores.
        memory: Most bytes that one index may take; 0: a share of what is available.
    """

    def __init__(self, threads: int, memory: int) -> None:
        self._threads = threads
        self._memory = memory

    def make(self, spec: IndexSpec, dimension: int, capacity: int) -> VectorIndex:
        """Return an empty index with room for ``capacity`` vectors."""
        return self._bounded(
            spec,
            lambda: _Index(
                dimension,
                spec.metric,
                m=spec.m,
                ef_construction=spec.ef_construction,
                capacity=capacity,
                threads=self._threads,
            ),
        )

    def load(self, spec: IndexSpec, dimension: int, path: Path, live: Flags) -> VectorIndex:
        """Return the index that was saved to ``path``."""
        return self._bounded(
            spec,
            lambda: _Index.load(
                path,
                live,
                dimension,
                spec.metric,
                m=spec.m,
                ef_construction=spec.ef_construction,
                threads=self._threads,
            ),
        )

    def _bounded(self, spec: IndexSpec, make: Callable[[], VectorIndex]) -> VectorIndex:
        """Return what is made; it asks before it grows."""
        made = _said(make)
        assert isinstance(made, _Index)
        made.check_room = partial(self.check_room, spec, made.dimension)
        return made

    def check_room(self, spec: IndexSpec, dimension: int, rows: int, held: int = 0) -> None:
        """Raise ConfigError where an index of ``rows`` vectors does not fit into memory, ``held`` rows being there."""
        needed = memory_estimate(rows, dimension, spec.m)
        allowed = self._memory or int(_SHARE * available_memory()) + memory_estimate(held, dimension, spec.m)
        if needed > allowed:
            raise ConfigError(
                f"An index of {rows:,} vectors of {dimension} dimensions with m {spec.m} takes about {_gib(needed)}, "
                f"and {_gib(allowed)} may be used.",
                "Raise WALVEC_INDEX_MEMORY, or use a smaller m."
                if self._memory
                else "Use a smaller m, or more memory.",
            )


class _Index(VectorIndex):
    """The index, its refusals in this package's words.

    ``check_room`` raises ConfigError where so many rows do not fit, so many being there.
    """

    check_room: Callable[[int, int], None] | None = None

    def _capacity(self, needed: int, held: int) -> int:
        wanted = super()._capacity(needed, held)
        if self.check_room is not None:
            try:
                self.check_room(wanted, held)
            except ConfigError:  # then only what these rows need, and some for those that follow
                wanted = needed + held // 64
                self.check_room(wanted, held)
        return wanted

    def add(self, labels: Labels, vectors: Floats, instead_of: Labels | None = None) -> None:
        _said(lambda: VectorIndex.add(self, labels, vectors, instead_of))

    def search(self, vector: Floats, k: int, ef: int) -> tuple[Labels, Floats]:
        return _said(lambda: VectorIndex.search(self, vector, k, ef))


def _said(work: Callable[[], T]) -> T:
    try:
        return work()
    except VectorIndexError as exc:
        raise ConfigError(str(exc)) from exc


def available_memory() -> int:
    """Return the bytes that processes can have without swapping: the kernel's estimate, or the control group's room."""
    available = 1 << 62
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    most, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if most and used and most[0].isdigit():
        available = min(available, max(int(most[0]) - int(used[0]), 0))
    return available


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text("ascii").splitlines()
    except OSError:
        return []


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 1 << 30 else f"{size / 2**20:.0f} MiB"
