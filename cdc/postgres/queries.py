"""Loads the named queries of the ``sql`` folder.

A file holds blocks that open with ``-- name: …``. Placeholders in braces stand for identifiers and SQL fragments and
are filled with :mod:`psycopg.sql`, never with values; values are always bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources

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
    return sql.SQL(load(file)[name]).format(**parts)


def bound(file: str, name: str, rendered: Mapping[str, str] | None = None, **parts: sql.Composable) -> sql.SQL:
    """Return the same as :func:`query` for a query that takes parameters.

    A per cent sign in one of ``parts`` stands for itself; ``rendered`` fragments hold parameters of their own.
    """
    text = {key: escaped(part) for key, part in parts.items()} | dict(rendered or {})
    fragments = {key: sql.SQL(part) for key, part in text.items()}
    return sql.SQL(query(file, name, **fragments).as_string(None))


def escaped(part: sql.Composable) -> str:
    """Return ``part`` for a query that takes parameters: its per cent signs doubled."""
    return part.as_string(None).replace("%", "%%")
