"""What runs a job, and what it says while it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from cdc.jobs import Job


class JobReport(Protocol):
    """One job's row in its book. Every method writes at once, and waits while the control database is away."""

    async def started(self) -> None:
        """Note that work has begun: ``started_at`` (``init_started_at``) where it is empty, failures struck out."""
        ...

    async def anew(self) -> None:
        """Note that what was finished is to be done again: ``started_at`` and ``finished_at`` empty, progress 0."""
        ...

    async def progress(self, percent: int) -> None:
        """Note how much is done, 0 to 100; written only when it has risen."""
        ...

    async def finished(self) -> None:
        """Note that it is done: ``finished_at`` (``init_finished_at``) where it is empty, progress 100."""
        ...

    async def failed(self, reason: str) -> None:
        """Note that it has failed, with one plain sentence that holds no secret."""
        ...

    async def waits(self, reason: str) -> None:
        """Note why a job that has not failed does nothing: ``failure_reason`` alone, and that where it never began.

        Empty: it waits no more.
        """
        ...

    async def result(self, row: Mapping[str, object]) -> None:
        """Add a row to the results table (autotune), its ``experiment_id`` the job's id; extra keys are left out."""
        ...

    async def forget_results(self) -> None:
        """Remove the job's rows of the results table: those of an earlier run."""
        ...


class JobRunner(Protocol):
    """Runs jobs of one kind. One instance serves all of them; :meth:`run` is called once per job, side by side."""

    async def run(self, job: Job, report: JobReport) -> None:
        """Do what ``job`` asks, and where it is something to keep in step, keep it so until cancelled.

        Returning means that it is finished. Cancelling it (``asyncio.CancelledError``) stops it cleanly, leaving
        nothing half-made that a later run would trust.

        Raises:
            Unavailable: a server is away; it is run again with backoff, and is not failed.
            WalvecError: it cannot be done; the sentence becomes the job's failure reason. An autotune job is then left
                alone until somebody changes its row, any other is run again with backoff.
        """
        ...

    async def discard(self, job: Job) -> None:
        """Remove what :meth:`run` keeps for a job that was canceled or deleted: its slot, publication, files."""
        ...
