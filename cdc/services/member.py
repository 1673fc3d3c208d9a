"""A pipeline as its fleet knows it, running or set aside, and what it says about itself."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from cdc.ports import Followed, ModelChoice, PipelineReport, Wanted
from cdc.services.gate import ModelGate
from cdc.services.pipeline import Pipeline
from cdc.status import PipelineState, PipelineStatus


@dataclass(slots=True)
class Member:
    """A pipeline of the fleet. ``choice`` and ``gate`` are its model and the way to it, None while it has none.

    ``unanswered``: it waits for nothing but its model's first answer.
    """

    wanted: Wanted
    state: PipelineState = PipelineState.WAITING
    reason: str = ""
    choice: ModelChoice | None = None
    gate: ModelGate | None = None
    followed: Followed | None = None
    backfilled: bool = False
    pipeline: Pipeline | None = None
    task: asyncio.Task[None] | None = None
    tries: int = 0
    unanswered: bool = False
    retry_at: float = 0.0
    indexing: asyncio.Task[None] | None = None
    xid: int = 0
    reported: PipelineReport | None = field(default=None, compare=False)

    @property
    def standing(self) -> tuple[PipelineState, str]:
        """Where it stands, and why: a model that a person must mend is an error of the pipelines that use it."""
        gate = self.gate
        if gate is not None and gate.needs_person and self.state is not PipelineState.ERROR:
            return PipelineState.ERROR, str(gate.trouble)
        return self.state, self.reason

    @property
    def row(self) -> int | None:
        """Its row in the control schema, None while it has none."""
        return self.followed.id if self.followed is not None else self.wanted.id

    def status(self, lag_s: float) -> PipelineStatus:
        """Return what it says about itself; the caller holds the desks' lock.

        Args:
            lag_s: The age of the oldest commit that is not settled, in seconds.
        """
        pipeline, want = self.pipeline, self.wanted
        model = self.choice.name if self.choice is not None else ""
        state, reason = self.standing
        if pipeline is None:
            return PipelineStatus(
                want.name, want.mode, model=model, state=state, reason=reason, backfilled=self.backfilled
            )
        unprocessed = pipeline.unprocessed
        progress = pipeline.progress
        return PipelineStatus(
            pipeline=want.name,
            mode=want.mode,
            model=model,
            state=PipelineState.PAUSED if want.paused else state,
            reason=reason or want.warning,
            unprocessed_rows=unprocessed,
            source_records=pipeline.desk.count.counted.rows,
            embeddings=pipeline.writer.embeddings,
            lag_seconds=lag_s if unprocessed else 0.0,
            errors=pipeline.writer.buried,
            backfill_done=pipeline.scan.done,
            backfill_total=progress.total,
            backfilled=self.backfilled,
        )

    def report(self, status: PipelineStatus) -> PipelineReport | None:
        """Return what is to be written of it into the control schema; None where nothing has changed."""
        if self.row is None:
            return None
        lag = round(status.lag_seconds, 1)
        report = PipelineReport(self.row, self.standing[0], status.reason, status.unprocessed_rows, lag)
        if report == self.reported:
            return None
        self.reported = report
        return report
