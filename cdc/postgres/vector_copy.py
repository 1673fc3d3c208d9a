"""Vectors by binary COPY, straight into arrays.

The server sends each row as a message of its own. Messages are gathered and joined, and an array is laid over the
joined bytes: with a key of fixed width the whole row is one record, otherwise the vector at the row's end is. Nothing
is made for a number, and nothing but the message for a row.
"""

from __future__ import annotations

import select
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import pq, sql
from psycopg.errors import error_from_result

from cdc.errors import DecodeError
from cdc.flow.keycodec import KeyCodec, Keys
from cdc.flow.vectorformat import Floats, VectorFormat
from cdc.postgres import expressions
from cdc.postgres.connect import classify
from cdc.rows import Column, Table

CHUNK_BYTES: Final = 1 << 20
"""Of messages parsed at once: few enough that they stay in the processor's cache from one step to the next."""

CHUNK_ROWS: Final = 4096

_SIGNATURE: Final = b"PGCOPY\n\xff\r\n\0"
_DIRECT: Final = ("text", "varchar")


@dataclass(frozen=True, slots=True)
class VectorChunk:
    """Rows of a table: ``keys`` and ``vectors`` in step, and how many rows were left out for their vector."""

    keys: Keys
    vectors: Floats
    skipped: int


def copy_statement(
    table: Table,
    key: tuple[Column, ...],
    column: str,
    codec: KeyCodec,
    condition: str = "",
    *,
    only: bool = False,
) -> sql.SQL:
    """Return the COPY of all rows that have a vector: the key's columns, then the vector.

    Args:
        table: The table.
        key: Its key.
        column: Its vector column.
        codec: Of the key: where its width is not fixed, columns come as their output function prints them.
        condition: More SQL behind the FROM clause's ``WHERE … IS NOT NULL``: a sample, say.
        only: Without the rows of tables that inherit from it.
    """
    whole = {True: "{}", False: "pg_catalog.format('%s', {})"}
    cells = [
        sql.SQL(whole[codec.is_fixed or c.base_type in _DIRECT]).format(sql.Identifier(c.name)) for c in key
    ]  # fmt: skip
    statement = sql.SQL("COPY (SELECT {}, {} FROM {}{} WHERE {} IS NOT NULL {}) TO STDOUT (FORMAT binary)").format(
        sql.SQL(", ").join(cells),
        sql.Identifier(column),
        sql.SQL("ONLY " if only else ""),
        expressions.identifier(table),
        sql.Identifier(column),
        sql.SQL(condition),
    )
    return sql.SQL(statement.as_string(None))


def copy_vectors(
    connection: psycopg.Connection[Any],
    statement: sql.SQL,
    codec: KeyCodec,
    layout: VectorFormat,
    dimension: int | None,
    stop: threading.Event | None = None,
) -> Iterator[VectorChunk]:
    """Run a :func:`copy_statement` and yield its rows, some thousands at a time.

    Args:
        connection: A session that does nothing else meanwhile.
        statement: The COPY.
        codec: Reads the keys.
        layout: Reads the vectors.
        dimension: Of the vectors; None: that of most of the first few thousand.
        stop: Ends the reading early.

    Raises:
        WalvecError: the server refused, or is gone; DecodeError: it sent something else than binary COPY.
    """
    parse = _Parser(codec, layout, dimension)
    for rows in read_rows(connection.pgconn, statement.as_bytes(connection), stop or threading.Event()):
        yield parse.chunk(rows)


def read_rows(pgconn: pq.abc.PGconn, statement: bytes, stop: threading.Event) -> Iterator[list[memoryview]]:
    """Run a binary COPY and yield its rows as they came, without the stream's head and end."""
    try:
        pgconn.send_query(statement)
        while pgconn.flush():
            select.select([], [pgconn.socket], [], 0.5)
        if not _wait(pgconn, stop):
            return
        result = pgconn.get_result()
        if result is None or result.status != pq.ExecStatus.COPY_OUT:
            raise error_from_result(result) if result is not None else psycopg.OperationalError("no answer")
        first = True
        over = False
        while not over:
            rows, over = _gather(pgconn, stop)
            if rows and first:
                rows[0] = _without_head(rows[0])
                first = False
                if not len(rows[0]):
                    del rows[0]
            if rows and len(rows[-1]) == 2:  # the stream's end: -1 in place of the number of fields
                rows.pop()
            if rows:
                yield rows
        if not stop.is_set():
            _finish(pgconn)
    except psycopg.Error as exc:
        raise classify(exc) from exc


def _gather(pgconn: pq.abc.PGconn, stop: threading.Event) -> tuple[list[memoryview], bool]:
    """Return the next messages, and whether the COPY is over or reading was ended."""
    rows: list[memoryview] = []
    size, get, add = 0, pgconn.get_copy_data, rows.append
    while size < CHUNK_BYTES and len(rows) < CHUNK_ROWS:
        length, data = get(1)
        if length > 0:
            size += length
            add(data)
        elif length == 0:
            if stop.is_set():
                return [], True
            select.select([pgconn.socket], [], [], 0.5)
            pgconn.consume_input()
        else:
            return rows, True
    return rows, False


def _wait(pgconn: pq.abc.PGconn, stop: threading.Event) -> bool:
    while pgconn.is_busy():
        if stop.is_set():
            return False
        select.select([pgconn.socket], [], [], 0.5)
        pgconn.consume_input()
    return True


def _finish(pgconn: pq.abc.PGconn) -> None:
    """Take the COPY's result, and raise it if it is a failure."""
    while (result := pgconn.get_result()) is not None:
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise error_from_result(result)


def _without_head(data: memoryview) -> memoryview:
    head = bytes(data[:19])
    if head[:11] != _SIGNATURE:
        raise DecodeError("The server did not answer with binary COPY.")
    return data[19 + int.from_bytes(head[15:19], "big") :]


class _Parser:
    """Rows to arrays; learns the dimension from the first vectors, where it is not known."""

    def __init__(self, codec: KeyCodec, layout: VectorFormat, dimension: int | None) -> None:
        self._codec = codec
        self._format = layout
        self._columns = len(codec.columns) + 1
        self._dimension = dimension
        self._record: np.dtype[Any] | None = None
        self._tail: np.dtype[Any] | None = None

    def chunk(self, rows: Sequence[memoryview]) -> VectorChunk:
        """Return what ``rows`` hold."""
        if self._record is None:
            self._learn(rows)
        if self._record is None or self._tail is None or self._dimension is None:
            return VectorChunk(self._no_keys(), np.empty((0, 0), np.float32), len(rows))
        keys, records = self._fixed(rows) if self._codec.is_fixed else self._by_text(rows, self._tail.itemsize)
        fits = self._format.fits(records)
        vectors = self._format.matrix(records if fits.all() else records[fits], self._dimension)
        usable = self._format.usable(vectors)
        if not usable.all():
            vectors = vectors[usable]
        fits[fits] = usable
        return VectorChunk(keys if fits.all() else keys[fits], vectors, len(rows) - len(vectors))

    def _learn(self, rows: Sequence[memoryview]) -> None:
        """Make the layout of rows whose vectors are as wide as most are."""
        if self._dimension:
            elements = self._format.elements(self._dimension)
        else:
            widths = Counter(map(self._elements, rows))
            del widths[0]
            if not widths:
                return
            elements = widths.most_common(1)[0][0]
        self._dimension = self._format.dimension(elements)
        tail = self._format.layout(elements)
        self._tail = np.dtype(tail)
        head = self._codec.layout() if self._codec.is_fixed else []
        self._record = np.dtype([("fields", ">i2"), *head, *tail])

    def _elements(self, row: memoryview) -> int:
        start = 2
        for _ in self._codec.columns:
            start += 4 + int.from_bytes(row[start : start + 4], "big")
        return self._format.elements_in(bytes(row[start + 4 : start + 24]))

    def _fixed(self, rows: Sequence[memoryview]) -> tuple[Keys, NDArray[Any]]:
        assert self._record is not None
        size = self._record.itemsize
        if set(map(len, rows)) != {size}:
            rows = [row for row in rows if len(row) == size]
        records = np.frombuffer(b"".join(rows), self._record)
        if (records["fields"] != self._columns).any():
            raise DecodeError("A row of the COPY has another number of columns than was asked for.")
        return self._codec.from_records(records), records

    def _by_text(self, rows: Sequence[memoryview], tail: int) -> tuple[Keys, NDArray[Any]]:
        keys: list[bytes] = []
        tails: list[memoryview] = []
        for row in rows:
            cells, end = self._cells(row)
            if end + tail == len(row):
                keys.append(bytes(self._codec.from_cells(cells)))
                tails.append(row[end:])
        array = np.empty(len(keys), object)
        array[:] = keys
        return array, np.frombuffer(b"".join(tails), self._tail)

    def _cells(self, row: memoryview) -> tuple[list[bytes], int]:
        cells, start = [], 2
        for _ in self._codec.columns:
            end = start + 4 + int.from_bytes(row[start : start + 4], "big")
            cells.append(bytes(row[start + 4 : end]))
            start = end
        return cells, start

    def _no_keys(self) -> Keys:
        return np.empty(0, self._codec.dtype if self._codec.is_fixed else object)
