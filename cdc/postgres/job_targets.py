"""Pipelines of jobs in target databases, for callers in an event loop: every call runs in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

import psycopg
from psycopg.rows import TupleRow

from cdc.errors import Unavailable
from cdc.jobs import EmbeddingSpec, Job
from cdc.postgres.connect import classify, connect_sync
from cdc.postgres.job_pipelines import (
    JobPipeline,
    detach_job_pipeline,
    ensure_job_pipeline,
    job_pipelines,
    release_jobs,
)
from cdc.postgres.job_rights import check_hands, check_rights
from cdc.postgres.queries import bound
from cdc.postgres.setup import SetupSettings

T = TypeVar("T")


class PostgresTargets:
    """Implements :class:`cdc.ports.books.Targets`.

    Args:
        settings: Those of the target database at a URL, given its identity and the control's digest.
    """

    def __init__(self, settings: Callable[[str, str, str], SetupSettings]) -> None:
        self._settings = settings
        self._identities: dict[str, str] = {}  # by URL

    def settings(self, url: str, control: str = "") -> SetupSettings:
        """Return the settings of the database at ``url`` for a control's jobs."""
        return self._settings(url, self._identities.get(url, "/0"), control)

    async def identity(self, url: str) -> str:
        """Return what tells the database at ``url`` from every other."""

        def look(connection: psycopg.Connection[TupleRow]) -> str:
            row = connection.execute(bound("jobs", "identity")).fetchone()
            assert row is not None
            return f"{row[0]}/{row[1]}"

        self._identities[url] = found = await self._with(url, look)
        return found

    async def check(self, job: Job, url: str) -> None:
        """Check what the job's own role may do, and whose code the role of ``url`` would run for it."""
        asker = await self._with(job.url, lambda connection: check_rights(connection, job))
        if url != job.url:
            await self._with(url, lambda connection: check_hands(connection, job, asker))

    async def ensure(self, url: str, job: Job) -> None:
        """Make or adapt the job's pipeline."""
        spec = job.spec
        assert isinstance(spec, EmbeddingSpec)
        wanted = JobPipeline(
            name=job.pipeline,
            kind=job.kind.value,
            job=job.id.owner,
            source=job.table,
            text_columns=(spec.source_column,),
            target_column=spec.target_column,
            runtime=spec.runtime,
            value_type=spec.column_type,
        )
        settings = self.settings(url, job.id.control.digest)
        await self._with(url, lambda connection: ensure_job_pipeline(connection, settings, wanted))

    async def detach(self, url: str, control: str, pipeline: str, owner: str) -> None:
        """Detach a pipeline of a control's slot, unless it belongs to another job by now."""

        def leave(connection: psycopg.Connection[TupleRow]) -> None:
            settings = self.settings(url, control)
            holder, attached = job_pipelines(connection, settings).get(pipeline, ("", False))
            if attached and holder == owner:
                detach_job_pipeline(connection, settings, pipeline)

        await self._with(url, leave)

    async def attached(self, url: str, control: str) -> Mapping[str, str]:
        """Return the attached pipelines of a control's slot, each with its owner."""
        found = await self._with(url, lambda connection: job_pipelines(connection, self.settings(url, control)))
        return {name: owner for name, (owner, attached) in found.items() if attached}

    async def release(self, url: str, control: str) -> None:
        """Drop a control's slot and publication."""
        await self._with(url, lambda connection: release_jobs(connection, self.settings(url, control)))

    async def _with(self, url: str, work: Callable[[psycopg.Connection[TupleRow]], T]) -> T:
        """Run ``work`` in a thread. Whoever is cancelled meanwhile waits for its end, unless it has not begun.

        A thread cannot be cancelled: a pipeline that is being made would appear after what clears it away.
        """
        turn = _Turn()

        def run() -> T:
            with connect_sync(self.settings(url), "jobs") as connection:
                turn.begin()
                try:
                    return work(connection)
                except psycopg.Error as exc:
                    raise classify(exc) from exc

        task = asyncio.ensure_future(asyncio.to_thread(run))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            while turn.is_under_way() and not task.done():  # nobody who cancels again hurries it
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait((task,))
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody else looks at it
            raise


class _Turn:
    """Whether work in a thread has begun, or is not to begin any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun = self._void = False

    def begin(self) -> None:
        """Begin, in the thread. Raises Unavailable where it is too late."""
        with self._lock:
            if self._void:
                raise Unavailable("It was called off.")
            self._begun = True

    def is_under_way(self) -> bool:
        """Tell whether it has begun; if it has not, it never will."""
        with self._lock:
            self._void = True
            return self._begun
