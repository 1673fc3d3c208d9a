"""What the services ask of the world, each port cut to its listener's size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cdc.errors import WalvecError
from cdc.flow.counts import Counted
from cdc.flow.dirty import Work
from cdc.flow.disposition import Failure
from cdc.flow.snapshots import Snapshot
from cdc.rows import Column, Key, Table
from cdc.status import EngineStatus

Vectors = NDArray[np.float32]
"""Shape ``(rows, dimension)``."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A row that could not be embedded, and why. ``message`` holds no text of the row."""

    work: Work
    step: str
    category: str
    message: str
    attempts: int


@dataclass(slots=True)
class Write:
    """What one batch wants written: vectors for ``upserts`` (same order), and keys whose embeddings go.

    A guarded write takes effect only where the source still has the text that was embedded (or still has none); any
    other decides by the version each work carries. Dead letters come in a write of their own, guarded.
    """

    guarded: bool
    upserts: list[Work] = field(default_factory=list)
    vectors: list[Vectors] = field(default_factory=list)
    removals: list[Work] = field(default_factory=list)
    settled: list[Work] = field(default_factory=list)  # nothing to write, but no longer queued or dead
    dead: list[DeadLetter] = field(default_factory=list)

    @property
    def works(self) -> list[Work]:
        """All that the write is about."""
        return [*self.upserts, *self.removals, *self.settled, *(letter.work for letter in self.dead)]


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did. ``refused`` are works that met a newer version or a changed row: they must be read again."""

    embeddings: int
    refused: tuple[Work, ...] = ()
    dequeued: int = 0


@dataclass(frozen=True, slots=True)
class Reread:
    """A row as it is now. ``text`` is None where it has none, where it agrees, or where it is ``deferred`` for size."""

    found: bool
    hash: bytes | None
    embedded: bool
    same: bool
    text: bytes | None
    deferred: bool
    lsn: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A key that a scan found to differ, with its text unless it has none or was too much for the page."""

    key: Key
    text: bytes | None


@dataclass(frozen=True, slots=True)
class Page:
    """A keyset page of a scan: how many rows it covered, its last key (None: the end), and what differs."""

    rows: int
    last: tuple[str, ...] | None
    differences: tuple[Difference, ...]
    lsn: int


class Target(Protocol):
    """A pipeline's source and destination, in one database."""

    in_place: bool
    fingerprint: bytes

    async def snapshot(self) -> Snapshot:
        """Return what a query would see now."""
        ...

    async def read(self, keys: Sequence[Key], text_bytes: int) -> list[Reread]:
        """Return the rows of ``keys`` as they are now, in order, with up to about ``text_bytes`` of text."""
        ...

    async def unchanged(self, works: Sequence[Work]) -> set[int]:
        """Return the indexes of the works whose embedding stands already, by hash."""
        ...

    async def write(self, write: Write, counted: Counted) -> Written:
        """Carry out ``write`` in one transaction, with the count of source rows beside it.

        Raises:
            Fenced: another consumer has taken over.
            Unavailable: the database is out of reach, or a lock was not to be had.
            RowRefused: the database refused a value of the batch.
            PipelineFault: source or destination are not what they were.
        """
        ...

    @property
    def keeps_books(self) -> bool:
        """Whether works with nothing to write must be written all the same, to leave the queue or the dead letters."""
        ...

    async def truncate(self, lsn: int) -> Written:
        """Remove the embeddings of all that was in the source before ``lsn``."""
        ...

    async def enqueue(self, works: Sequence[Work], counted: Counted) -> int:
        """Queue the works' keys durably; return how many keys the queue gained."""
        ...

    async def dequeue(self, rows: int) -> list[tuple[Key, int]]:
        """Lease up to ``rows`` keys of the durable queue, oldest first, each with its version."""
        ...

    async def queued(self) -> int:
        """Return how many keys the durable queue holds. Call it once before the first write."""
        ...

    async def save_count(self, counted: Counted) -> None:
        """Make the count of source rows durable."""
        ...

    async def count_source(self) -> tuple[int, Snapshot, int]:
        """Count the source's rows, once; return them, what the count could see, and where the log ends by then."""
        ...

    async def recount_embeddings(self) -> int:
        """Count the destination's rows, once, with no write beside it."""
        ...

    async def scan(self, after: tuple[str, ...] | None, rows: int, text_bytes: int) -> Page:
        """Return the keyset page of the source that follows the key ``after``."""
        ...

    async def orphans(self, after: tuple[str, ...] | None, rows: int) -> Page:
        """Return the keyset page of the destination that follows ``after``; its differences are orphans."""
        ...

    async def save_scan(
        self, reason: str | None, phase: str, cursor: tuple[str, ...] | None, done: int, total: int
    ) -> None:
        """Make the scan's progress durable. No reason: it is complete."""
        ...


@dataclass(frozen=True, slots=True)
class Route:
    """Under which names a pipeline's changes arrive, and which of their columns matter."""

    streamed_as: tuple[Table, ...]
    key: tuple[Column, ...]
    text: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class ScanPoint:
    """Where a scan stands, durably. No reason: none is due."""

    reason: str | None = None
    phase: str = "rows"
    cursor: tuple[str, ...] | None = None
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """A pipeline that should run, as the publication and the control schema have it now.

    ``digest`` changes when the pipeline must be made anew; ``storage`` when its rows may have changed with no event.
    ``fault`` says why it cannot run; ``id`` is its row in the control schema, None while it has none.
    """

    name: str
    digest: str
    storage: str
    mode: str = "Background"
    paused: bool = False
    fault: WalvecError | None = None
    id: int | None = None


@dataclass(frozen=True, slots=True)
class Followed:
    """A pipeline made ready to run."""

    id: int
    name: str
    model: str
    target: Target
    route: Route
    scan: ScanPoint
    counted: Counted
    written_lsn: int
    embeddings: int
    errors: int
    backfilled: bool


@dataclass(frozen=True, slots=True)
class SlotView:
    """The replication slot as the server sees it now. Sizes in bytes."""

    exists: bool
    lost: bool = False
    active_pid: int | None = None
    confirmed: int = 0
    lag_bytes: int = 0
    retained_bytes: int = 0
    safe_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class PipelineReport:
    """What a pipeline writes about itself into the control schema."""

    id: int
    state: str
    reason: str
    unprocessed: int
    lag_seconds: float


class Registry(Protocol):
    """The control schema, the catalogue and the slot: what is to run, and who runs it."""

    async def open(self) -> None:
        """Check the server and make what is missing: control schema, extension, slot.

        Raises:
            ConfigError: the server or the role will not do.
            PublicationMissing: there is no publication to follow.
            SlotInUse: another consumer holds the slot.
            SlotLost: the slot is missing though there was one, or invalidated.
            Unavailable: the server is out of reach.
        """
        ...

    async def take_over(self, system: str, timeline: int) -> list[str]:
        """Start a new epoch, which shuts others out; return why everything must be reconciled, if it must."""
        ...

    async def renew_slot(self) -> None:
        """Drop what is left of a lost slot, make a new one, and have everything reconciled."""
        ...

    async def wanted(self) -> list[Wanted]:
        """Return the pipelines that should run. Raises PublicationMissing."""
        ...

    async def follow(self, name: str, dimension: int | None) -> Followed:
        """Make pipeline ``name`` ready: its row, its destination, its statements.

        Args:
            name: A pipeline of the last :meth:`wanted`.
            dimension: The model's; None while the model has not been reached.

        Raises:
            PipelineFault: it cannot run until something is mended.
            ModelUnknown: the dimension is needed and nobody knows it yet.
        """
        ...

    async def gone(self) -> list[str]:
        """Return the attached pipelines whose tables were not in the publication at the last :meth:`wanted`."""
        ...

    async def moved(self, name: str, storage: str) -> None:
        """Note that the storage of ``name`` has been looked at as it is now."""
        ...

    async def detach(self, name: str) -> None:
        """Note that the table of ``name`` left the publication."""
        ...

    async def need_reconcile(self, reason: str, id: int | None = None) -> None:
        """Make it durable that one pipeline, or all, must be scanned from the start."""
        ...

    async def requests(self) -> list[int]:
        """Take up the manual runs that were asked for; return their pipelines' ids."""
        ...

    async def finish_requests(self, id: int) -> None:
        """Note that the manual runs of a pipeline are done."""
        ...

    async def publish(self, reports: Sequence[PipelineReport]) -> None:
        """Write what the pipelines say about themselves."""
        ...

    async def publish_slot(self, state: str, reason: str) -> None:
        """Write where the consumer stands with its slot."""
        ...

    async def slot(self) -> SlotView:
        """Return the slot as it is now."""
        ...

    async def reserve(self, limit: int) -> None:
        """Make it durable that nothing beyond ``limit`` has been acknowledged."""
        ...

    async def writers(self, name: str) -> frozenset[str]:
        """Return the open transactions that have written the table of ``name``."""
        ...

    async def build_index(self, name: str) -> str:
        """Build the approximate index of ``name`` if it is wanted and missing; say in a word what was done."""
        ...

    async def close(self) -> None:
        """Let go of the connections."""
        ...


class Stream(Protocol):
    """One replication connection, read by a thread of its own."""

    system: str
    timeline: int
    failure: WalvecError | None  # why reading ended by itself, if it did

    def begin(self) -> None:
        """Start reading."""
        ...

    def acknowledge(self) -> None:
        """Say that work settled, so that a status reply may be due. Any thread."""
        ...

    def pause(self) -> None:
        """Read no more; status replies go on."""
        ...

    async def close(self, *, drain: bool) -> None:
        """Stop reading, send the last status reply, and hang up."""
        ...


class EmbedFailed(Exception):
    """An embedding request failed. ``reason`` is a short stable word; the message holds no text of a row."""

    def __init__(self, failure: Failure, reason: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.failure = failure
        self.reason = reason
        self.retry_after_s = retry_after_s


class Model(Protocol):
    """The model, as the services need it."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    async def start(self) -> int:
        """Reach the model; return the dimension of its vectors. Raises EmbedFailed."""
        ...

    async def embed(self, texts: Sequence[str], *, query: bool = False) -> Vectors:
        """Return one vector per text, in order. Raises EmbedFailed."""
        ...

    def tokens(self, size: int) -> int:
        """Return about how many tokens a text of ``size`` bytes comes to, at most what the model reads."""
        ...

    def pack(self, tokens: Sequence[int]) -> list[list[int]]:
        """Return batches of indexes into ``tokens``, each within what one request may hold, each index once."""
        ...

    async def close(self) -> None:
        """Let go of it."""
        ...


class Observer(Protocol):
    """Hears what happened. Every method may be called from any thread and never raises.

    ``pipeline`` is a pipeline's name; no key, text or SQL is ever passed.
    """

    def changes(self, pipeline: str, op: str, rows: int) -> None:
        """``rows`` row changes of kind ``op`` (insert, update, delete, truncate) were decoded."""

    def coalesced(self, pipeline: str, rows: int) -> None:
        """``rows`` pending changes were overtaken by newer ones of the same key."""

    def skipped_unchanged(self, pipeline: str, rows: int) -> None:
        """``rows`` changes left the embedded text as it was, so nothing was embedded."""

    def batch(self, pipeline: str, rows: int) -> None:
        """A request of ``rows`` texts goes to the model."""

    def inference(self, pipeline: str, outcome: str, seconds: float) -> None:
        """A request came back after ``seconds``; ``outcome`` is ``ok`` or ``error``."""

    def inference_error(self, pipeline: str, reason: str) -> None:
        """A request failed; ``reason`` is a short stable word."""

    def embedded(self, pipeline: str, rows: int, tokens: int) -> None:
        """``rows`` embeddings of about ``tokens`` tokens were written."""

    def written(self, pipeline: str, seconds: float) -> None:
        """A write-back transaction took ``seconds``."""

    def visible(self, pipeline: str, seconds: Sequence[float]) -> None:
        """Embeddings became visible, each this long after the commit that asked for it."""

    def slot_lost(self) -> None:
        """The replication slot was lost."""

    def publish(self, status: EngineStatus) -> None:
        """The state of everything, at least every second."""


class EngineView(Protocol):
    """What the HTTP server asks of the engine. Called from threads other than the engine's, also while it is stuck."""

    def status(self) -> EngineStatus:
        """Return the latest snapshot at once: never blocks, never does input or output."""
        ...

    def heartbeat_age_s(self) -> float:
        """Return the seconds since the engine's loop last turned. Never blocks."""
        ...

    def search(
        self,
        pipeline: str,
        *,
        query: str | None,
        vector: Sequence[float] | None,
        k: int,
        filter: Mapping[str, object] | None,
    ) -> list[dict[str, object]]:
        """Return up to ``k`` rows nearest to ``query`` or ``vector`` (one is None), nearest first. May block.

        Each is ``{"key": {column: value}, "distance": float, "content": str or None}``.

        Raises:
            cdc.errors.UnknownPipeline: no pipeline has this name.
            cdc.errors.ConfigError: the request does not fit the pipeline (dimension, filter).
            cdc.errors.Unavailable: the model or the database is away.
        """
        ...

    def sync(self, timeout_s: float) -> bool:
        """Wait until all that was committed before the call is settled; False when time ran out. Blocks."""
        ...
