"""The rows of a table that is embedded once, read page by page and written under guard: no slot, no control schema."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

import numpy as np
import psycopg
from psycopg import sql

from cdc.errors import AnswerNotCast, ConfigError, RowRefused, WalvecError
from cdc.ports.one_off import Item, Refusal
from cdc.ports.target import Results
from cdc.postgres import binary, expressions
from cdc.postgres.binary import ArrayLiteral, ArrayLiteralDumper, BinaryArray, BinaryArrayDumper
from cdc.postgres.connect import ConnectionSettings, classify, connection_params
from cdc.postgres.expressions import Source
from cdc.postgres.one_off_plan import Plan
from cdc.postgres.pool import PLANNER_OFF
from cdc.postgres.queries import bound, escaped, query
from cdc.rows import Key, key_cells

Connection = psycopg.AsyncConnection[Any]

LOCK_TIMEOUT: Final = "30s"
"""How long a write waits for a row that somebody else holds."""
_BUILDERS: Final = {"vector": binary.vectors, "halfvec": binary.half_vectors}


async def open_sessions(stack: AsyncExitStack, settings: ConnectionSettings) -> tuple[Connection, Connection]:
    """Return a session to read with and one to write with, closed with ``stack``.

    Raises:
        WalvecError: the server does not let us in, or is away.
    """
    params = connection_params(settings, "create-embeddings")
    try:
        reader = await stack.enter_async_context(await psycopg.AsyncConnection.connect(autocommit=True, **params))
        writer = await stack.enter_async_context(await psycopg.AsyncConnection.connect(autocommit=True, **params))
        for connection in (reader, writer):
            connection.adapters.register_dumper(BinaryArray, BinaryArrayDumper)
            connection.adapters.register_dumper(ArrayLiteral, ArrayLiteralDumper)
        await writer.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
        for method in PLANNER_OFF:  # rows are looked up by key, whatever the planner believes of sizes
            await writer.execute(f"SET {method} = off")
    except psycopg.Error as exc:
        raise classify(exc) from exc
    return reader, writer


class OneOffTable:
    """Implements :class:`cdc.ports.one_off.Rows` and :class:`cdc.ports.one_off.Sink`.

    Args:
        reader: A session that the filter, if there is one, runs in.
        writer: Another one.
        plan: What is read and written.
    """

    def __init__(self, reader: Connection, writer: Connection, plan: Plan) -> None:
        self._reader = reader
        self._writer = writer
        self._plan = plan
        self._width = len(plan.key)
        parts = self._parts()
        cursor = ", ".join(f"%(c{i})s::{c.type.replace('%', '%%')}" for i, c in enumerate(plan.key))
        arrays = ", ".join(f"%(k{i})s::{c.type.replace('%', '%%')}[]" for i, c in enumerate(plan.key))
        follows = f"AND ({escaped(expressions.columns(plan.key, 'r'))}) > ({cursor})"
        self._first = bound("one_off", "page", {"after": ""}, **parts)
        self._next = bound("one_off", "page", {"after": follows}, **parts)
        self._again = bound("one_off", "again", {"arrays": arrays}, **parts)
        self._write = bound(
            "one_off",
            "write",
            {
                "arrays": arrays,
                "value": plan.value.expression,
                "values": plan.value.array,
                "named": ", walvec_value" if plan.value.array else "",
            },
            **{**parts, "rows": expressions.rows(Source(plan.source, plan.key, (plan.text,)), b"")},
        )

    def _parts(self) -> dict[str, sql.Composable]:
        plan, key = self._plan, self._plan.key
        filtered = Source(plan.source, key, (plan.text,), plan.row_filter)
        return {
            "source": expressions.identifier(plan.source),
            "target": expressions.identifier(plan.target),
            "column": sql.Identifier(plan.column),
            "rows": expressions.rows(filtered, b""),
            "plain_rows": expressions.plain_rows(filtered),
            "where": sql.SQL("WHERE ({})").format(sql.SQL(plan.row_filter)) if plan.row_filter else sql.SQL(""),
            "open": plan.open_beside,
            "still_open": sql.SQL("true")
            if plan.replace
            else sql.SQL("o.{} IS NULL").format(sql.Identifier(plan.column)),
            "keys": expressions.columns(key),
            "r_keys": expressions.columns(key, "r"),
            "x_keys": expressions.columns(key, "x"),
            "r_is_u": expressions.same_key(key, "r", "u"),
            "o_is_u": expressions.same_key(key, "o", "u"),
        }

    # -- reading ----------------------------------------------------------------------------------------------------

    async def count(self) -> int:
        """Return how many rows the filter lets through that have no value, those without text included."""
        name = "count_beside" if self._plan.is_beside else "count"
        parts = self._parts()
        if self._plan.is_beside:
            parts["open"] = sql.SQL("WHERE true {}").format(self._plan.open_beside)
        ((rows,),) = await _run(self._reader, bound("one_off", name, {}, **parts), {})
        return int(rows or b"0")

    async def page(self, after: Key | None, rows: int, text_bytes: int) -> Sequence[Item]:
        """Return a keyset page."""
        params: dict[str, Any] = {"limit": rows, "bytes": text_bytes}
        if after is not None:
            params |= {f"c{i}": cell.decode() for i, cell in enumerate(key_cells(after))}
        found = await _run(self._reader, self._first if after is None else self._next, params)
        return self._items(found)

    async def again(self, keys: Sequence[Key]) -> Sequence[Item]:
        """Return rows as they are now."""
        return self._items(await _run(self._reader, self._again, self._keys(keys)))

    def _items(self, rows: Sequence[tuple[bytes | None, ...]]) -> list[Item]:
        items: list[Item] = []
        for row in rows:
            cells, (digest, text, deferred) = row[: self._width], row[self._width :]
            if deferred == b"t" or text is None or digest is None:
                break
            key = cells[0] if self._width == 1 else tuple(cell or b"" for cell in cells)
            items.append(Item(key or b"", text, bytes.fromhex(digest[2:].decode())))
        return items

    # -- writing ----------------------------------------------------------------------------------------------------

    async def write(self, items: Sequence[Item], results: Results) -> set[int]:
        """Write one result per item, in one statement."""
        params = {
            **self._keys([item.key for item in items]),
            "hashes": binary.hashes([item.hash for item in items]),
            "values": self._values(results),
        }
        try:
            written = await _run(self._writer, self._write, params)
        except RowRefused as exc:
            if self._plan.value.answers:
                raise AnswerNotCast(f"The model's answer is no value of type {self._plan.value.type}.") from exc
            raise
        return set(range(len(items))) - {int(row[0] or b"0") - 1 for row in written}

    async def refuse(self, refusals: Sequence[Refusal]) -> None:
        """Write the rows into the table of failures, where one is named."""
        plan = self._plan
        if plan.failures is None:
            return
        statement = bound(
            "one_off",
            "refuse",
            failures=expressions.identifier(plan.failures),
            type=sql.SQL(plan.failures_key),
        )
        texts = [refusal.value.replace("\0", "") for refusal in refusals]
        params = {"job": plan.job, "rows": [row_id(refusal.key) for refusal in refusals], "texts": texts}
        try:
            await _run(self._writer, statement, params)
        except RowRefused as exc:
            raise ConfigError(
                f"Column row_id of {plan.failures} is of type {plan.failures_key}, which cannot hold the keys of "
                f"{plan.source}.",
                "Make it text.",
            ) from exc

    def _keys(self, keys: Sequence[Key]) -> dict[str, Any]:
        cells = [key_cells(key) for key in keys]
        return {f"k{i}": binary.literal([cell[i] for cell in cells]) for i in range(self._width)}

    def _values(self, results: Results) -> BinaryArray | ArrayLiteral:
        value = self._plan.value
        if value.answers:
            return binary.literal(str(answer).encode("utf-8", "replace") for answer in results)
        vectors = np.asarray(results, np.float32)
        return _BUILDERS[value.kind](vectors, value.element) if value.kind in _BUILDERS else binary.reals(vectors)


def row_id(key: Key) -> str:
    """Return a key as text: the cell itself, or a JSON array of several."""
    cells = [cell.decode("utf-8", "replace") for cell in key_cells(key)]
    return cells[0] if len(cells) == 1 else json.dumps(cells, ensure_ascii=False)


async def try_filter(reader: Connection, source: sql.Composable, filter: str) -> None:
    """Have the server read the user's filter, with the schemas in which the user's own session would look.

    Raises:
        ConfigError: it is not SQL, or names what is not there.
    """
    try:
        await reader.execute('SET search_path = "$user", public')
        await reader.execute(query("one_off", "try_filter", source=source, filter=sql.SQL(filter)))
    except psycopg.Error as exc:
        meaning = classify(exc)
        if exc.sqlstate is not None and exc.sqlstate[:2] == "42":
            raise ConfigError(f"--filter is not a condition on the table: {meaning.message}") from exc
        raise meaning from exc


async def _run(connection: Connection, statement: sql.SQL, params: dict[str, Any]) -> list[tuple[bytes | None, ...]]:
    """Run one statement and return its rows as the server printed them."""
    try:
        cursor = await connection.execute(statement, params, prepare=True)
    except psycopg.Error as exc:
        raise _meaning(exc) from exc
    result = cursor.pgresult
    if result is None:
        return []
    columns = range(result.nfields)
    return [tuple(result.get_value(row, column) for column in columns) for row in range(result.ntuples)]


def _meaning(exc: psycopg.Error) -> WalvecError:
    if exc.sqlstate is not None and exc.sqlstate[:2] in ("22", "23", "54"):
        return RowRefused(f"The database refused a row (SQLSTATE {exc.sqlstate}).")
    return classify(exc)
