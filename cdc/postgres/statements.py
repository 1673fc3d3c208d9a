"""The statements of one pipeline, rendered once from ``sql/target.sql``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from psycopg import sql

from cdc.postgres import binary, expressions
from cdc.postgres.expressions import Source
from cdc.postgres.queries import bound, escaped
from cdc.rows import Column, Key, Table

ANSWER = "answer"
"""The name of the kind that is no vector: an answer in words, cast to the column's own type."""


@dataclass(frozen=True, slots=True)
class VectorType:
    """How vectors are stored, or answers.

    ``sql`` is the column's type, ``array`` the parameter's; ``element`` the OID of the array's elements; ``schema``
    where pgvector's operators live (empty: no pgvector). ``cast`` makes an element of the array a value of the column.
    """

    name: str  # vector, halfvec, real[], answer
    sql: str
    array: str
    element: int
    schema: str
    cast: str = ""


@dataclass(frozen=True, slots=True)
class Definition:
    """All that is fixed about a pipeline while it runs."""

    id: int
    name: str
    source: Source
    target: Table
    column: str | None  # in-place pipelines: the source's own vector column
    vector: VectorType
    model: str
    dimension: int
    fingerprint: bytes
    epoch: int
    control: str  # the control schema


def _parameter(name: str, type: str) -> str:
    """Return a placeholder cast to ``type``, which is ``format_type``'s output and so quoted already."""
    return f"%({name})s::{type.replace('%', '%%')}"


def _follows(key: tuple[Column, ...], alias: str) -> str:
    """Return ``WHERE (key) > (cursor)`` over parameters ``c0``, ``c1`` …"""
    cursor = ", ".join(_parameter(f"c{i}", c.type) for i, c in enumerate(key))
    return f"WHERE ({escaped(expressions.columns(key, alias))}) > ({cursor})"


class Statements:
    """Renders a pipeline's statements; each is complete but for its parameters."""

    def __init__(self, definition: Definition) -> None:
        self._definition = definition
        source, key = definition.source, definition.source.key
        self._parts: dict[str, sql.Composable] = {
            "schema": sql.Identifier(definition.control),
            "target": expressions.identifier(definition.target),
            "source": expressions.identifier(source.table),
            "rows": expressions.rows(source, definition.fingerprint),
            "plain_rows": expressions.plain_rows(source),
            "keys": expressions.columns(key),
            "column": sql.Identifier(definition.column or "embedding"),
            "cast": sql.SQL(definition.vector.cast),
            "u_keys": expressions.columns(key, "u"),
            "e_keys": expressions.columns(key, "e"),
            "r_keys": expressions.columns(key, "r"),
            "p_keys": expressions.columns(key, "p"),
            "x_keys": expressions.columns(key, "x"),
            "stored_keys": expressions.columns(key, "stored"),
            "e_is_u": expressions.same_key(key, "e", "u"),
            "r_is_u": expressions.same_key(key, "r", "u"),
            "s_is_u": expressions.same_key(key, "s", "u"),
            "e_is_p": expressions.same_key(key, "e", "p"),
            "r_is_p": expressions.same_key(key, "r", "p"),
            "r_is_e": expressions.same_key(key, "r", "e"),
        }
        self._parameters = {
            "up_arrays": ", ".join(_parameter(f"k{i}", c.type + "[]") for i, c in enumerate(key)),
            "gone_arrays": ", ".join(_parameter(f"g{i}", c.type + "[]") for i, c in enumerate(key)),
            "vectors": _parameter("vectors", definition.vector.array),
        }
        guarded = "write_in_place" if definition.column else "write_guarded"
        self.write_versioned = self._write("write_versioned")
        self.write_guarded = self._write(guarded)
        self.write_versioned_once = self._write("write_versioned", once=True)
        self.write_guarded_once = self._write(guarded, once=True)
        self.refused = self._render("refused")
        self.surviving = self._render("surviving")
        self.unchanged = self._render("unchanged")
        self.set_aside = self._render("set_aside")
        self.read_keys = self._render("read_keys")
        self.truncate = self._render("truncate")
        self.enqueue = self._render("enqueue")
        self.dequeue = self._render("dequeue")
        self.queued = self._render("queued")
        self.save_count = self._render("save_count")
        self.save_scan = self._render("save_scan")
        self.miscounted = self._render("miscounted")
        self.correct_count = self._render("correct_count")
        self.count_source = self._render("count_source")
        self.scan_first = self._render("scan_page", after="")
        self.scan_after = self._render("scan_page", after=_follows(key, "r"))
        self.orphans_first = self._render("orphan_page", after="")
        self.orphans_after = self._render("orphan_page", after=_follows(key, "e"))

    def _render(self, name: str, **rendered: str) -> sql.SQL:
        return bound("target", name, {**self._parameters, **rendered}, **self._parts)

    def _write(self, name: str, *, once: bool = False) -> sql.SQL:
        """Render a write; ``once``: of several spellings of one key (1.0 and 1.00) the newest is written."""
        keys = escaped(self._parts["u_keys"])
        return self._render(
            name,
            bookkeeping=self._render("bookkeeping").as_string(None),
            distinct=f"DISTINCT ON ({keys})" if once else "",
            newest=f"ORDER BY {keys}, u.walvec_lsn DESC" if once else "",
        )

    def keys(self, prefix: str, keys: Sequence[Key]) -> dict[str, Any]:
        """Return the parameters ``<prefix>0`` … : one array per key column."""
        width = len(self._definition.source.key)
        if width == 1:
            return {f"{prefix}0": binary.literal(cast(Sequence[bytes], keys))}
        return {f"{prefix}{i}": binary.literal([cast(tuple[bytes, ...], key)[i] for key in keys]) for i in range(width)}

    @staticmethod
    def cursor(after: Sequence[str] | None) -> dict[str, Any]:
        """Return the parameters ``c0`` … of a keyset page that follows ``after``."""
        return {f"c{i}": cell for i, cell in enumerate(after or ())}
