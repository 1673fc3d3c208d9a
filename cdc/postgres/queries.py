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
