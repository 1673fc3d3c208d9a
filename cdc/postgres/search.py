"""Nearest rows of a pipeline: by pgvector's operator and index where there is one, exact otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from cdc.errors import ConfigError, Unavailable, UnknownPipeline
from cdc.postgres import expressions
from cdc.postgres.catalog import source_of
from cdc.postgres.connect import classify
from cdc.postgres.expressions import Source
from cdc.postgres.queries import bound, escaped
from cdc.postgres.target import key_object
from cdc.rows import Table

Conn = psycopg.Connection[TupleRow]

MOST_EF = 1000
"""pgvector looks at no more candidates than this."""


@dataclass(frozen=True, slots=True)
class Searchable:
    """A pipeline that can be searched."""

    name: str
    source: Source
    holder: Table
    column: str
    vector_type: str
    dimension: int
    model: str
    fingerprint: bytes


def searchable(conn: Conn, schema: str, pipeline: str) -> Searchable:
    """Return what is needed to search ``pipeline``.

    Raises:
        UnknownPipeline: there is none of this name.
        Unavailable: it has not met its model yet.
        ConfigError: it keeps no vectors.
        PipelineFault: its table cannot be followed now.
    """
    control = sql.Identifier(schema)
    try:
        row = conn.execute(bound("search", "pipeline", schema=control), {"pipeline": pipeline}).fetchone()
        if row is None:
            names = [r[0] for r in conn.execute(bound("search", "names", schema=control)).fetchall()]
            raise UnknownPipeline(
                f'There is no pipeline "{pipeline}".', f"Pipelines: {', '.join(names) or 'none yet'}."
            )
    except psycopg.errors.UndefinedTable:
        raise UnknownPipeline(f'There is no pipeline "{pipeline}": walvec has not run on this database.') from None
    except psycopg.Error as exc:
        raise classify(exc) from exc
    (source_schema, source_table, texts, target_schema, target_table, column, kind, dimension, model, publication,
     fingerprint) = row  # fmt: skip
    if dimension is None or fingerprint is None:
        raise Unavailable(f'"{pipeline}" has not met its model yet, so nothing is embedded.')
    if not dimension:
        raise ConfigError(f'"{pipeline}" keeps answers in words, which have no distance to search by.')
    source = source_of(conn, Table(source_schema, source_table), publication, schema, texts or None)
    holder = source.table if column else Table(target_schema, target_table)
    return Searchable(pipeline, source, holder, column or "embedding", kind, dimension, model, bytes(fingerprint))


def nearest(
    conn: Conn,
    what: Searchable,
    vector: Sequence[float],
    k: int,
    filter: Mapping[str, object] | None = None,
    ef: int | None = None,
) -> list[dict[str, object]]:
    """Return up to ``k`` rows nearest to ``vector`` by cosine distance, nearest first, with key, distance and content.

    Args:
        conn: In autocommit mode.
        what: The pipeline.
        vector: Shape ``(dimension,)``.
        k: How many.
        filter: Column of the source → the value it must have.
        ef: How many candidates pgvector's index looks at (``hnsw.ef_search``); None: what the server is set to.

    Raises:
        ConfigError: the vector has another dimension, or the filter names no column.
    """
    if len(vector) != what.dimension:
        raise ConfigError(f"The vector has {len(vector)} dimensions; {what.name} holds vectors of {what.dimension}.")
    params: dict[str, Any] = {"k": k}
    literal = "[" + ",".join(repr(float(x)) for x in vector) + "]"
    plain = what.vector_type == "real[]"
    params["vector"] = literal.translate(str.maketrans("[]", "{}")) if plain else literal
    try:
        distance = _distance(conn, what, plain)
        statement = bound(
            "search",
            "nearest",
            {"distance": distance, "condition": _condition(what, filter or {}, params)},
            n_keys=expressions.columns(what.source.key, "n"),
            e_keys=expressions.columns(what.source.key, "e"),
            holder=expressions.identifier(what.holder),
            column=sql.Identifier(what.column),
            rows=expressions.rows(what.source, what.fingerprint),
            r_is_n=expressions.same_key(what.source.key, "r", "n"),
        )
        with conn.transaction():
            conn.execute("SET LOCAL plan_cache_mode = force_custom_plan")
            if ef is not None and not plain:
                conn.execute(sql.SQL("SET LOCAL hnsw.ef_search = {}").format(sql.Literal(min(ef, MOST_EF))))
            cursor = conn.execute(statement, params)
            result = cursor.pgresult
    except psycopg.errors.UndefinedColumn as exc:
        raise ConfigError(f"The filter names a column that {what.source.table} does not have.") from exc
    except psycopg.errors.DataError as exc:
        raise ConfigError("A value of the filter does not fit its column's type.") from exc
    except psycopg.Error as exc:
        raise classify(exc) from exc
    assert result is not None
    width = len(what.source.key)
    found: list[dict[str, object]] = []
    for row in range(result.ntuples):
        cells = [result.get_value(row, column) or b"" for column in range(width)]
        text = result.get_value(row, width + 1)
        found.append(
            {
                "key": key_object(what.source.key, cells),
                "distance": float(result.get_value(row, width) or b"nan"),
                "content": None if text is None else text.decode("utf-8", "replace"),
            }
        )
    return found


def _distance(conn: Conn, what: Searchable, plain: bool) -> str:
    column = sql.Identifier(what.column)
    if plain:
        return bound("search", "plain_distance", column=column).as_string(None)
    row = conn.execute(bound("catalog", "vector_extension"), {"type": what.vector_type}).fetchone()
    if row is None:
        raise ConfigError("The extension vector is gone from this database.", "CREATE EXTENSION vector;")
    return bound(
        "search",
        "pgvector_distance",
        column=column,
        operators=sql.Identifier(row[0]),
        type=sql.Identifier(row[0], what.vector_type),
    ).as_string(None)


def _condition(what: Searchable, filter: Mapping[str, object], params: dict[str, Any]) -> str:
    """Return the filter over the source's row as SQL, its values added to ``params``."""
    parts = []
    for number, (name, value) in enumerate(filter.items()):
        params[f"f{number}"] = str(value) if value is not None else None
        parts.append(f"s.{escaped(sql.Identifier(name))}::text IS NOT DISTINCT FROM %(f{number})s")
    if not parts:
        return ""
    keys = escaped(expressions.same_key(what.source.key, "s", "e"))
    table = escaped(expressions.identifier(what.source.table))
    return f"AND EXISTS (SELECT FROM {table} AS s WHERE {keys} AND {' AND '.join(parts)})"
