"""The index in the database that a job may ask for beside the external one, which its failures never touch."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from cdc.errors import Unavailable, WalvecError
from cdc.ports.indexes import IndexSource
from cdc.ports.jobs import JobReport
from cdc.services.index_served import Served

log = structlog.get_logger()

ALL: Final = 99
"""Per cent that are done with the work; the last is for "finished"."""

HALF: Final = 50
"""Per cent that are done with the external index, where one in the database follows."""

_AGAIN_S: Final = 5.0


async def finish(served: Served, source: IndexSource, report: JobReport) -> None:
    """Build the index in the database too, where one is asked for; then the job is done for the first time.

    That it cannot be built is said in the job's row, and takes nothing from the index that is served.
    """
    failed = await _build(served, source, report) if served.spec.name else ""
    await report.finished()
    if failed:
        await report.failed(f"The external index is served, and goes on. {failed}")


async def _build(served: Served, source: IndexSource, report: JobReport) -> str:
    """Build the index; return why it could not be, empty where it was or need not be."""

    async def progress(percent: int) -> None:
        await report.progress(HALF + percent * (ALL - HALF) // 100)

    job = str(served.job.id)
    while True:
        try:
            said = await source.build(served.indexed, progress)
            log.info("external_index_in_database", job=job, message=said)
            return ""
        except Unavailable as exc:
            log.warning("external_index_in_database", job=job, message=str(exc))
            await asyncio.sleep(_AGAIN_S)
        except Exception as exc:  # a bug there must not take down what is served here; its message may quote a row
            failed = str(exc) if isinstance(exc, WalvecError) else f"An unexpected fault: {type(exc).__name__}."
            log.warning("external_index_in_database", job=job, message=failed)
            return failed
