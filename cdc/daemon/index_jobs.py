"""External index jobs as the view shows them: how each stands, and waiting until each has what was committed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from cdc.jobs import IndexSpec, JobId, JobState
from cdc.postgres.sync import mark
from cdc.services.director import Director
from cdc.services.index_answers import IndexStanding
from cdc.services.job_member import Member
from cdc.status import PipelineState, PipelineStatus

LOOK_S = 0.005
"""Seconds between two looks at how far indexes are."""


class IndexSearch(Protocol):
    """What is needed of the runner of external indexes."""

    def names(self) -> list[str]:
        """Return what can be searched."""
        ...

    def column(self, name: str) -> tuple[str, str]:
        """Return the database and the column that an index is of. Raises ConfigError where several have the name."""
        ...

    def search(self, pipeline: str, vector: Sequence[float], k: int, ef: int | None) -> list[dict[str, object]]:
        """Return up to ``k`` rows nearest to ``vector``. Blocks; any thread."""
        ...

    def standing(self, job: JobId) -> IndexStanding:
        """Return how a job's index is."""
        ...

    def is_at_work(self, job: JobId) -> bool:
        """Whether a job is being run here, or answers while its database is away."""
        ...

    def applied_lsn(self, job: JobId) -> int:
        """Return the position up to which all commits can be found in a job's index, 0 where there is none."""
        ...

    def stop(self) -> None:
        """Hear that the process ends."""
        ...


def filled(status: PipelineStatus, standing: IndexStanding) -> PipelineStatus:
    """Return what a job's row says with what its index says."""
    if not (standing.rows or standing.is_followed or standing.is_building):
        return status
    state = status.state
    if standing.is_building:
        state = PipelineState.BACKFILLING
    elif state is PipelineState.READY and not standing.is_followed:
        state = PipelineState.WAITING  # its database is away, or it is being opened
    waiting = max(0, standing.total - standing.done) if standing.is_building else standing.waiting
    return replace(
        status,
        state=state,
        unprocessed_rows=waiting,
        source_records=max(standing.rows, standing.total),
        embeddings=standing.rows,
        lag_seconds=standing.lag_seconds,
        backfill_done=standing.done,
        backfill_total=standing.total,
    )


class IndexWait:
    """Waits until the indexes have what was committed when it was made. Blocks: not for the event loop's thread.

    Args:
        indexes: The runner.
        directors: Returns the directors of now.

    Raises:
        Unavailable: a database is away.
    """

    def __init__(self, indexes: IndexSearch, directors: Callable[[], Sequence[Director]]) -> None:
        self._indexes = indexes
        self._directors = directors
        jobs = [member.job for member in self._members() if member.job is not None]
        marks = {url: mark(url) for url in {job.url for job in jobs}}
        self._targets = {job.id: marks[job.url] for job in jobs}

    def wait(self, deadline: float) -> bool:
        """Return True once all of it can be found, False when ``time.monotonic()`` has reached ``deadline`` before."""
        while any(self._is_behind(member) for member in self._members()):
            if time.monotonic() >= deadline:
                return False
            time.sleep(LOOK_S)
        return True

    def _members(self) -> list[Member]:
        """Return the index jobs that are to be waited for: one that failed, or that another daemon runs, is not."""
        found = []
        for director in self._directors():
            living = director.living()
            for member in list(director.members.values()):
                asked = member.asked
                if asked is None or str(member.id) not in living or not isinstance(asked.spec, IndexSpec):
                    continue
                if self._indexes.is_at_work(member.id) or asked.state is JobState.QUEUED:
                    found.append(member)
        return found

    def _is_behind(self, member: Member) -> bool:
        applied = self._indexes.applied_lsn(member.id)
        return not applied or applied < self._targets.get(member.id, 0)
