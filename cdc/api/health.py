"""What the health endpoints say, from a snapshot and the age of the engine's last turn."""

from __future__ import annotations

from cdc.status import EngineStatus, HealthCheck, PipelineState, SlotState

STUCK_AFTER_S = 30.0
"""An engine whose loop has not turned for this long is stuck; restarting it is right."""

DATABASE = "database"
"""The check that tells whether the destination can be reached."""


def loop_check(heartbeat_age_s: float) -> HealthCheck:
    """Whether the engine's loop turns. Asks nothing external: an outage elsewhere must not restart walvec."""
    if heartbeat_age_s <= STUCK_AFTER_S:
        return HealthCheck("loop", "ok", f"last turn {max(0.0, heartbeat_age_s):.1f} s ago")
    return HealthCheck("loop", "error", f"the engine's loop has not turned for {heartbeat_age_s:.0f} s")


def slot_check(status: EngineStatus) -> HealthCheck:
    """Whether changes arrive, or would if the active instance went away."""
    slot = status.slot
    told = f"{slot.state.value}: {slot.reason}" if slot.reason else slot.state.value
    if slot.state in (SlotState.STREAMING, SlotState.STANDBY):
        return HealthCheck("slot", "ok", told)
    return HealthCheck("slot", "warn" if slot.state is SlotState.CONNECTING else "error", told)


def unready(status: EngineStatus) -> str:
    """Return why walvec is not ready, or an empty string when it is: streaming or standby, destination reachable."""
    if status.slot.state not in (SlotState.STREAMING, SlotState.STANDBY):
        return f"The replication slot is not streaming ({slot_check(status).message})."
    for check in status.checks:
        if check.name == DATABASE and check.status == "error":
            return f"The database cannot be reached ({check.message})." if check.message else "No database."
    return ""


def all_checks(status: EngineStatus, heartbeat_age_s: float) -> list[HealthCheck]:
    """Return every check: the loop, the slot, the engine's own, and one per pipeline that needs mending."""
    pipelines = [
        HealthCheck(f"pipeline {p.pipeline}", "warn", p.reason or "needs mending")
        for p in status.pipelines
        if p.state is PipelineState.ERROR
    ]
    return [loop_check(heartbeat_age_s), slot_check(status), *status.checks, *pipelines]


def worst(checks: list[HealthCheck]) -> str:
    """Return the gravest status among ``checks``."""
    found = {check.status for check in checks}
    return next((grave for grave in ("error", "warn") if grave in found), "ok")
