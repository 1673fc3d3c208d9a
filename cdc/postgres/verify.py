"""The comparison of source and destination by hash, in SQL: what is missing, stale, orphaned or there twice.

Nothing is changed and no consumer need run. The hash is the one that is stored with every vector, of the text and of
the pipeline's configuration, so that equal hashes mean an embedding of this very text by this very model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow, dict_row

from cdc.errors import ConfigError
from cdc.postgres import control, expressions
from cdc.postgres.catalog import source_of
from cdc.postgres.connect import classify
from cdc.postgres.expressions import Source
from cdc.postgres.queries import bound
from cdc.rows import Table

Conn = psycopg.Connection[TupleRow]


@dataclass(frozen=True, slots=True)
class Compared:
    """What one pipeline's comparison found, in rows. Dead-lettered rows count as missing."""

    pipeline: str
    rows: int
    missing: int
    stale: int
    orphaned: int
    duplicate: int

    @property
    def equal(self) -> bool:
        """Whether the embeddings are exactly those of the rows now in the source."""
        return not (self.missing or self.stale or self.orphaned or self.duplicate)

    def to_json(self) -> dict[str, Any]:
        """Return the object of ``verify --json``."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Sample:
    """Random rows of one pipeline with their stored vectors, each of ``dimension`` numbers, in the same order."""

    pipeline: str
    model: str
    dimension: int
    texts: tuple[str, ...]
    vectors: tuple[tuple[float, ...], ...]


class Verifier:
    """Compares the pipelines of one control schema.

    Args:
        conn: A connection in autocommit mode.
        schema: The control schema.

    Raises:
        ConfigError: The control schema is missing or of another version.
    """

    def __init__(self, conn: Conn, schema: str) -> None:
        control.require(conn, schema)
        self._conn = conn
        self._schema = schema

    def names(self, pipeline: str | None) -> list[str]:
        """Return the pipelines to compare: the named one, or all whose tables are in the publication.

        Raises:
            ConfigError: There is no such pipeline, or its table left the publication.
        """
        found = self._definitions(pipeline)
        if pipeline is not None and not found:
            known = ", ".join(row["name"] for row in self._definitions(None)) or "none yet"
            raise ConfigError(f'There is no pipeline "{pipeline}".', f"Pipelines: {known}.")
        if pipeline is not None and not found[0]["attached"]:
            raise ConfigError(f'The table of "{pipeline}" is not in the publication, so nothing keeps it in sync.')
        return [row["name"] for row in found]

    def compare(self, pipeline: str) -> Compared:
        """Compare one pipeline in one statement, hence at one moment.

        Raises:
            ConfigError: Its source or destination is gone, or may not be read.
        """
        definition = self._definition(pipeline)
        row = self._run("compare", definition, []).fetchone()
        assert row is not None, "an aggregate always gives one row"
        return Compared(pipeline, *row)

    def sample(self, pipeline: str, count: int) -> Sample:
        """Return up to ``count`` random rows whose stored hash is that of their text.

        Raises:
            ConfigError: Its source or destination is gone, or may not be read.
        """
        definition = self._definition(pipeline)
        rows = self._run("sample", definition, [count]).fetchall()
        return Sample(
            pipeline,
            definition["model"],
            definition["dimension"],
            tuple(row[0] for row in rows),
            tuple(tuple(row[1]) for row in rows),
        )

    def _definition(self, pipeline: str) -> dict[str, Any]:
        row = self._definitions(pipeline)[0]
        for what in ("source", "target"):
            if not row[f"{what}_exists"]:
                table = Table(row[f"{what}_schema"], row[f"{what}_table"])
                raise ConfigError(
                    f'The {what} table {table} of "{pipeline}" is gone.', "`walvec reconcile` rebuilds it."
                )
        if row["fingerprint"] is None:
            raise ConfigError(f'"{pipeline}" has not met its model yet, so nothing is embedded.', "Start `walvec run`.")
        return row

    def _definitions(self, pipeline: str | None) -> list[dict[str, Any]]:
        statement = bound("verify", "definition", schema=sql.Identifier(self._schema))
        try:
            with self._conn.cursor(row_factory=dict_row) as cursor:
                return cursor.execute(statement, [pipeline, pipeline]).fetchall()
        except psycopg.Error as exc:
            raise classify(exc) from exc

    def _run(self, name: str, definition: dict[str, Any], params: list[Any]) -> psycopg.Cursor[TupleRow]:
        table = Table(definition["source_schema"], definition["source_table"])
        names = definition["text_columns"] or None
        source = source_of(self._conn, table, definition["publication"], self._schema, names)
        try:
            return self._conn.execute(bound("verify", name, None, **_parts(definition, source)), params)
        except psycopg.errors.InsufficientPrivilege as exc:
            raise ConfigError(f"{table} cannot be read whole ({exc.diag.message_primary}).") from exc
        except psycopg.Error as exc:
            raise classify(exc) from exc


def _parts(definition: dict[str, Any], source: Source) -> dict[str, sql.Composable]:
    """Return the placeholders of the comparison. The vector stands in the destination, or in the source's own row."""
    target = sql.Identifier(definition["target_schema"], definition["target_table"])
    column = definition["target_column"]
    vector = sql.Identifier("s", column) if column else sql.SQL("e.embedding")
    own_row = sql.SQL("LEFT JOIN {} AS s ON {}").format(
        expressions.identifier(source.table), expressions.same_key(source.key, "s", "e")
    )
    return {
        "rows": expressions.rows(source, bytes(definition["fingerprint"])),
        "target": target,
        "e_keys": expressions.columns(source.key, "e"),
        "r_is_e": expressions.same_key(source.key, "r", "e"),
        "source_join": own_row if column else sql.SQL(""),
        "has_vector": sql.SQL("{} IS NOT NULL").format(vector),
        "vector": vector,
    }
