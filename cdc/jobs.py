"""Jobs as rows of a table: what somebody asked for, and how far it has come.

A job, a default pipeline, a knowledge base and a preparer are kinds of one thing: something is read, something is
written, and it is waiting, under way, in step, halted or in error (:class:`cdc.status.PipelineState`). This module
holds what a job adds to that: where it was asked for, by whom it may be run, and what its row says of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from cdc.rows import Table


class JobKind(StrEnum):
    """What a job makes."""

    EMBEDDING = "embedding_generation"
    COMPLETION = "completion"
    EXTERNAL_INDEX = "external_index"
    AUTOTUNE = "autotune"


class JobState(StrEnum):
    """Where a job stands, as its row tells it."""

    QUEUED = "queued"  # nobody has begun
    IN_PROGRESS = "in_progress"
    ENABLED = "enabled"  # done for the first time, and kept in step from there on
    FINISHED = "finished"  # done, once and for all
    CANCELED = "canceled"
    FAILED = "failed"  # the reason stands beside it; what can heal is tried again


@dataclass(frozen=True, slots=True)
class Control:
    """Which table of jobs a job is a row of, the same from wherever that table's database is reached.

    ``database`` is what the database is called, for people; ``digest`` tells the table from every other on any server.
    """

    database: str = ""
    digest: str = ""


NO_CONTROL: Final = Control()


@dataclass(frozen=True, slots=True)
class JobId:
    """Which row of which book: ``database`` is the control database as people read it, without a secret.

    ``database`` depends on how that is reached from here, and ids begin at 1 in every book: what is stored in a target
    database, and compared by several daemons, is :attr:`owner`.
    """

    database: str
    table: Table
    id: int
    control: Control = NO_CONTROL

    def __str__(self) -> str:
        return f"{self.table}/{self.id}"

    @property
    def owner(self) -> str:
        """The job as its target database knows it: no other job of any control database is called so."""
        return (
            f"{self} of database {self.control.database} ({self.control.digest})" if self.control.digest else f"{self}"
        )


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    """Text in one column, a vector or an answer in another. ``key`` is the key column that the job names."""

    source_column: str
    target_column: str
    model: str
    runtime: str
    params: Mapping[str, object] = field(default_factory=dict, repr=False)  # may hold keys of web APIs
    key: str = "id"
    batch_rows: int | None = None
    column_type: str = ""  # completions: the type that answers are cast to; empty: what the column is, else text


OPERATORS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "dist_l2sq_ops": "l2sq",
        "dist_vec_l2sq_ops": "l2sq",
        "dist_cos_ops": "cosine",
        "dist_vec_cos_ops": "cosine",
        "dist_hamming_ops": "hamming",
        "vector_l2_ops": "l2",
        "halfvec_l2_ops": "l2",
        "vector_cosine_ops": "cosine",
        "halfvec_cosine_ops": "cosine",
        "vector_ip_ops": "ip",
        "halfvec_ip_ops": "ip",
        "bit_hamming_ops": "hamming",
    }
)
"""Operator classes of Lantern and pgvector, and what distance they stand for: ``l2``, its square ``l2sq``, ``cosine``,
``ip`` (the negative inner product) or ``hamming`` (the number of different bits)."""


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """An HNSW index of one vector column. ``metric`` is one of the values of :data:`OPERATORS`.

    ``name`` is the in-database index to build too (pgvector); empty: only the external one.
    """

    column: str
    metric: str
    m: int
    ef_construction: int
    ef: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class AutotuneSpec:
    """A search for the cheapest HNSW parameters that reach a recall. ``target_recall`` is a share, 0 to 1.

    ``sample`` bounds the rows that are looked at, 0: all. ``model`` names the experiments that may be used again.
    ``query_table`` and ``query_column`` name vectors that were really asked for, to measure with; empty: there are
    none.
    """

    column: str
    metric: str
    target_recall: float
    k: int
    create_index: bool
    model: str = ""
    sample: int = 0
    query_table: str = ""
    query_column: str = ""


Spec = EmbeddingSpec | IndexSpec | AutotuneSpec


def recall_share(given: float) -> float:
    """Return a recall as a share of 1: what is above 1 is per cent, for nobody asks for one per cent."""
    return given / 100 if given > 1 else given


@dataclass(frozen=True, slots=True)
class Job:
    """One job, read and checked.

    ``url`` is the target database's connection string with its secrets resolved: it is never shown, ``place`` is
    (``host:port/database``). ``label`` pins the job to daemons that carry it.
    """

    id: JobId
    kind: JobKind
    url: str = field(repr=False)
    place: str
    table: Table
    spec: Spec
    label: str = ""
    state: JobState = JobState.QUEUED
    failure: str = ""

    @property
    def column(self) -> str:
        """The column that the job writes or reads vectors of."""
        return self.spec.target_column if isinstance(self.spec, EmbeddingSpec) else self.spec.column

    @property
    def pipeline(self) -> str:
        """The name under which the job is known in its target database: ``schema.table.column``."""
        return f"{self.table}.{self.column}"
