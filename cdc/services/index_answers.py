"""What built indexes answer: under which names they are searched, how each one stands, and who is nearest."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdc.errors import ConfigError, UnknownPipeline
from cdc.jobs import Job, JobId
from cdc.services.index_served import Served


def status_name(job: Job) -> str:
    """Return the name of a job's index among pipelines. It has the job's id: several may be of one column."""
    return f"{job.place}/{job.pipeline}:{job.kind.value}/{job.id.id}"


@dataclass(frozen=True, slots=True)
class IndexStanding:
    """How an index is.

    ``rows`` can be found; ``waiting`` changes were read and cannot yet. ``lag_seconds`` is the age of the oldest commit
    among those, 0 where there is none. ``done`` of about ``total`` rows of a build under way are in; 0 and 0: none is.
    ``is_followed``: the table's changes are coming in.
    """

    rows: int = 0
    waiting: int = 0
    lag_seconds: float = 0.0
    done: int = 0
    total: int = 0
    is_building: bool = False
    is_followed: bool = False


class IndexAnswers:
    """The indexes that are built, by job. Any thread may ask."""

    def __init__(self) -> None:
        self._served: dict[JobId, Served] = {}
        self._builds: dict[JobId, tuple[int, int]] = {}  # rows that are in, and about how many there are
        self._running: set[JobId] = set()

    def names(self) -> list[str]:
        """Return the names under which indexes can be searched."""
        return sorted(set().union(*map(_names, list(self._served.values()))))

    def column(self, name: str) -> tuple[str, str]:
        """Return the database and the column (``schema.table.column``) that an index is of.

        Raises:
            UnknownPipeline: no index that is built goes by this name.
            ConfigError: several do.
        """
        job = self._find(name).job
        return job.place, job.pipeline

    def is_at_work(self, job: JobId) -> bool:
        """Whether a job is being run here, or answers while its database is away."""
        return job in self._running or job in self._served

    def applied_lsn(self, job: JobId) -> int:
        """Return the position up to which all commits can be found in a job's index, 0 where there is none."""
        served = self._served.get(job)
        return served.follower.applied if served is not None else 0

    def standing(self, job: JobId) -> IndexStanding:
        """Return how a job's index is."""
        served, build = self._served.get(job), self._builds.get(job)
        done, total = build or (0, 0)
        if served is None:
            return IndexStanding(done=done, total=total, is_building=build is not None)
        waiting, oldest = served.follower.behind()
        lag = max(0.0, time.time() - oldest) if oldest else 0.0
        followed = served.is_followed and not served.is_closed
        return IndexStanding(served.index.count, waiting, lag, done, total, build is not None, followed)

    def search(
        self, name: str, vector: Sequence[float] | NDArray[Any], k: int, ef: int | None = None
    ) -> list[dict[str, object]]:
        """Return up to ``k`` rows nearest to ``vector``, nearest first. Any thread; takes milliseconds.

        Args:
            name: ``schema.table.column``, the name of the job's index, or the job (``schema.jobs_table/7``); the column
                and the job also with the place of their database before them (``host:port/database/…``).
            vector: The numbers that the column's type would hold: bits for ``bit``, integers for ``integer[]``.
            k: How many.
            ef: Candidates to look at; None: what the job says.

        Returns:
            ``{"key": {column: value}, "distance": float, "content": None}`` for each; the distance is the operator's.

        Raises:
            UnknownPipeline: no index that is built goes by this name.
            ConfigError: several do, or the vector does not fit.
        """
        served = self._find(name)
        numbers = np.asarray(vector, np.float64)  # integers would lose their last bits in float32
        if numbers.ndim != 1 or not len(numbers) or not np.isfinite(numbers).all():
            raise ConfigError("A search needs a vector of finite numbers.")
        wanted = served.index.dimension
        asked = served.form.from_numbers(numbers)
        if wanted is not None and len(asked) != wanted:
            raise ConfigError(
                f"{name} holds vectors of {served.form.elements(wanted)} dimensions; the one given has {len(numbers)}."
            )
        if not served.form.usable(asked[None, :])[0]:
            raise ConfigError("A vector of zeros has no direction, so nothing is near it by cosine distance.")
        found = served.index.search(asked, k, ef or served.spec.ef)
        codec = served.index.codec
        return [{"key": codec.to_object(key), "distance": distance, "content": None} for key, distance in found]

    def _find(self, name: str) -> Served:
        every = list(self._served.values())
        found = [served for served in every if name in _names(served)]
        if not found:
            known = ", ".join(self.names()) or "none yet"
            raise UnknownPipeline(f'There is no index "{name}" that is built.', f"Indexes: {known}.")
        if len(found) > 1:
            jobs = ", ".join(sorted(_name_alone(served, every) for served in found))
            raise ConfigError(f'Several indexes are of "{name}".', f"Name the job: {jobs}.")
        return found[0]


def _names(served: Served) -> set[str]:
    job = served.job
    column, row = job.pipeline, str(job.id)
    return {column, f"{job.place}/{column}", row, f"{job.id.database}/{row}", served.spec.name} - {""}


def _name_alone(served: Served, every: Sequence[Served]) -> str:
    """Return the shortest name of a job that no other one has: two control databases may both have a row 1."""
    row = str(served.job.id)
    alone = sum(row in _names(other) for other in every) == 1
    return row if alone else f"{served.job.id.database}/{row}"
