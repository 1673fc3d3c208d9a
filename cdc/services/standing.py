"""Where the consumer stands, as it tells people: the snapshot of everything, and what the control schema says of it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import structlog

from cdc.errors import WalvecError
from cdc.ports import Observer, SlotKeeper, SlotView
from cdc.services.fleet import Fleet
from cdc.services.intake import Intake
from cdc.services.models import ModelGates
from cdc.status import EngineStatus, HealthCheck, PipelineState, SlotState, SlotStatus

log = structlog.get_logger()

PULSE_S = 0.5
"""Seconds between two snapshots, however long a turn of the engine takes."""


class Standing:
    """Keeps the latest snapshot, which any thread may read.

    Args:
        slot: The slot's name.
        intake: Knows the oldest commit that is not acknowledged.
        fleet: Knows the pipelines.
        gates: Know the models.
        slots: Where the state of the slot is written.
        observer: Told of each snapshot.
    """

    def __init__(
        self, slot: str, intake: Intake, fleet: Fleet, gates: ModelGates, slots: SlotKeeper, observer: Observer
    ) -> None:
        self._intake = intake
        self._fleet = fleet
        self._gates = gates
        self._slots = slots
        self._observer = observer
        self.slot = SlotStatus(slot)
        self.database_ok = False
        self.beat = time.monotonic()
        self.snapshot = EngineStatus(self.slot)

    async def pulse(self) -> None:
        """Take snapshots until cancelled."""
        while True:
            self.beat = time.monotonic()
            self.take()
            await asyncio.sleep(PULSE_S)

    def set_slot(self, state: SlotState, reason: str) -> None:
        """Note where the consumer stands with its slot."""
        if state is SlotState.STANDBY and self.slot.state is not state:
            log.info("slot_standby", message=reason)
        if state is SlotState.PUBLICATION_MISSING and self.slot.state is not state:
            log.error("publication_missing", message=reason)
        self.slot = replace(self.slot, state=state, reason=reason)

    def saw_slot(self, view: SlotView) -> None:
        """Note how much WAL the slot holds back."""
        self.slot = replace(
            self.slot, lag_bytes=view.lag_bytes, retained_bytes=view.retained_bytes, safe_bytes=view.safe_bytes
        )

    async def say_slot(self) -> None:
        """Write the state of the slot into the control schema; where that cannot be had, it is said the next time."""
        try:
            await self._slots.publish_slot(self.slot.state, self.slot.reason)
        except WalvecError as exc:
            log.warning("database_unavailable", message=str(exc))

    async def report(self) -> None:
        """Take a snapshot, and write what the pipelines say of themselves into the control schema."""
        self.take()
        await self._fleet.publish(self.snapshot.pipelines)

    def take(self) -> None:
        """Take a snapshot and show it to the observer."""
        with self._intake.lock:
            oldest = self._intake.ledger.oldest
        lag = max(0.0, time.time() - oldest.time_us / 1e6) if oldest is not None else 0.0
        self.slot = replace(self.slot, oldest_unacked_seconds=lag)
        self.snapshot = EngineStatus(
            slot=self.slot,
            pipelines=tuple(self._fleet.statuses(lag)),
            checks=self._checks(),
            inflight_requests=self._gates.requests,
            recent_errors=self._fleet.recent_errors(),
        )
        self._observer.publish(self.snapshot)

    def _checks(self) -> tuple[HealthCheck, ...]:
        streaming = self.slot.state in (SlotState.STREAMING, SlotState.STANDBY)
        database, reason = ("ok", "") if self.database_ok else ("error", self.slot.reason)
        troubles = self._gates.troubles
        named = len(self._gates.gates) > 1
        models = "; ".join(f"{name}: {trouble}" if named else str(trouble) for name, trouble in troubles)
        failing = [m for m in self._fleet.members.values() if m.state is PipelineState.ERROR]
        return (
            HealthCheck("database", database, reason),
            HealthCheck("slot", "ok" if streaming else "error", self.slot.reason),
            HealthCheck("model", "warn" if troubles else "ok", models),
            HealthCheck(
                "pipelines",
                "warn" if failing else "ok",
                "; ".join(f"{member.wanted.name}: {member.reason}" for member in failing),
            ),
        )
