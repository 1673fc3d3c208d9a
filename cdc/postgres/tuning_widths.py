"""How wide the vectors of a column are whose type does not say: an index has one dimension. Blocking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from psycopg import sql

from cdc.flow.vectorformat import VectorFormat
from cdc.postgres import expressions
from cdc.postgres.queries import query
from cdc.postgres.tuning import KINDS, Subject, TuningSession, sample_of

LOOKED_AT: Final = 20_000
"""Rows whose width is asked where not all must be known."""


@dataclass(frozen=True, slots=True)
class Widths:
    """What the rows are that were looked at: ``counts`` is (dimension, rows), the commonest first; None: no vector."""

    counts: tuple[tuple[int | None, int], ...]

    @property
    def commonest(self) -> int:
        """The dimension that most rows have; 0: no row has one."""
        return next((width for width, _ in self.counts if width), 0)

    @property
    def share(self) -> float:
        """The share of rows that have it."""
        return next((rows / sum(n for _, n in self.counts) for width, rows in self.counts if width), 1.0)

    @property
    def mixed(self) -> bool:
        """Whether there are others."""
        return len(self.counts) > 1

    def __str__(self) -> str:
        told = [f"{rows:,} of {width or 'none'}" for width, rows in self.counts[:3]]
        return ", ".join([*told, "…"] if len(self.counts) > 3 else told)


def widths(session: TuningSession, subject: Subject, metric: str, seed: int, *, whole: bool) -> Widths:
    """Return how wide the column's vectors are.

    Args:
        session: The session.
        subject: The column.
        metric: The distance.
        seed: Of the sample.
        whole: Ask every row; else a random sample will do. A type that declares a dimension is believed.

    Raises:
        PipelineFault: it holds no vectors of which there is such a distance.
    """
    layout = VectorFormat.of(subject.table, subject.column, subject.base, metric)
    if subject.base in KINDS and subject.width > 0:
        return Widths(((subject.width, subject.rows),))
    column = sql.SQL("e.{}").format(sql.Identifier(subject.column))
    if subject.base.startswith("_"):
        width = sql.SQL(
            "CASE WHEN pg_catalog.array_ndims({0}) = 1 THEN pg_catalog.array_length({0}, 1) END"
        ).format(column)  # fmt: skip
    elif subject.base in ("vector", "halfvec") and session.operators:
        width = sql.SQL("{}.vector_dims({})").format(sql.Identifier(session.operators), column)
    else:
        return Widths(())
    share = 1.0 if whole else LOOKED_AT / max(1, subject.rows)
    found = session.rows(
        query(
            "tuning", "widths", table=expressions.identifier(subject.table), column=sql.Identifier(subject.column),
            width=width, sample=sample_of(share, seed),
        )
    )  # fmt: skip
    return Widths(tuple((width and layout.dimension(width), rows) for width, rows in found))
