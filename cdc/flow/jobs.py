"""What is to be done about a job: the next step, who writes a column, and what slots are called."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

from cdc.flow.job_rows import Asked
from cdc.jobs import JobKind
from cdc.rows import Table

T = TypeVar("T")

FIRST_RETRY_S: Final = 1.0
MOST_RETRY_S: Final = 300.0
"""Seconds before a failed job is tried again: the first pause, doubling up to the longest."""

AWAY_S: Final = 5.0
"""The longest pause where a server is merely away."""

LASTED_S: Final = 60.0
"""A job that ran this long before it failed is tried again as if it had never failed."""


class Step(StrEnum):
    """What a daemon does about a job now."""

    REST = "rest"  # nothing runs, and nothing is to
    START = "start"
    KEEP = "keep"  # it runs as it should
    RESTART = "restart"  # it was edited: it ends, and begins as what it is now
    DISCARD = "discard"  # canceled, deleted, or another daemon's now: it ends, and what it keeps here goes
    WAIT = "wait"  # it failed, and its next try is not due


@dataclass(slots=True)
class Course:
    """What one daemon remembers of a job: the row that it ran or tried, and how that went.

    ``digest`` is that of the row, empty where it never ran here; ``seen`` that of the row that last ran here or
    was found to be finished. ``tries`` counts failures in a row. Times are seconds
    of a monotonic clock: ``retry_at`` is when the next try is due, ``clear_at`` the next try to clear away.
    ``told_failed``: the row says, by our own hand, that it failed. ``discarded``: what the job kept here is gone.
    """

    digest: str = ""
    seen: str = ""
    running: bool = False
    discarded: bool = False
    tries: int = 0
    retry_at: float = 0.0
    clear_at: float = 0.0
    told_failed: bool = False

    def failed(self, now: float, most: float = MOST_RETRY_S) -> None:
        """Note a failure, and when to try again: after ``most`` seconds at the latest."""
        self.tries += 1
        self.retry_at = now + min(most, FIRST_RETRY_S * 2.0 ** min(self.tries - 1, 16))

    def failed_for_good(self) -> None:
        """Note a failure that only a person can mend: the next try is due when the row is another."""
        self.tries += 1
        self.retry_at = math.inf

    def not_cleared(self, now: float) -> None:
        """Note that what the job kept could not be cleared away, and when to try again."""
        self.failed(now)
        self.discarded, self.clear_at, self.retry_at = False, self.retry_at, 0.0

    def going(self) -> None:
        """Note that it works: what failed before does not count any more."""
        self.tries, self.told_failed = 0, False


def decide(asked: Asked | None, label: str, course: Course, now: float) -> Step:
    """Return the next step for a job.

    Args:
        asked: Its row; None: deleted.
        label: The daemon's own label.
        course: What the daemon remembers of it.
        now: Seconds of the clock of ``course.retry_at``.
    """
    if asked is None or asked.canceled or asked.label != label:
        ours = asked is None or asked.label == label or course.digest != ""
        if not ours or (course.discarded and not course.running):
            return Step.REST
        return Step.WAIT if not course.running and now < course.clear_at else Step.DISCARD
    edited = course.digest not in ("", asked.digest)
    if course.running:
        return Step.RESTART if edited else Step.KEEP
    if asked.kind is JobKind.AUTOTUNE and asked.finished:  # once and for all, unless it is another job now
        return Step.REST if (course.digest or course.seen) in ("", asked.digest) else Step.START
    struck_out = course.told_failed and not asked.failed  # by a person, who wants it tried again
    if course.tries and not edited and not struck_out and now < course.retry_at:
        return Step.WAIT
    return Step.START


def control_digest(server: str, database: int, table: Table) -> str:
    """Return what tells a table of jobs from every other: eight hexadecimal digits.

    Args:
        server: The identifier of the control database's server.
        database: The oid of the control database.
        table: The table of jobs. Two tables of one database are two controls: a daemon reads one of them.
    """
    return _digest(f"{server}/{database}\0{table}")


def publication_name(label: str, control: str) -> str:
    """Return the name of the publication of a control's embedding jobs with ``label``, within a slot name's rules.

    Daemons over different tables of jobs must not meet in one: each would end the pipelines that it does not know of.
    """
    return "_".join(("walvec_jobs", *([_plain(label)] if label else ()), *([control] if control else ())))


def slot_name(label: str, control: str, database: int) -> str:
    """Return the name of the slot of a control's embedding jobs with ``label`` in a database, for which its oid stands.

    Slots belong to one database each, and their names to the whole server.
    """
    return f"{publication_name(label, control)}_{database}"


def _plain(label: str) -> str:
    plain = re.sub(r"[^a-z0-9_]", "_", label.lower())
    return plain if plain == label and len(plain) <= 29 else f"{plain[:20]}_{_digest(label)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def conflicts(wanted: Iterable[tuple[T, str, Table, str]]) -> dict[T, T]:
    """Return which jobs would write a column that an earlier one writes already: the later one to the earlier.

    Args:
        wanted: (job, database, table, column), the earliest job first.
    """
    first: dict[tuple[str, Table, str], T] = {}
    later: dict[T, T] = {}
    for job, database, table, column in wanted:
        holder = first.setdefault((database, table, column), job)
        if holder is not job:
            later[job] = holder
    return later
