"""What is to run, who runs it, and the stream that tells of changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cdc.errors import WalvecError
from cdc.flow.counts import Counted
from cdc.ports.model import ModelChoice
from cdc.ports.target import Target
from cdc.rows import Column, Table


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
    ``fault`` says why it cannot run; ``id`` is its row in the control schema, None while it has none;
    ``target_gone`` is true where somebody dropped its destination; ``warning`` says what it misses though it runs;
    ``errors`` counts its dead letters; ``queued``: there are keys in its durable queue.
    """

    name: str
    digest: str
    storage: str
    mode: str = "Background"
    paused: bool = False
    fault: WalvecError | None = None
    id: int | None = None
    target_gone: bool = False
    warning: str = ""
    errors: int = 0
    queued: bool = False


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


@dataclass(frozen=True, slots=True)
class Request:
    """A manual run that was asked for: its row in the control schema, and its pipeline's."""

    id: int
    pipeline: int


class SlotKeeper(Protocol):
    """The replication slot, and who holds it."""

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

    async def slot(self) -> SlotView:
        """Return the slot as it is now."""
        ...

    async def reserve(self, limit: int) -> None:
        """Make it durable that nothing beyond ``limit`` has been acknowledged."""
        ...

    async def publish_slot(self, state: str, reason: str) -> None:
        """Write where the consumer stands with its slot."""
        ...

    async def close(self) -> None:
        """Let go of the connections."""
        ...


class Registry(Protocol):
    """The control schema and the catalogue: what is to run."""

    async def wanted(self) -> list[Wanted]:
        """Return the pipelines that should run. Raises PublicationMissing."""
        ...

    async def follow(self, name: str, choice: ModelChoice, dimension: int | None) -> Followed:
        """Make pipeline ``name`` ready: its row, its destination, its statements.

        Args:
            name: A pipeline of the last :meth:`wanted`.
            choice: Its model.
            dimension: The model's, 0 where it answers in words; None while the model has not been reached.

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

    async def requests(self) -> list[Request]:
        """Return the manual runs that were asked for and that nobody has taken up."""
        ...

    async def start_requests(self, requests: Sequence[int]) -> None:
        """Note that these manual runs are taken up: the scan that answers them is due, and has not begun."""
        ...

    async def finish_requests(self, id: int) -> None:
        """Note that those manual runs of a pipeline that were taken up are done."""
        ...

    async def publish(self, reports: Sequence[PipelineReport]) -> None:
        """Write what the pipelines say about themselves."""
        ...

    async def writers(self, name: str) -> frozenset[str]:
        """Return the open transactions that have written the table of ``name``."""
        ...

    async def build_index(self, name: str) -> str:
        """Build the approximate index of ``name`` if it is wanted and missing; say in a word what was done."""
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
