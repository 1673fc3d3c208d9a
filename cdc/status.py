"""What a pipeline, the slot and the process say about themselves, to logs, metrics, pages and people alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class PipelineState(StrEnum):
    """Where a pipeline stands."""

    WAITING = "waiting"  # for the model, the destination, or older writers
    BACKFILLING = "backfilling"  # a reconcile scan is under way
    READY = "ready"  # in step with the stream
    PAUSED = "paused"  # changes are queued durably, none is embedded
    ERROR = "error"  # needs mending; `reason` says how
    DETACHED = "detached"  # its table left the publication; the destination is no longer maintained


class SlotState(StrEnum):
    """Where the consumer stands with its replication slot."""

    CONNECTING = "connecting"
    STREAMING = "streaming"
    STANDBY = "standby"  # another instance holds the slot
    PUBLICATION_MISSING = "publication_missing"
    LOST = "lost"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class PipelineStatus:
    """One row of ``kbstat``, and what stands beside it in ``status --json`` and the metrics.

    ``unprocessed_rows`` counts unique rows waiting or in flight. ``scans_completed`` is None for table sources.
    ``lag_seconds`` is the age of the oldest commit not yet embedded, 0 when there is none. ``slot`` is the slot that it
    comes through, empty: the consumer's.
    """

    pipeline: str
    mode: str = "Background"  # Live, Background, Disabled
    source_type: str = "table"
    model: str = ""
    state: PipelineState = PipelineState.WAITING
    reason: str = ""
    unprocessed_rows: int = 0
    scans_completed: int | None = None
    source_records: int = 0
    embeddings: int = 0
    lag_seconds: float = 0.0
    errors: int = 0
    backfill_done: int = 0
    backfill_total: int = 0
    slot: str = ""
    backfilled: bool = False  # its first backfill is complete

    @property
    def is_volume(self) -> bool:
        """Whether the source is a volume of files rather than a table."""
        return self.source_type.lower() == "volume"

    @property
    def pending_rows(self) -> int:
        """``unprocessed_rows`` as it is reported: a disabled pipeline captures nothing, so nothing waits."""
        return 0 if self.mode.lower() == "disabled" else self.unprocessed_rows

    def to_json(self, lag_bytes: int) -> dict[str, object]:
        """Return this pipeline's object of ``status --json``. Where it does not work, ``reason`` says why."""
        return {
            "knowledge_base": self.pipeline,
            "auto_processing": self.mode,
            "source_type": self.source_type,
            "unprocessed_rows": None if self.is_volume else self.pending_rows,
            "scans_completed": (self.scans_completed or 0) if self.is_volume else None,
            "source_records": self.source_records,
            "embeddings": self.embeddings,
            "status": self.state.value,
            "lag_seconds": self.lag_seconds,
            "lag_bytes": lag_bytes,
            "errors": self.errors,
            **({"reason": self.reason} if self.reason else {}),
        }


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """The replication slot as last seen. Sizes are bytes; ``safe_bytes`` is None where the server sets no limit."""

    name: str
    state: SlotState = SlotState.CONNECTING
    reason: str = ""
    lag_bytes: int = 0  # server's WAL position minus the acknowledged position
    retained_bytes: int = 0  # server's WAL position minus restart_lsn
    safe_bytes: int | None = None
    oldest_unacked_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """One line of ``/healthz``. ``status`` is ok, warn or error."""

    name: str
    status: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """Everything at one moment: immutable, so that any thread may read it."""

    slot: SlotStatus
    pipelines: tuple[PipelineStatus, ...] = ()
    checks: tuple[HealthCheck, ...] = ()
    inflight_requests: int = 0
    recent_errors: tuple[dict[str, object], ...] = field(default=())

    def to_json(self) -> list[dict[str, object]]:
        """Return ``status --json``: one object per pipeline, each a row of ``kbstat`` and how it fares.

        As in ``kbstat``, ``unprocessed_rows`` is null for volumes and ``scans_completed`` for tables.
        ``lag_bytes`` is the slot's, which all pipelines share; so is a ``status`` of ``stopped``, ``lost`` or
        ``publication_missing``.
        """
        return [p.to_json(self.slot.lag_bytes) | self._halt(p) for p in self.pipelines]

    def _halt(self, pipeline: PipelineStatus) -> dict[str, object]:
        """Return the ``status`` of a pipeline that stands still because the whole consumer does."""
        halted = self.slot.state in (SlotState.LOST, SlotState.PUBLICATION_MISSING, SlotState.STOPPED)
        shares = pipeline.slot in ("", self.slot.name) and pipeline.state is not PipelineState.DETACHED
        return {"status": self.slot.state.value} if halted and shares else {}
