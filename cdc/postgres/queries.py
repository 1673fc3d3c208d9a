"""Loads the named queries of the ``sql`` folder.

A file holds blocks that open with ``-- name: …``. Placeholders in braces stand for identifiers and SQL fragments and
are filled with :mod:`psycopg.sql`, never with string formatting; values are always bound.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import LiteralString, cast

from psycopg import sql

_MARK = "-- name:"


@cache
def load(file: str) -> dict[str, str]:
    """Return the queries of ``sql/<file>.sql`` by name."""
    text = resources.files("cdc.postgres").joinpath("sql", f"{file}.sql").read_text("utf-8")
    queries: dict[str, str] = {}
    for block in text.split(_MARK)[1:]:
        name, _, body = block.partition("\n")
        queries[name.strip()] = body.strip()
    return queries


def query(file: str, name: str, **parts: sql.Composable) -> sql.Composed:
    """Return the query ``name`` of ``file`` with its placeholders filled."""
    return sql.SQL(cast(LiteralString, load(file)[name])).format(**parts)


def bound(file: str, name: str, **parts: sql.Composable) -> sql.SQL:
    """Return the same as :func:`query` for a query that takes parameters: a per cent sign in a part stands for itself."""
    escaped = {
        key: sql.SQL(cast(LiteralString, part.as_string(None).replace("%", "%%"))) for key, part in parts.items()
    }
    text = query(file, name, **escaped).as_string(None)
    return sql.SQL(cast(LiteralString, text.replace("{", "{{").replace("}", "}}")))
