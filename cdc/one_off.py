"""A table embedded once, put together: its rows, the model that the command names, and where results go."""

from __future__ import annotations

import asyncio
import csv
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from cdc.app import secrets_of
from cdc.config import Settings
from cdc.errors import ConfigError, Unavailable
from cdc.flow.disposition import Failure
from cdc.job_models import JobModels
from cdc.jobs import EmbeddingSpec, JobKind
from cdc.ports import EmbedFailed, ModelChoice
from cdc.ports.one_off import Item, Refusal, Sink
from cdc.ports.target import Results
from cdc.postgres import expressions, one_off_plan
from cdc.postgres.one_off import OneOffTable, open_sessions, try_filter
from cdc.postgres.one_off_plan import Asked, Found, Plan, Value
from cdc.rows import key_cells
from cdc.services.gate import ModelGate
from cdc.services.one_off import OneOff, Outcome
from cdc.telemetry import logs
from cdc.telemetry.metrics import Metrics

Progress = Callable[[int, int], None]
"""(rows done, rows in all)."""


_WORDS = (
    (r"(the job's )?\bruntime_params\b", "--runtime-params"),
    (r"\bthe job's runtime\b", "--runtime"),
    (r"\bthe job's job_type\b", "--job-type"),
    (r"\bThe job's model\b", "The model"),
    (r", and become so once its files are there and the daemon is started again", "; once its files are there, run it "
     "again with --all"),
)  # fmt: skip
"""What a command has in the place of a job's row."""


def in_a_commands_words(said: str) -> str:
    """Return ``said`` with flags in the place of a job's columns."""
    for columns, flags in _WORDS:
        said = re.sub(columns, flags, said)
    return said


@dataclass(frozen=True, slots=True)
class Done:
    """What a run came to. ``place`` is where results went, ``type`` what they are."""

    outcome: Outcome
    model: str
    place: str
    type: str
    seconds: float


def run(
    settings: Settings,
    asked: Asked,
    spec: EmbeddingSpec,
    *,
    limit: int | None,
    out_csv: Path | None,
    note: Callable[[str], None],
    progress: Progress,
) -> Done:
    """Embed a table once, or have it completed.

    Args:
        settings: Of the database, and of the model where ``spec`` leaves something open.
        asked: What is read and written.
        spec: The model.
        limit: Most rows; None: all.
        out_csv: Results go into this file instead of a column.
        note: Told what a person should know.
        progress: Told how far it is.

    Raises:
        ConfigError: names, filter, model or parameters will not do.
        Unavailable: the database or the model is away; a further run goes on where this one stood.
    """
    logged = settings.log_level if settings.origins.get("log_level", "default") != "default" else "error"
    logs.configure(logged, settings.log_format, secrets=secrets_of(settings))
    return asyncio.run(_run(settings, asked, spec, limit, out_csv, note, progress))


async def _run(
    settings: Settings,
    asked: Asked,
    spec: EmbeddingSpec,
    limit: int | None,
    out_csv: Path | None,
    note: Callable[[str], None],
    progress: Progress,
) -> Done:
    models = JobModels(settings, os.environ)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(models.close)
        try:
            chosen = models.choose(spec, JobKind.COMPLETION if asked.answers else JobKind.EMBEDDING)
        except ConfigError as exc:
            raise ConfigError(in_a_commands_words(exc.message), in_a_commands_words(exc.remedy)) from exc
        if chosen.note:
            note(in_a_commands_words(chosen.note))
        reader, writer = await open_sessions(stack, settings)
        found = await one_off_plan.look(writer, asked)
        if asked.filter:
            await try_filter(reader, expressions.identifier(asked.source), asked.filter)
        dimension = await _start(chosen)
        if out_csv is None:
            plan = await one_off_plan.settle(writer, asked, found, dimension)
        else:
            plan = _plan_of_file(asked, found)
        table = OneOffTable(reader, writer, plan)
        sink: Sink = table if out_csv is None else stack.enter_context(CsvSink(out_csv, plan))
        total = await table.count()
        total = total if limit is None else min(total, limit)
        gate = ModelGate(chosen.model, settings.inflight, Metrics(), settings.most_inflight)
        stack.push_async_callback(gate.close)
        began = time.monotonic()
        outcome = await OneOff(
            table,
            sink,
            gate,
            inflight=settings.inflight,
            max_attempts=settings.max_attempts,
            limit=limit,
            progress=lambda rows: progress(rows, total),
        ).run()
        place = str(out_csv) if out_csv is not None else f"{plan.target}.{plan.column}"
        shown = plan.value.type.rpartition(".")[2].replace('"', "")
        return Done(outcome, chosen.name, place, shown, time.monotonic() - began)


async def _start(chosen: ModelChoice) -> int:
    """Start the model; return the width of its vectors, 0 for answers."""
    try:
        return await chosen.model.start()
    except EmbedFailed as exc:
        kind = ConfigError if exc.failure is Failure.MISCONFIGURED else Unavailable
        raise kind(f"The model does not answer: {exc}") from exc


def _plan_of_file(asked: Asked, found: Found) -> Plan:
    """Return a plan that reads every row: nothing tells which of them a file has."""
    value = Value("answer" if asked.answers else "array", "text" if asked.answers else "real[]", "NULL", "")
    filters = f"({asked.filter}\n)" if asked.filter else ""
    return Plan(
        asked.source, found.key, found.text, filters, asked.source, asked.column or asked.text, value, True, None, "", 0
    )


class CsvSink:
    """Writes keys and results into a file with a header. Implements :class:`cdc.ports.one_off.Sink`.

    A vector stands as PostgreSQL writes an array: ``{0.25,-0.5}``. What is refused is left out.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self._path = path
        self._columns = [*(column.name for column in plan.key), plan.column]
        self._answers = plan.value.answers
        self._file: TextIO | None = None

    def __enter__(self) -> CsvSink:
        try:
            self._file = self._path.open("w", encoding="utf-8", newline="")
        except OSError as exc:
            raise ConfigError(f"{self._path} cannot be written: {exc.strerror}.") from None
        csv.writer(self._file).writerow(self._columns)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    async def write(self, items: Sequence[Item], results: Results) -> set[int]:
        """Append one line per item."""
        assert self._file is not None
        lines = csv.writer(self._file)
        for item, result in zip(items, results, strict=True):
            cells = [cell.decode("utf-8", "replace") for cell in key_cells(item.key)]
            value = str(result) if self._answers else "{" + ",".join(f"{x:.9g}" for x in result.tolist()) + "}"
            lines.writerow([*cells, value])
        return set()

    async def refuse(self, refusals: Sequence[Refusal]) -> None:
        """Leave them out."""
