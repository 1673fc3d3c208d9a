"""Moves pending keys to the durable queue where they would hold too much memory or too much WAL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import structlog

from cdc.errors import WalvecError
from cdc.flow.ledger import Commit
from cdc.services.intake import Intake
from cdc.services.pipeline import Pipeline
from cdc.services.tasks import end

log = structlog.get_logger()

HELD_S = 30.0
"""Seconds after which what holds back the acknowledgement goes to the durable queue: the slot is not the queue."""

SAFE_BYTES = 64 << 20
"""Below so much room before the server invalidates the slot, keys go to the durable queue at once."""


class Overflow:
    """Looks at each turn whether something must move, and moves it beside everything else."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._held: tuple[Commit | None, float] = (None, 0.0)
        self._moving: asyncio.Task[None] | None = None

    def look(self, pipelines: Sequence[Pipeline], safe_bytes: int | None) -> None:
        """Begin to move keys if it is time; ``safe_bytes`` is the room before the server invalidates the slot."""
        if self._moving is not None and not self._moving.done():
            return
        with self._intake.lock:
            oldest = self._intake.ledger.oldest
        if oldest is not self._held[0]:
            self._held = (oldest, time.monotonic())
        stuck = oldest is not None and time.monotonic() - self._held[1] > HELD_S
        squeezed = safe_bytes is not None and safe_bytes < SAFE_BYTES and oldest is not None
        everything = self._intake.budget.full or stuck or squeezed
        moving = [p for p in pipelines if p.desk.dirty.stream_rows and (everything or p.paused)]
        if moving:
            self._moving = asyncio.create_task(self._move(moving), name="spill")

    @staticmethod
    async def _move(pipelines: Sequence[Pipeline]) -> None:
        for pipeline in pipelines:
            moved = 0
            try:
                while rows := await pipeline.spill():
                    moved += rows
            except WalvecError as exc:
                log.warning("database_unavailable", message=str(exc))
                return
            if moved:
                log.info("queue_spilled", pipeline=pipeline.desk.name, rows=moved)

    async def stop(self) -> None:
        """End a move that is under way; what it had taken is dirty again."""
        if self._moving is not None:
            await end([self._moving])
            self._moving = None
