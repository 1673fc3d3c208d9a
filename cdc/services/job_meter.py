"""What jobs use: rows, tokens and failed requests, gathered as they happen and written down about once a second."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace

from cdc.jobs import Job, JobId
from cdc.ports import DeadLetter, Observer
from cdc.ports.books import Uncastable, Usage
from cdc.status import EngineStatus

MOST_UNCASTABLE = 10_000
"""Answers kept for the control database while it is away; further ones are only dead letters in their own database."""


class JobMeter:
    """Gathers for all jobs. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._usage: dict[JobId, Usage] = {}
        self._uncastable: list[tuple[JobId, Uncastable]] = []

    def of(self, job: Callable[[str], Job | None]) -> PipelineMeter:
        """Return the meter of one database's pipelines; ``job`` tells whose a pipeline is."""
        return PipelineMeter(self, job)

    def add(self, id: JobId, rows: int = 0, tokens: int = 0, failed_rows: int = 0) -> None:
        """Count for a job; ``failed_rows`` are those of one request."""
        with self._lock:
            used = self._usage.get(id, Usage(id.id))
            self._usage[id] = replace(
                used,
                rows=used.rows + rows,
                tokens=used.tokens + tokens,
                failed_rows=used.failed_rows + failed_rows,
                failed_requests=used.failed_requests + bool(failed_rows),
            )

    def keep(self, id: JobId, answer: Uncastable) -> None:
        """Keep an answer that could not be stored."""
        with self._lock:
            if len(self._uncastable) < MOST_UNCASTABLE:
                self._uncastable.append((id, answer))

    def take(self, place: str) -> tuple[list[Usage], list[Uncastable]]:
        """Return what was gathered for the jobs of one control database, and begin anew."""
        with self._lock:
            ids = [id for id in self._usage if id.database == place]
            answers = [answer for id, answer in self._uncastable if id.database == place]
            self._uncastable = [(id, answer) for id, answer in self._uncastable if id.database != place]
            return [self._usage.pop(id) for id in ids], answers


@dataclass(frozen=True, slots=True)
class PipelineMeter:
    """The meter of one database's pipelines. Implements :class:`cdc.ports.Failures`."""

    meter: JobMeter
    job: Callable[[str], Job | None]

    def used(self, pipeline: str, rows: int = 0, tokens: int = 0, failed_rows: int = 0) -> None:
        """Count for the job of ``pipeline``."""
        job = self.job(pipeline)
        if job is not None:
            self.meter.add(job.id, rows, tokens, failed_rows)

    def buried(self, pipeline: str, letters: Sequence[DeadLetter]) -> None:
        """Keep the answers that the job's column type does not take."""
        job = self.job(pipeline)
        if job is not None:
            for letter in letters:
                if letter.answer is not None:
                    self.meter.keep(job.id, Uncastable(job.id.id, letter.row_id, letter.answer))


_REQUEST: ContextVar[int] = ContextVar("rows of the request under way", default=0)
"""A request is begun and ended in one task, many run side by side."""


class JobObserver:
    """Implements :class:`cdc.ports.Observer` for one engine: names get their place, and jobs are metered."""

    def __init__(
        self, observer: Observer, place: str, meter: PipelineMeter, heard: Callable[[EngineStatus], None]
    ) -> None:
        self._observer = observer
        self._place = place
        self._meter = meter
        self._heard = heard

    def _name(self, pipeline: str) -> str:
        return f"{self._place}/{pipeline}"

    def changes(self, pipeline: str, op: str, rows: int) -> None:
        """Pass on."""
        self._observer.changes(self._name(pipeline), op, rows)

    def coalesced(self, pipeline: str, rows: int) -> None:
        """Pass on."""
        self._observer.coalesced(self._name(pipeline), rows)

    def skipped_unchanged(self, pipeline: str, rows: int) -> None:
        """Pass on."""
        self._observer.skipped_unchanged(self._name(pipeline), rows)

    def batch(self, pipeline: str, rows: int) -> None:
        """Pass on, and remember how many rows this task's request has."""
        _REQUEST.set(rows)
        self._observer.batch(self._name(pipeline), rows)

    def inference(self, pipeline: str, outcome: str, seconds: float) -> None:
        """Pass on; meter a request that failed."""
        if outcome != "ok":
            self._meter.used(pipeline, failed_rows=_REQUEST.get())
        self._observer.inference(self._name(pipeline), outcome, seconds)

    def inference_error(self, pipeline: str, reason: str) -> None:
        """Pass on."""
        self._observer.inference_error(self._name(pipeline), reason)

    def embedded(self, pipeline: str, rows: int, tokens: int) -> None:
        """Pass on, and meter."""
        self._meter.used(pipeline, rows=rows, tokens=tokens)
        self._observer.embedded(self._name(pipeline), rows, tokens)

    def written(self, pipeline: str, seconds: float) -> None:
        """Pass on."""
        self._observer.written(self._name(pipeline), seconds)

    def visible(self, pipeline: str, seconds: Sequence[float]) -> None:
        """Pass on."""
        self._observer.visible(self._name(pipeline), seconds)

    def slot_lost(self) -> None:
        """Pass on."""
        self._observer.slot_lost()

    def publish(self, status: EngineStatus) -> None:
        """Hear it; what is shown of all engines together is put together elsewhere."""
        self._heard(status)
