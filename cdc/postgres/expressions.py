"""SQL that computes a row's text and hash, exactly as ``cdc.prepare.text`` does in Python."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from cdc.prepare.text import BLANKS, HASH_BYTES
from cdc.rows import Column, Table


@dataclass(frozen=True, slots=True)
class Source:
    """What is read of a table: its key, its text columns, and the rows that the publication lets through.

    ``row_filter`` is the publication's WHERE clause as SQL over the table's columns, or empty.
    """

    table: Table
    key: tuple[Column, ...]
    text: tuple[Column, ...]
    row_filter: str = ""


def identifier(table: Table) -> sql.Identifier:
    """Return the table's qualified, quoted name."""
    return sql.Identifier(table.schema, table.name)


def columns(names: tuple[Column, ...], prefix: str = "") -> sql.Composed:
    """Return the columns, comma-separated, each under ``prefix`` where one is given."""
    return sql.SQL(", ").join(sql.Identifier(prefix, c.name) if prefix else sql.Identifier(c.name) for c in names)


def same_key(key: tuple[Column, ...], left: str, right: str) -> sql.Composed:
    """Return the condition that the key columns of two relations are equal."""
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(sql.Identifier(left, c.name), sql.Identifier(right, c.name)) for c in key
    )


def _has_text(value: sql.Composed) -> sql.Composed:
    """Return the condition that ``value`` is not blank. Most values open with a printable ASCII character."""
    return sql.SQL("(pg_catalog.ascii({v}) BETWEEN 33 AND 126 OR pg_catalog.btrim({v}, {b}) <> '')").format(
        v=value, b=sql.Literal(BLANKS)
    )


def _value(column: Column) -> sql.Composed:
    name = sql.Identifier("s", column.name)
    if column.base_type == "xml":  # the cast keeps the encoding declaration, the output function drops it
        return sql.SQL("pg_catalog.format('%s', {})").format(name)
    return sql.SQL("{}::pg_catalog.text").format(name)


def text_expression(text: tuple[Column, ...]) -> sql.Composed:
    """Return the text of row ``s``: NULL where it has none."""
    if len(text) == 1:
        value = _value(text[0])
        return sql.SQL("CASE WHEN {has_text} THEN {v} END").format(v=value, has_text=_has_text(value))
    lines = [
        sql.SQL("CASE WHEN {has_text} THEN {label} || {v} END").format(
            v=_value(column), has_text=_has_text(_value(column)), label=sql.Literal(column.name + ": ")
        )
        for column in text
    ]
    return sql.SQL("NULLIF(pg_catalog.concat_ws(E'\\n', {}), '')").format(sql.SQL(", ").join(lines))


def rows(source: Source, fingerprint: bytes) -> sql.Composed:
    """Return a sub-select of the key columns, ``walvec_text`` (text) and ``walvec_hash`` (bytea), as a relation.

    Rows without text have NULL in both. The publication's row filter is applied.
    """
    where = sql.SQL("WHERE ({})").format(sql.SQL(source.row_filter)) if source.row_filter else sql.SQL("")
    return sql.SQL(
        "(SELECT {keys}, t.walvec_text, "
        "pg_catalog.substr(pg_catalog.sha256({fp}::pg_catalog.bytea "
        "|| pg_catalog.convert_to(t.walvec_text, 'UTF8')), 1, {width}) AS walvec_hash "
        "FROM (SELECT * FROM {table} {where}) AS s "
        "CROSS JOIN LATERAL (SELECT {text} AS walvec_text OFFSET 0) AS t)"
    ).format(
        keys=columns(source.key, "s"),
        fp=sql.Literal("\\x" + fingerprint.hex()),
        width=sql.Literal(HASH_BYTES),
        table=identifier(source.table),
        where=where,
        text=text_expression(source.text),
    )


def plain_rows(source: Source) -> sql.Composed:
    """Return the rows that the publication lets through, as a relation."""
    where = sql.SQL("WHERE ({})").format(sql.SQL(source.row_filter)) if source.row_filter else sql.SQL("")
    return sql.SQL("(SELECT FROM {} {})").format(identifier(source.table), where)
