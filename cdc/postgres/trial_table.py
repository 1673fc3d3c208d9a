"""A table of autotune's trials that a person names: written to, and read for winners to begin with. Blocking."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from cdc.errors import ConfigError
from cdc.postgres import expressions
from cdc.postgres.connect import ConnectionSettings, classify, connect_sync
from cdc.postgres.queries import bound, query
from cdc.rows import Table


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

    def make(self) -> None:
        """Make it where it is missing. Raises WalvecError where that cannot be."""
        with self._session() as conn:
            conn.execute(query("trial_table", "make", table=self._name))

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
        names = {"schema": self._table.schema, "table": self._table.name}
        with self._session() as conn, conn.transaction():
            columns = [row[0] for row in conn.execute(bound("one_off", "columns"), names).fetchall()]
            for row in rows:
                kept = [name for name in columns if name in row]
                statement = bound(
                    "trial_table", "insert", table=self._name, columns=sql.SQL(", ").join(map(sql.Identifier, kept))
                )
                conn.execute(statement, {"row": json.dumps(row)})

    @contextmanager
    def _session(self) -> Iterator[psycopg.Connection[TupleRow]]:
        with connect_sync(self._settings, "autotune") as conn:
            try:
                yield conn
            except psycopg.errors.NotNullViolation as exc:
                raise ConfigError(
                    f"{self._table} cannot hold autotune's trials: column {exc.diag.column_name} wants a value.",
                    "Name another table with --export-table-name; it is made if it is missing.",
                ) from exc
            except psycopg.Error as exc:
                raise classify(exc) from exc
