"""A row of a table of jobs, read and checked.

A book is a table of jobs. Its rows come as JSON objects (``to_jsonb``), so that any subset of the columns that Lantern
ever had will do: what is missing has Lantern's default. A row that cannot be run as it is carries the sentence that
says why; nothing here raises.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cdc.jobs import OPERATORS, AutotuneSpec, EmbeddingSpec, IndexSpec, JobKind, JobState, Spec, recall_share
from cdc.rows import Table

Row = Mapping[str, Any]
"""A row of a book, as ``to_jsonb`` gives it."""

STATUS_COLUMNS: Final = frozenset(
    {
        *("created_at", "updated_at", "canceled_at", "failed_requests", "failed_rows"),
        *("init_started_at", "init_finished_at", "init_failed_at", "init_failure_reason", "init_progress"),
        *("started_at", "finished_at", "failed_at", "failure_reason", "progress"),
    }
)
"""Columns that say how a job fares. A change of any other column is an edit: it makes the job another one."""

METRICS: Final = {**OPERATORS, "l2sq": "l2sq", "l2": "l2", "cos": "cosine", "cosine": "cosine", "hamming": "hamming"}
"""Operator classes and Lantern's metric kinds, and the distance that each means."""

_JOB_TYPES: Final = {
    "embedding_generation": JobKind.EMBEDDING,
    "embedding-generation": JobKind.EMBEDDING,
    "completion": JobKind.COMPLETION,
}


class Refused(Exception):
    """A row cannot be run as it is; the message is the sentence for its failure reason."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A row of a book, read.

    ``connection`` is what ``db_connection`` holds, empty where the book has none: then the target is the database that
    the book is in. ``table`` and ``spec`` are None where ``refusal`` says why the row cannot be run. ``digest`` changes
    with an edit.
    """

    id: int
    kind: JobKind
    label: str
    connection: str = field(repr=False)
    table: Table | None
    spec: Spec | None
    refusal: str
    digest: str
    started: bool
    finished: bool
    failed: bool
    canceled: bool
    reason: str

    @property
    def state(self) -> JobState:
        """The state in one word, as Lantern's status function orders them.

        But a job that Lantern's daemon marked as failed because it was canceled is canceled.
        """
        if self.failed and not (self.canceled and self.reason.lower() in ("job cancelled", "job canceled")):
            return JobState.FAILED
        if self.canceled:
            return JobState.CANCELED
        if self.finished:
            return JobState.FINISHED if self.kind is JobKind.AUTOTUNE else JobState.ENABLED
        return JobState.IN_PROGRESS if self.started else JobState.QUEUED


def read(book: JobKind, row: Row) -> Asked:
    """Return what a row of a book of ``book`` jobs asks for."""
    initial = "init_" if book is JobKind.EMBEDDING else ""
    kind, table, spec, refusal = book, None, None, ""
    try:
        kind = _kind(row) if book is JobKind.EMBEDDING else book
        table = Table(_text(row, "schema", "public"), _text(row, "table"))
        spec = _SPECS[kind](row)
    except Refused as exc:
        refusal = str(exc)
    return Asked(
        id=int(row["id"]),
        kind=kind,
        label=str(row.get("label") or ""),
        connection=str(row.get("db_connection") or "").strip(),
        table=None if refusal else table,
        spec=None if refusal else spec,
        refusal=refusal,
        digest=_digest(row),
        started=row.get(f"{initial}started_at") is not None,
        finished=row.get(f"{initial}finished_at") is not None,
        failed=row.get(f"{initial}failed_at") is not None,
        canceled=row.get("canceled_at") is not None,
        reason=str(row.get(f"{initial}failure_reason") or ""),
    )


# -- reading a row --------------------------------------------------------------------------------------------------


def _kind(row: Row) -> JobKind:
    given = _text(row, "job_type", "embedding_generation")
    if given not in _JOB_TYPES:
        raise Refused(f"The job_type is {given!r}; it is embedding_generation or completion.")
    return _JOB_TYPES[given]


def _embedding(row: Row) -> EmbeddingSpec:
    kind = _kind(row)
    source, target = _text(row, "src_column"), _text(row, "dst_column")
    if source == target:
        raise Refused(f"src_column and dst_column are both {source!r}: the text would be overwritten.")
    runtime = _text(row, "runtime", "ort")
    if kind is JobKind.COMPLETION and runtime != "openai":
        raise Refused(f"Completions need the runtime openai, and the job's runtime is {runtime!r}.")
    batch = _number(row, "batch_size", -1, least=-1)
    return EmbeddingSpec(
        source_column=source,
        target_column=target,
        model=_text(row, "embedding_model"),
        runtime=runtime,
        params=_object(row, "runtime_params"),
        key=_text(row, "pk", "id"),
        batch_rows=int(batch) if batch > 0 else None,
        column_type=_answer_type(row) if kind is JobKind.COMPLETION else "",
    )


def _answer_type(row: Row) -> str:
    given = _text(row, "column_type", "", empty=True)
    return "" if given.lower() == "real[]" else given  # Lantern's default of the column, which it means for embeddings


def _index(row: Row) -> IndexSpec:
    return IndexSpec(
        column=_text(row, "column"),
        metric=_metric(row, "operator", "dist_l2sq_ops"),
        m=int(_number(row, "m", 16, least=2, most=128)),
        ef_construction=int(_number(row, "efc", 128, least=1, most=10_000)),
        ef=int(_number(row, "ef", 64, least=1, most=10_000)),
        name=_text(row, "index", "", empty=True),
    )


def _autotune(row: Row) -> AutotuneSpec:
    recall = _number(row, "target_recall", 99.9, least=0, most=100)
    if recall <= 0:
        raise Refused("The target_recall is 0; it is a percentage above 0, such as 95.")
    return AutotuneSpec(
        column=_text(row, "column"),
        metric=_metric(row, "metric_kind" if row.get("metric_kind") else "operator", "l2sq"),
        target_recall=recall_share(recall),
        k=int(_number(row, "k", 10, least=1, most=10_000)),
        create_index=bool(row.get("create_index") or False),
        model=_text(row, "embedding_model", "", empty=True),
        sample=int(_number(row, "n", 0, least=0)),
        query_table=_text(row, "query_table", "", empty=True),
        query_column=_text(row, "query_column", "", empty=True),
    )


_SPECS: Final[dict[JobKind, Callable[[Row], Spec]]] = {
    JobKind.EMBEDDING: _embedding,
    JobKind.COMPLETION: _embedding,
    JobKind.EXTERNAL_INDEX: _index,
    JobKind.AUTOTUNE: _autotune,
}


def _text(row: Row, column: str, default: str | None = None, *, empty: bool = False) -> str:
    value = row.get(column)
    value = default if value is None or (value == "" and default is not None) else value
    if not isinstance(value, str) or (not value and not empty):
        raise Refused(f"The job's column {column} is empty.")
    return value


def _number(row: Row, column: str, default: float, *, least: float, most: float = 2**31 - 1) -> float:
    value = row.get(column)
    value = default if value is None else value
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise Refused(f"The job's column {column} is not a number.") from None
    if not least <= number <= most:
        raise Refused(f"The job's column {column} is {number:g}; it goes from {least:g} to {most:g}.")
    return number


def _metric(row: Row, column: str, default: str) -> str:
    given = _text(row, column, default)
    if given.lower() not in METRICS:
        raise Refused(
            f"The job's {column} is {given!r}, which is no distance that is known; dist_l2sq_ops, dist_cos_ops and "
            "dist_hamming_ops are, and pgvector's operator classes."
        )
    return METRICS[given.lower()]


def _object(row: Row, column: str) -> Mapping[str, object]:
    """Return a JSON object, which a text column may hold as text. Its contents are never repeated: they hold keys."""
    value = row.get(column)
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
        except ValueError:
            value = False
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Refused(f"The job's column {column} does not hold a JSON object.")
    return value


def _digest(row: Row) -> str:
    asked = {name: value for name, value in row.items() if name not in STATUS_COLUMNS and name != "label"}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:32]
