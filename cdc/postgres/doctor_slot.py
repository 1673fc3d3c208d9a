"""Checks of the replication slot and of what bounds the WAL it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from psycopg import sql

from cdc.postgres.doctor_facts import Check, Checks, Facts, Problem, fail, warn

_checks = Checks()
CHECKS: Final[list[Check]] = _checks.all

IDLE_RETAINED_BYTES: Final = 1 << 30


def _drop(facts: Facts) -> str:
    return f"SELECT pg_drop_replication_slot({sql.Literal(facts.settings.slot).as_string()});"


@_checks.add(
    "WV050",
    "The replication slot exists.",
    why="It remembers how far the WAL was read; changes made before it exists are found by comparing whole tables.",
    fix="`walvec init`, or just `walvec run`, which makes it.",
)
def _exists(facts: Facts) -> Iterator[Problem]:
    if facts.slot is None:
        yield warn(f'The replication slot "{facts.settings.slot}" does not exist yet.')


@_checks.add(
    "WV051",
    "The slot is a permanent pgoutput slot of this database.",
    why="Another plugin, or another database's slot, cannot be read here.",
    fix="Set WALVEC_SLOT to a name of its own.",
    needs="slot",
)
def _kind(facts: Facts) -> Iterator[Problem]:
    slot = facts.slot
    if slot is None:
        return
    if slot["plugin"] != "pgoutput":
        yield fail(f"The slot's plugin is {slot['plugin'] or 'none: it is a physical slot'}.")
    elif slot["database"] != slot["here"]:
        yield fail(f"The slot belongs to database {slot['database']}.")
    elif slot["temporary"]:
        yield fail("The slot is temporary: it goes with the session that made it.")


@_checks.add(
    "WV052",
    "Nobody but walvec reads the slot.",
    why="A slot has one reader, and what another one acknowledges walvec never sees.",
    fix="Stop the other reader, or set WALVEC_SLOT to a name of its own.",
    needs="slot",
)
def _holder(facts: Facts) -> Iterator[Problem]:
    slot = facts.slot
    if slot is not None and slot["active"] and slot["holder"] not in (facts.settings.slot, None, ""):
        yield warn(f'The slot is in use by pid {slot["active_pid"]}, application "{slot["holder"]}".')


@_checks.add(
    "WV053",
    "The slot is intact.",
    why="The WAL of a lost slot is gone; walvec then makes a new one and compares everything.",
    fix="SELECT pg_drop_replication_slot('…'); `walvec run` makes a new one and reconciles.",
    needs="slot",
)
def _intact(facts: Facts) -> Iterator[Problem]:
    slot = facts.slot
    if slot is None:
        return
    if slot.get("invalidation_reason") or slot.get("wal_status") == "lost":
        yield fail(f"The slot is lost: {slot.get('invalidation_reason') or 'its WAL was removed'}.", _drop(facts))
    elif slot.get("wal_status") == "unreserved":
        yield warn("The slot's WAL is about to be removed.", "Start `walvec run`, or raise max_slot_wal_keep_size.")


@_checks.add(
    "WV054",
    "The slot is far from the limit of the WAL it may keep.",
    why="At the limit the server gives the slot up.",
    fix="Start `walvec run`, or ALTER SYSTEM SET max_slot_wal_keep_size = …; then reload.",
    needs="slot",
)
def _safe_size(facts: Facts) -> Iterator[Problem]:
    safe, limit = (facts.slot or {}).get("safe_wal_size"), facts.number("max_slot_wal_keep_size") or -1
    if safe is not None and limit > 0 and safe < 0.2 * limit * (1 << 20):
        yield warn(f"The slot may keep only {max(0, safe) >> 20} MiB more, of {limit} MiB.")


@_checks.add(
    "WV055",
    "max_slot_wal_keep_size bounds what an abandoned slot keeps.",
    why="With -1 a slot that nobody reads keeps WAL until the disk is full and the database stops.",
    fix="ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; (10 to 50 % of the disk), then reload.",
)
def _keep_size(facts: Facts) -> Iterator[Problem]:
    if facts.number("max_slot_wal_keep_size") == -1:
        yield warn("max_slot_wal_keep_size is -1: there is no limit.")


@_checks.add(
    "WV056",
    "The slot survives a failover.",
    why="From PostgreSQL 17 on, standbys keep a copy of slots marked for failover; others go with the primary.",
    fix="Drop the slot while walvec is stopped; `walvec init` makes it with failover. Standbys need "
    "sync_replication_slots = on.",
    needs="slot",
)
def _failover(facts: Facts) -> Iterator[Problem]:
    if facts.slot is not None and facts.server["standbys"] and facts.slot.get("failover") is False:
        yield warn("The server has standbys, and the slot is not marked for failover.")


@_checks.add(
    "WV057",
    "Idle slots are not given up.",
    why="While walvec is stopped its slot is idle; past idle_replication_slot_timeout the server invalidates it.",
    fix="ALTER SYSTEM SET idle_replication_slot_timeout = 0; or at least a day; then reload.",
)
def _idle_timeout(facts: Facts) -> Iterator[Problem]:
    seconds = facts.number("idle_replication_slot_timeout")
    if seconds is not None and 0 < seconds < 86_400:
        yield warn(f"idle_replication_slot_timeout is {seconds} s.")


@_checks.add(
    "WV058",
    "No WAL piles up behind an idle slot.",
    why="A slot that nobody reads keeps all WAL since then.",
    fix="Start `walvec run`, or free the WAL with `walvec drop --slot --yes`.",
    needs="slot",
)
def _retained(facts: Facts) -> Iterator[Problem]:
    slot = facts.slot
    if slot is not None and not slot["active"] and (slot["retained"] or 0) > IDLE_RETAINED_BYTES:
        yield warn(f"Nobody reads the slot, and it keeps {slot['retained'] >> 20} MiB of WAL.")
