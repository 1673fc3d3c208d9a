"""Trials of HNSW parameters inside PostgreSQL: a scratch copy or the table itself, pgvector's index, its answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql

from cdc.errors import PipelineFault, WalvecError
from cdc.postgres import expressions
from cdc.postgres.connect import classify, connect_sync
from cdc.postgres.queries import bound, query
from cdc.postgres.tuning import KINDS, Place, Subject, TuningSession
from cdc.postgres.tuning_indexes import drop, drop_statement
from cdc.postgres.tuning_rows import binary_rows
from cdc.rows import Table

OPERATORS: Final = {"l2": "<->", "cosine": "<=>", "ip": "<#>", "hamming": "<~>"}
_MOST_BUILD_MEMORY: Final = 1 << 30  # bytes; a graph that outgrows its memory is built on disk, ten times slower
_WARM_UP_EF: Final = 100


@dataclass(frozen=True, slots=True)
class Target:
    """What an index is built on: a table, and its vectors as SQL, in an index and in a query that calls the table e."""

    table: Table
    indexed: sql.Composable
    queried: sql.Composable


class Trials:
    """Builds indexes of one column's vectors and searches them.

    Args:
        session: The session; its database has pgvector.
        subject: The column.
        metric: ``l2``, ``cosine``, ``ip`` or ``hamming``.
        dimension: Width of the vectors.
    """

    def __init__(self, session: TuningSession, subject: Subject, metric: str, dimension: int) -> None:
        self._session = session
        self._subject = subject
        self._kind, self._metric, self._dimension = KINDS[subject.base], metric, dimension

    @property
    def table(self) -> Target:
        """The user's own table."""
        column = sql.Identifier(self._subject.column)
        if self._subject.base == self._kind and self._subject.width == self._dimension:
            return Target(self._subject.table, column, sql.SQL("e.{}").format(column))
        cast = sql.SQL("({}::{})")
        queried = cast.format(sql.SQL("e.{}").format(column), self._type)
        return Target(self._subject.table, cast.format(column, self._type), queried)

    def make_scratch(self, rows: NDArray[np.float32], check: Callable[[], None]) -> Target:
        """Copy ``rows`` into a scratch table: temporary, or unlogged in the control schema, if that is ours."""
        target = self._empty_scratch(len(rows))
        name = expressions.identifier(target.table)
        self._copy(query("tuning", "fill", scratch=name), rows, check)
        self._session.execute(sql.SQL("ANALYZE {}").format(name))
        return target

    def copy_table(self) -> Target:
        """Copy every vector of the table into the scratch table, within the server."""
        target = self._empty_scratch(self._subject.rows)
        self._session.execute(
            query("tuning", "copy_rows", scratch=expressions.identifier(target.table), vector=self.table.queried,
                  table=expressions.identifier(self._subject.table), column=sql.Identifier(self._subject.column))
        )  # fmt: skip
        self._session.execute(sql.SQL("ANALYZE {}").format(expressions.identifier(target.table)))
        return target

    def ask(self, queries: NDArray[np.float32], check: Callable[[], None]) -> None:
        """Set the queries of the trials that follow, shape ``(queries, dimension)``."""
        self._session.execute(query("tuning", "create_queries", type=self._type))
        self._session.execute(query("tuning", "clear_queries"))
        self._copy(query("tuning", "fill_queries"), queries, check)

    def build(
        self, target: Target, name: str, m: int, ef_construction: int, rows: int, *,
        concurrently: bool, progress: Callable[[float], None],
    ) -> float:  # fmt: skip
        """Build the index ``name`` on ``target`` and return the seconds it took.

        Args:
            target: What to index.
            name: The index's name, in the schema of the table.
            m: Links per element.
            ef_construction: Candidates looked at when an element is added.
            rows: How many there will be, to give the build memory for.
            concurrently: Without locking writers out.
            progress: Hears the share done, 0 to 1, once a second.
        """
        per_row = 4 * self._dimension + 136 + 36 * m  # pgvector's hnsw.h: element, its vector, 16 bytes a neighbour
        kilobytes = min(rows * per_row * 5 // 4, _MOST_BUILD_MEMORY) >> 10
        self._session.rows(bound("tuning", "build_memory"), {"kilobytes": kilobytes})
        index = Table(target.table.schema, name)
        statement = query(
            "tuning", "build", concurrently=sql.SQL("CONCURRENTLY" if concurrently else ""),
            index=sql.Identifier(name), table=expressions.identifier(target.table), indexed=target.indexed,
            opclass=self._opclass, m=sql.Literal(m), ef_construction=sql.Literal(ef_construction),
        )  # fmt: skip
        begun = time.monotonic()
        with _Watch(self._session.place, self._session.connection.info.backend_pid, progress):
            try:
                self._session.connection.execute(statement)
            except psycopg.errors.DiskFull as exc:
                if "shared memory" not in str(exc):
                    raise classify(exc) from exc
                # Parallel builds keep the graph in /dev/shm, which containers get 64 MB of: one process needs none.
                drop(self._session.connection, index)
                self._session.execute(sql.SQL("SET max_parallel_maintenance_workers = 0"))
                self._session.execute(statement)
            except psycopg.Error as exc:
                raise classify(exc) from exc
        return time.monotonic() - begun

    def prepare(self, target: Target, index: Table) -> None:
        """Make ready for trials on ``index``, the only one that they may use.

        Raises:
            PipelineFault: the planner would use another way.
        """
        parts = {
            "table": expressions.identifier(target.table),
            "vector": target.queried,
            "operators": sql.Identifier(self._session.operators),
            "operator": sql.SQL(OPERATORS[self._metric]),
        }
        for name in ("enable_seqscan", "enable_sort"):
            self._session.set(name, "off")
        plan = self._session.rows(query("tuning", "plan", **parts))[0][0]
        if (used := _index_of(plan)) != index.name:
            raise PipelineFault(
                f"PostgreSQL searches {target.table} by {used or 'a scan'} and not by its new index {index.name}, the "
                "recall of which cannot be measured so.",
                f"Drop the other index and run it again: {drop_statement(target.table.schema, used)};" if used else "",
            )
        self._session.execute(query("tuning", "create_trial", **parts))

    def trial(self, k: int, ef: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Search for every query; return distances, shape ``(queries, k)``, NaN where fewer came, and milliseconds."""
        self._session.set("hnsw.ef_search", str(ef))
        try:
            cursor = self._session.connection.execute(bound("tuning", "trial"), {"k": k}, binary=True)
            found = cursor.fetchall()
        except psycopg.Error as exc:
            raise classify(exc) from exc
        distances = np.full((len(found), k), np.nan)
        for at, (_, near) in enumerate(found):
            distances[at, : len(near)] = near
        return distances, np.array([milliseconds for milliseconds, _ in found])

    def warm_up(self, k: int) -> None:
        """Search once for every query, so that the first trial does not pay for reading the index from disk."""
        self.trial(k, max(k, _WARM_UP_EF))

    def size(self, index: Table) -> int:
        """Return the bytes of an index."""
        return int(self._session.one("index_size", index=expressions.identifier(index).as_string())[0])

    def _empty_scratch(self, rows: int) -> Target:
        name = expressions.identifier(self._session.scratch)
        if self._session.temporary:  # read through a cache of the session's own, in which an index has to find room
            kilobytes = min(2 * rows * (4 * self._dimension + 512), _MOST_BUILD_MEMORY) >> 10
            self._session.one("temporary_memory", kilobytes=kilobytes)
        persistence = sql.SQL("TEMPORARY" if self._session.temporary else "UNLOGGED")
        self._session.execute(query("tuning", "create_scratch", scratch=name, type=self._type, persistence=persistence))
        return Target(self._session.scratch, sql.Identifier("v"), sql.SQL("e.v"))

    @property
    def _type(self) -> sql.Composable:
        if self._kind == "bit":
            return sql.SQL("bit({})").format(sql.Literal(self._dimension))
        return sql.SQL("{}({})").format(
            sql.Identifier(self._session.operators, self._kind), sql.Literal(self._dimension)
        )

    @property
    def _opclass(self) -> sql.Composable:
        return sql.Identifier(self._session.operators, f"{self._kind}_{self._metric}_ops")

    def _copy(self, statement: sql.SQL | sql.Composed, rows: NDArray[np.float32], check: Callable[[], None]) -> None:
        try:
            with self._session.connection.cursor().copy(statement) as copy:
                for block in binary_rows(rows, self._kind):
                    check()
                    copy.write(block)
        except psycopg.Error as exc:
            raise classify(exc) from exc


class _Watch:
    """Reports how far a build has come, from a session of its own, once a second."""

    def __init__(self, place: Place, pid: int, progress: Callable[[float], None]) -> None:
        self._place, self._pid, self._progress = place, pid, progress
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="autotune-watch", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        if self._done.wait(1.0):
            return
        with suppress(WalvecError, psycopg.Error), connect_sync(self._place, "autotune") as conn:
            while True:
                row = conn.execute(bound("tuning", "building"), {"pid": self._pid}).fetchone()
                if row is not None and row[1]:
                    self._progress(min(1.0, row[0] / row[1]))
                if self._done.wait(1.0):
                    return


def _index_of(plan: Sequence[dict[str, Any]]) -> str:
    """Return the index by which a plan's rows come, empty where by none."""
    nodes = [plan[0]["Plan"]]
    while nodes:
        node = nodes.pop()
        if "Index Name" in node and node.get("Order By"):
            return str(node["Index Name"])
        nodes += node.get("Plans", [])
    return ""
