"""What index parameters are compared on: a sample of a column, queries that no index holds, their exact neighbours."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import psycopg

from cdc.errors import PipelineFault
from cdc.jobs import AutotuneSpec
from cdc.ports.tuning import Say
from cdc.postgres.tuning import Subject, TuningSession
from cdc.postgres.tuning_widths import Widths, widths
from cdc.rows import Table
from inference import queries as asking
from inference.recall import Distances, Exact, Metric, Truth, Vectors

ROW_BYTES: Final = 512 << 20
"""Vectors held in memory."""
_LEAST_ROWS: Final = 20


class Stopped(Exception):
    """The search was told to stop."""


class Stop:
    """Tells a search in another thread to stop, in the server too."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.connection: psycopg.Connection[Any] | None = None
        """The session whose statement is to be cancelled."""

    def check(self) -> None:
        """Raise if the search is to stop.

        Raises:
            Stopped: it is.
        """
        if self.event.is_set():
            raise Stopped

    def set(self) -> None:
        """Stop the search. Blocks for a moment; may be called again."""
        self.event.set()
        if self.connection is not None:
            with suppress(psycopg.Error):
                self.connection.cancel_safe(timeout=2)


@dataclass(frozen=True, slots=True)
class Ground:
    """What graphs are compared on: rows, queries that are not among them, and these queries' neighbours.

    ``apart`` is how far held-out rows are from their nearest row; None where queries were logged.
    """

    rows: Vectors
    queries: Vectors
    truth: Truth
    kind: str
    apart: Distances | None


class Sampler:
    """Reads the column, and makes the ground to compare on.

    Args:
        session: Where the column is.
        table: Its table.
        spec: What is wanted.
        row_bytes: Vectors held in memory, at most.
        seed: Of the random choices.
        say: Hears how far it is.
        stop: Ends it.
    """

    def __init__(
        self, session: TuningSession, table: Table, spec: AutotuneSpec, row_bytes: int, seed: int, say: Say, stop: Stop
    ) -> None:
        self._session, self._table, self._spec, self._row_bytes = session, table, spec, row_bytes
        self._metric = cast(Metric, spec.metric)
        self._say, self._stop, self._check = say, stop, stop.check
        self._seed = seed
        self.random = np.random.default_rng(seed)
        self.dimension = 0
        """Width of the vectors, once they are loaded."""
        self.sampled = ""
        """Which rows were loaded, in words; empty: all."""
        self.left_out = ""
        """How many rows are of no use, in words; empty: none."""

    def load(self, subject: Subject) -> Vectors:
        """Return the vectors to look at, and note how they were chosen.

        Raises:
            PipelineFault: they are too few, or of several dimensions where an index of them is to be made.
        """
        known = self._widths(subject)
        usable = round(subject.rows * known.share)
        most = min(self._spec.sample or usable, usable, max(_LEAST_ROWS, self._room(known)))
        share = 1.0 if most >= usable else min(1.0, 1.05 * most / usable + 20 / usable)
        parts, left = list[Vectors](), 0
        for part in self._session.vectors(
            subject, self._metric, known.commonest, share, self._seed, self._stop.event
        ):  # fmt: skip
            left += part.skipped
            if len(part.vectors):
                parts.append(part.vectors)
            self._say.progress(2 + int(8 * min(1.0, sum(map(len, parts)) / max(1, most))))
        self._check()
        rows = np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
        if left:
            self.left_out = (
                f"{left:,} of {left + len(rows):,} rows were left out: their vectors have other dimensions, or no "
                "direction"
            )
        if len(rows) > most:
            rows = rows[np.sort(self.random.choice(len(rows), most, replace=False))]
        if len(rows) < max(_LEAST_ROWS, self._spec.k + 1):
            raise PipelineFault(
                f"Column {self._spec.column} of {self._table} holds {len(rows)} vectors that can be searched; to "
                f"measure the recall of {self._spec.k} neighbours {max(_LEAST_ROWS, self._spec.k + 1)} are needed."
            )
        self.dimension = int(rows.shape[1])
        if most < usable:
            self.sampled = f"a random sample of {len(rows):,} of the {usable:,} rows"
        return rows

    def _widths(self, subject: Subject) -> Widths:
        """Return how wide the vectors are; refuse what no index can be made of, before anything is read."""
        known = widths(self._session, subject, self._metric, self._seed, whole=self._spec.create_index)
        if known.mixed and self._spec.create_index:
            raise PipelineFault(
                f"Column {subject.column} of {subject.table} holds vectors of several dimensions ({known}), and an "
                "index is of one.",
                "Set those of the other dimensions to NULL, or leave create_index out.",
            )
        return known

    def _room(self, known: Widths) -> int:
        """Return how many vectors may be held in memory."""
        return self._row_bytes // (4 * (known.commonest or 1_024))

    def logged(self) -> Vectors | None:
        """Return queries that somebody logged, where the job names them."""
        if not self._spec.query_table or not self._spec.query_column:
            return None
        schema, _, name = self._spec.query_table.rpartition(".")
        subject = self._session.subject(Table(schema or self._table.schema, name), self._spec.query_column)
        share = min(1.0, 1.1 * asking.MOST / max(1, subject.rows) + 20 / max(1, subject.rows))
        read = self._session.vectors(subject, self._metric, self.dimension, share, self._seed, self._stop.event)
        found = [part.vectors for part in read if len(part.vectors)]
        self._check()
        if not found:
            raise PipelineFault(
                f"Column {subject.column} of {subject.table}, named for its queries, holds no vectors of "
                f"{self.dimension} dimensions."
            )
        queries = np.concatenate(found)
        return queries[self.random.permutation(len(queries))[: asking.MOST]]

    def ground(self, rows: Vectors, logged: Vectors | None) -> Ground:
        """Return the ground: all of ``rows`` and the ``logged`` queries, or rows held out and the rest."""
        if logged is not None:
            return Ground(rows, logged, self.exact(logged, rows), "logged", None)
        held, kept = asking.hold_out(len(rows), asking.MOST, self.random)
        queries, rest = rows[held], rows[kept]
        truth = self.exact(queries, rest)
        apart = self.apart(queries, rest, truth)
        new = asking.unseen(apart, self._metric)
        if new.any() and not new.all():  # a row that occurs twice is still in the index when one of it is held out
            queries, truth, apart = queries[new], truth.only(new), apart[new]
        return Ground(rest, queries, truth, "held out", apart)

    def apart(self, queries: Vectors, rows: Vectors, truth: Truth) -> Distances:
        """Return how far ``queries`` are from their nearest row, as :func:`inference.queries.moved` takes it."""
        if self._metric != "ip":
            return truth.distances[:, 0]
        exact = Exact(queries, "l2", 1)
        exact.add(rows)
        return exact.truth().distances[:, 0]

    def exact(self, queries: Vectors, rows: Vectors) -> Truth:
        """Return the neighbours of ``queries`` among ``rows``."""
        exact = Exact(queries, self._metric, self._spec.k)
        for start in range(0, len(rows), 65_536):
            self._check()
            exact.add(rows[start : start + 65_536])
        return exact.truth()

    def whole_truth(self, subject: Subject, rows: Vectors, queries: Vectors) -> Truth:
        """Return the exact neighbours among all rows of the table, read again where memory holds a sample."""
        if not self.sampled:
            return self.exact(queries, rows)
        exact = Exact(queries, self._metric, self._spec.k)
        for part in self._session.vectors(
            subject, self._metric, self.dimension, 1.0, self._seed, self._stop.event
        ):  # fmt: skip
            self._check()
            if len(part.vectors):
                exact.add(part.vectors)
        self._check()
        return exact.truth()

    def part(self, ground: Ground, rows: int, queries: int) -> Ground:
        """Return ``ground`` with no more than so many rows, chosen at random, and queries."""
        asked = ground.queries[:queries]
        if len(ground.rows) <= rows:
            few = np.arange(len(ground.queries)) < queries
            apart = ground.apart[few] if ground.apart is not None else None
            return Ground(ground.rows, asked, ground.truth.only(few), ground.kind, apart)
        chosen = ground.rows[np.sort(self.random.choice(len(ground.rows), rows, replace=False))]
        truth = self.exact(asked, chosen)
        apart = self.apart(asked, chosen, truth) if ground.apart is not None else None
        return Ground(chosen, asked, truth, ground.kind, apart)
