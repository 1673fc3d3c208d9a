"""An approximate index in memory, as the services ask for it (:mod:`inference.vector_index` is one)."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cdc.jobs import IndexSpec
from cdc.ports.registry import Stream
from cdc.rows import Column
from cdc.wire.frames import Keepalive

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
Flags = NDArray[np.bool_]


class VectorIndex(Protocol):
    """Vectors under labels, each label used once. Any method may be called from any thread."""

    dimension: int

    @property
    def count(self) -> int:
        """How many vectors a search can find."""
        ...

    @property
    def deleted(self) -> int:
        """How many are deleted and still there."""
        ...

    def add(self, labels: Labels, vectors: Floats, instead_of: Labels | None = None) -> None:
        """Add vectors, shape ``(rows, dimension)``; labels in ``instead_of`` (-1: none) go as those come."""
        ...

    def remove(self, labels: Labels | Sequence[int]) -> None:
        """Delete labels."""
        ...

    def search(self, vector: Floats, k: int, ef: int) -> tuple[Labels, Floats]:
        """Return the labels of up to ``k`` nearest vectors and their distances, nearest first."""
        ...

    def vectors(self, labels: Labels) -> tuple[Flags, Floats]:
        """Return which of ``labels`` are present, and the vectors of those."""
        ...

    def save(self, path: Path) -> None:
        """Write the index to ``path``. Raises OSError."""
        ...


class Indexes(Protocol):
    """Makes indexes. Every refusal is a :class:`cdc.errors.WalvecError`."""

    def make(self, spec: IndexSpec, dimension: int, capacity: int) -> VectorIndex:
        """Return an empty index with room for ``capacity`` vectors. Raises ConfigError where there is no memory."""
        ...

    def load(self, spec: IndexSpec, dimension: int, path: Path, live: Flags) -> VectorIndex:
        """Return the index that was saved to ``path``, of which the labels in ``live`` are present."""
        ...

    def check_room(self, spec: IndexSpec, dimension: int, rows: int, held: int = 0) -> None:
        """Raise ConfigError where an index of ``rows`` vectors does not fit into memory, ``held`` rows being there."""
        ...


@dataclass(frozen=True, slots=True)
class Indexed:
    """The column that is indexed, as the database has it now.

    ``identity`` changes when an index that was made before is of no use; all parts of ``storage``, which slashes
    divide, change when rows may have changed with no event. ``dimension`` is None where only a vector tells it;
    ``rows`` is an estimate, -1 where nobody has counted.
    """

    oid: int
    key: tuple[Column, ...]
    base_type: str
    type_oid: int
    dimension: int | None
    rows: int
    identity: str
    storage: str
    partitioned: bool

    def is_rewritten(self, storage: str) -> bool:
        """Whether rows may have changed with no event since ``storage`` was what it was."""
        return all(now != was for now, was in zip(self.storage.split("/"), storage.split("/"), strict=False))


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an index's slot begins: the server, its timeline, and the position up to which the base holds changes."""

    system: str
    timeline: int
    lsn: int


@dataclass(frozen=True, slots=True)
class SlotPlace:
    """The slot of an index as it is now."""

    exists: bool
    lost: bool = False
    held: bool = False
    confirmed: int = 0


@dataclass(frozen=True, slots=True)
class Observed:
    """What an index is of and by what it is followed. ``publication`` tells it from any other; empty: it is gone."""

    indexed: Indexed
    publication: str
    slot: SlotPlace


class IndexSource(Protocol):
    """A column of a database, for one job. Methods that are not async block, and are called in threads."""

    def observe(self) -> Observed:
        """Return the column, the publication and the slot as they are now.

        Raises:
            PipelineFault: the column cannot be followed: there is no such table, column, key, type.
            ConfigError: the server or the role will not do.
            Unavailable: the server is out of reach.
        """
        ...

    def begin(self, indexed: Indexed) -> Origin:
        """Make publication and slot anew, and open the snapshot that the slot begins with."""
        ...

    def count(self) -> int:
        """Return how many vectors the snapshot holds."""
        ...

    def chunks(self, indexed: Indexed, stop: threading.Event) -> Iterator[Chunk]:
        """Yield the snapshot's rows: keys, vectors, and how many rows of the chunk were left out for their vector."""
        ...

    def end(self) -> None:
        """Let the snapshot go."""
        ...

    def interrupt(self) -> None:
        """Make whatever blocks in another thread return or raise soon."""
        ...

    def discard(self) -> None:
        """Drop slot and publication. Raises SlotInUse where somebody holds the slot."""
        ...

    async def stream(self, listener: StreamListener, ended: Callable[[], None]) -> Stream:
        """Attach to the slot; nothing is read before ``begin``."""
        ...

    async def build(self, indexed: Indexed, progress: Callable[[int], Awaitable[None]]) -> str:
        """Build the in-database index of the job's name unless it is there; return in a sentence what was done.

        Raises:
            WalvecError: it cannot be built.
        """
        ...


class Chunk(Protocol):
    """Some rows."""

    @property
    def keys(self) -> NDArray[Any]:
        """Shape ``(rows,)``."""

    @property
    def vectors(self) -> Floats:
        """Shape ``(rows, dimension)``."""

    @property
    def skipped(self) -> int:
        """Rows with a vector that no index can hold."""


class StreamListener(Protocol):
    """Who is told what a stream says; called from the thread that reads it."""

    @property
    def is_full(self) -> bool:
        """Whether reading should pause."""

    def feed(self, frames: Sequence[bytes]) -> list[Keepalive]:
        """Take frames in, in order; return the keepalives among them."""

    def received(self) -> int:
        """Return the end of the newest commit taken in."""

    def acknowledged(self) -> int:
        """Return the furthest position that may be acknowledged."""

    def missed(self, what: str) -> None:
        """Hear that changes were skipped."""
