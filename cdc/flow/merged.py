"""Several consumers shown as one: pipelines side by side, each under its place, and one slot that stands for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cdc.jobs import JobState
from cdc.status import EngineStatus, HealthCheck, PipelineState, PipelineStatus, SlotState, SlotStatus

STATES = {
    JobState.QUEUED: PipelineState.WAITING,
    JobState.IN_PROGRESS: PipelineState.BACKFILLING,
    JobState.ENABLED: PipelineState.READY,
    JobState.FINISHED: PipelineState.READY,
    JobState.CANCELED: PipelineState.DETACHED,
    JobState.FAILED: PipelineState.ERROR,
}
"""What a job that no engine runs looks like among pipelines."""

_BEST = (SlotState.STREAMING, SlotState.STANDBY, SlotState.CONNECTING, SlotState.PUBLICATION_MISSING, SlotState.LOST)


@dataclass(frozen=True, slots=True)
class Part:
    """One consumer: the place of its database, and what it says."""

    place: str
    status: EngineStatus


def merged(parts: Sequence[Part], others: Sequence[PipelineStatus], checks: Sequence[HealthCheck]) -> EngineStatus:
    """Return the status of all parts together.

    One database that is away is a warning among the checks, and does not make the whole unready: the others go on.

    Args:
        parts: The consumers.
        others: Pipelines that none of them runs, their places before their names.
        checks: Further checks, the ``database`` one that readiness goes by among them.
    """
    pipelines = [replace(p, pipeline=f"{part.place}/{p.pipeline}") for part in parts for p in part.status.pipelines]
    known = {p.pipeline for p in pipelines}
    return EngineStatus(
        slot=_slot([part.status.slot for part in parts]),
        pipelines=(*pipelines, *(p for p in others if p.pipeline not in known)),
        checks=(*checks, *(check for part in parts for check in _checks(part))),
        inflight_requests=sum(part.status.inflight_requests for part in parts),
        recent_errors=tuple(error for part in parts for error in part.status.recent_errors),
    )


def beside(main: EngineStatus, jobs: EngineStatus | None) -> EngineStatus:
    """Return a consumer's status with that of the jobs it runs beside: what is wrong with those is a warning."""
    if jobs is None:
        return main
    checks = [
        replace(check, name=check.name if " " in check.name else f"{check.name} of jobs", status="warn")
        for check in jobs.checks
        if check.status != "ok"
    ]
    return replace(
        main,
        pipelines=(*main.pipelines, *jobs.pipelines),
        checks=(*main.checks, *checks),
        inflight_requests=main.inflight_requests + jobs.inflight_requests,
        recent_errors=(*main.recent_errors, *jobs.recent_errors),
    )


def _slot(slots: Sequence[SlotStatus]) -> SlotStatus:
    if not slots:
        return SlotStatus("walvec_jobs", SlotState.STREAMING)  # nothing to follow, and ready for more
    best = min(slots, key=lambda slot: _BEST.index(slot.state) if slot.state in _BEST else len(_BEST))
    safe = [slot.safe_bytes for slot in slots if slot.safe_bytes is not None]
    return SlotStatus(
        best.name,
        best.state,
        best.reason,
        lag_bytes=sum(slot.lag_bytes for slot in slots),
        retained_bytes=sum(slot.retained_bytes for slot in slots),
        safe_bytes=min(safe) if safe else None,
        oldest_unacked_seconds=max(slot.oldest_unacked_seconds for slot in slots),
    )


def _checks(part: Part) -> list[HealthCheck]:
    slot = part.status.slot
    if slot.state not in (SlotState.STREAMING, SlotState.STANDBY):
        return [HealthCheck(f"slot {part.place}", "warn", f"{slot.state.value}: {slot.reason}".rstrip(": "))]
    return [
        replace(check, name=f"{check.name} {part.place}", status="warn")
        for check in part.status.checks
        if check.status != "ok"
    ]
