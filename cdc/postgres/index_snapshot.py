"""A vector column read once, in one snapshot, for an index that follows nothing: no slot, no publication. Blocking."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import psycopg

from cdc.errors import ConfigError
from cdc.flow.keycodec import KeyCodec
from cdc.flow.vectorformat import VectorFormat
from cdc.ports.indexes import Indexed
from cdc.postgres.connect import ConnectionSettings, classify, connect_sync
from cdc.postgres.queries import bound
from cdc.postgres.vector_copy import VectorChunk, copy_statement, copy_vectors
from cdc.rows import Column, Table

_TYPED = ("vector", "halfvec", "bit")


class IndexSnapshot:
    """A session in a read-only snapshot. A context manager.

    Args:
        settings: Where to connect.
        table: The table.
        column: Its vector column.
        metric: The distance: it decides which types will do.

    Raises:
        ConfigError: table or column will not do.
        Unavailable: the server is away.
    """

    def __init__(self, settings: ConnectionSettings, table: Table, column: str, metric: str) -> None:
        self._table = table
        self._column = column
        self._connection = connect_sync(settings, "create-index")
        try:
            self._connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            self.indexed = self._look()
            self._format = VectorFormat.of(table, column, self.indexed.base_type, metric)
        except psycopg.Error as exc:
            self._connection.close()
            raise classify(exc) from exc
        except BaseException:
            self._connection.close()
            raise
        self.codec = KeyCodec(self.indexed.key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()

    def chunks(self) -> Iterator[VectorChunk]:
        """Yield the rows that have a vector."""
        statement = copy_statement(self._table, self.indexed.key, self._column, self.codec)
        return copy_vectors(self._connection, statement, self.codec, self._format, self.indexed.dimension)

    def _look(self) -> Indexed:
        names = {"schema": self._table.schema, "table": self._table.name, "column": self._column}
        row = self._one("column", names)
        if row is None:
            raise ConfigError(f"There is no table {self._table}.", "Correct --schema and --table.")
        oid, kind, _, _, type_oid, modifier, base, _, rows, storage, _ = row
        if type_oid is None:
            raise ConfigError(f"{self._table} has no column {self._column}.", "Correct --column.")
        found = self._connection.execute(bound("external_index", "key"), {"oid": oid}).fetchall()
        key = tuple(Column(*each[:3]) for each in found)
        if not key:
            raise ConfigError(
                f"{self._table} has no primary key, so what is found in its index cannot be told.",
                f"ALTER TABLE {self._table} ADD PRIMARY KEY (…);",
            )
        dimension = modifier if base in _TYPED and modifier > 0 else None
        return Indexed(oid, key, base, type_oid, dimension, int(rows), "", storage, kind == "p")

    def _one(self, name: str, params: dict[str, Any]) -> Any:
        return self._connection.execute(bound("external_index", name), params).fetchone()
