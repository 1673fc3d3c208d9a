"""A table of autotune's trials that a person names: written to, and read for winners to begin with. Blocking."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from cdc.errors import ConfigError
from cdc.flow.trial_rows import TrialRows
from cdc.postgres import expressions
from cdc.postgres.connect import ConnectionSettings, classify, connect_sync
from cdc.postgres.queries import bound, query
from cdc.rows import Table

NEEDED: Final = ("experiment_id", "ef", "efc", "m", "recall", "latency")
"""Columns without which a row tells nothing."""
WRITTEN: Final = frozenset(
    (*NEEDED, "build_time", "latency_p99", "size_bytes", "backend", "rows", "dimension", "metric", "k", "model")
) | {"queries", "query_kind", "best", "summary"}  # fmt: skip
"""Columns that are given a value."""
_OTHER: Final = "Name another table with --export-table-name; it is made if it is missing."


class TrialTable:
    """One such table.

    Args:
        settings: Which database it is in.
        table: Its name.
    """

    def __init__(self, settings: ConnectionSettings, table: Table) -> None:
        self._settings = settings
        self._table = table
        self._name = expressions.identifier(table)
        self._names = {"schema": table.schema, "table": table.name}

    def make(self) -> None:
        """Make it where it is missing, and see whether it can hold trials where it is there.

        Raises:
            ConfigError: it cannot, or cannot be made.
            Unavailable: its database is away.
        """
        with self._session() as conn:
            found = conn.execute(bound("jobs", "columns"), self._names).fetchall()
            if not found:
                conn.execute(query("trial_table", "make", table=self._name))
                return
        columns = {name for name, _, _ in found}
        if missing := [name for name in NEEDED if name not in columns]:
            raise ConfigError(
                f"{self._table} cannot hold autotune's trials: it has no column {', '.join(missing)}.", _OTHER
            )
        if wanting := [name for name, _, needed in found if needed and name not in WRITTEN]:
            raise self._wants(wanting[0])

    def earlier(self, model: str) -> list[Mapping[str, Any]]:
        """Return the winners of earlier searches for ``model``, newest first."""
        with self._session() as conn:
            rows = conn.execute(bound("trial_table", "earlier", table=self._name), {"model": model}).fetchall()
        return [row for (row,) in rows]

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append trials.

        Raises:
            ConfigError: the table wants a value that no trial has.
        """
        told = TrialRows()
        with self._session() as conn, conn.transaction():
            columns = [row[0] for row in conn.execute(bound("jobs", "columns"), self._names).fetchall()]
            for row in [each for trial in rows for each in told.take(0, trial, columns)]:
                kept = [name for name in columns if name in row]
                statement = bound(
                    "trial_table", "insert", table=self._name, columns=sql.SQL(", ").join(map(sql.Identifier, kept))
                )
                conn.execute(statement, {"row": json.dumps(row)})

    def _wants(self, column: str) -> ConfigError:
        return ConfigError(f"{self._table} cannot hold autotune's trials: column {column} wants a value.", _OTHER)

    @contextmanager
    def _session(self) -> Iterator[psycopg.Connection[TupleRow]]:
        with connect_sync(self._settings, "autotune") as conn:
            try:
                yield conn
            except psycopg.errors.NotNullViolation as exc:
                raise self._wants(exc.diag.column_name or "?") from exc
            except psycopg.Error as exc:
                raise classify(exc) from exc
