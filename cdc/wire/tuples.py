"""The hot path: the wanted cells of a row straight from the CopyData payload, everything else stepped over.

A payload is an XLogData header of 25 bytes and a pgoutput body (``cdc.wire.frames.BODY``). The body of a row change is
tag, table OID (4 bytes), kind of tuple (``N`` new, ``K`` old key, ``O`` old row), number of columns (2 bytes), cells.
A cell is its kind (``t`` text, ``b`` binary, ``n`` NULL, ``u`` unchanged TOAST) and, for ``t`` and ``b``, a 32-bit
length and the bytes (https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html).

Three habits make this quick in Python. One ``unpack_from`` reads a cell's kind and length together. Bounds are not
checked for each cell: slices cannot overrun, and the end of the row is compared with the end of the message once. And
tag, table, kind of tuple and number of columns are eight bytes in a row: one dictionary lookup checks them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct, error
from typing import Final

from cdc.errors import DecodeError
from cdc.rows import UNCHANGED, Cell
from cdc.wire.frames import BODY
from cdc.wire.relations import Relation

Pick = Callable[[bytes, int], tuple[list[Cell], int]]
"""Takes a payload and where the first cell starts; gives the wanted cells and where the tuple ends."""

ROUTE_KEY: Final = slice(BODY, BODY + 8)
"""Tag, table OID, kind of tuple and number of columns in a payload."""

_HEAD: Final = Struct(">BI").unpack_from
_COUNT: Final = Struct(">H")
_OID: Final = Struct(">I")
_TEXT: Final = ord("t")
_BINARY: Final = ord("b")
_NULL: Final = ord("n")
_UNCHANGED: Final = ord("u")
_OLD_KINDS: Final = (ord("K"), ord("O"))
_NEW_KIND: Final = ord("N")


class TuplePicker:
    """Picks the same columns from every tuple of one table.

    Cells come in the order of ``wanted``, text and binary alike as ``bytes``: which of them the server sends is the
    caller's choice in START_REPLICATION.

    Args:
        column_count: Columns in each tuple, 0 to 65535.
        wanted: Positions of the columns to return, in the order wanted; one may be asked for twice.

    Raises:
        ValueError: A position is outside the tuple.
    """

    __slots__ = ("_column_count", "cells")

    def __init__(self, column_count: int, wanted: Sequence[int]) -> None:
        if not all(0 <= index < column_count for index in wanted):
            raise ValueError(f"columns {list(wanted)} cannot be picked from a tuple of {column_count}")
        self._column_count = column_count
        self.cells: Pick = _ordered(_picker([index in wanted for index in range(column_count)]), wanted)

    def pick(self, buf: bytes, pos: int) -> tuple[list[Cell], int]:
        """Return the wanted cells of the tuple whose number of columns stands at ``pos``, and where it ends.

        Raises:
            DecodeError: The bytes are not a tuple of this many columns.
        """
        if buf[pos : pos + 2] != _COUNT.pack(self._column_count):
            raise DecodeError(f"byte {pos}: a tuple of {self._column_count} columns is expected")
        return self.cells(buf, pos + 2)


def _picker(plan: list[bool]) -> Pick:
    """Return the function that walks a tuple by ``plan``, one flag a column: keep it or step over it."""
    keeps = tuple(plan)

    def pick(buf: bytes, pos: int) -> tuple[list[Cell], int]:
        cells: list[Cell] = []
        start = pos
        try:
            for keep in keeps:
                kind, size = _HEAD(buf, pos)
                if kind == _TEXT or kind == _BINARY:  # noqa: SIM109 - a set costs 3 % of the whole row
                    pos += 5
                    if keep:
                        begin = pos
                        pos += size
                        cells.append(buf[begin:pos])
                    else:
                        pos += size
                elif kind in (_NULL, _UNCHANGED):
                    pos += 1
                    if keep:
                        cells.append(None if kind == _NULL else UNCHANGED)
                else:
                    raise DecodeError(f"byte {pos}: the kind of a cell is unknown")
        except error:  # fewer than five bytes left: the last cells are NULL or unchanged, or the tuple is cut
            return _pick_near_end(keeps, buf, start)
        if pos > len(buf):
            raise DecodeError(f"byte {start}: a tuple runs past the end of its message")
        return cells, pos

    return pick


def _pick_near_end(keeps: tuple[bool, ...], buf: bytes, pos: int) -> tuple[list[Cell], int]:
    """Walk a tuple as above, looking before each step."""
    cells: list[Cell] = []
    for keep in keeps:
        cell: Cell
        match buf[pos : pos + 1]:
            case b"n":
                cell, pos = None, pos + 1
            case b"u":
                cell, pos = UNCHANGED, pos + 1
            case b"t" | b"b" if pos + 5 <= len(buf):
                begin = pos + 5
                pos = begin + _HEAD(buf, pos)[1]
                cell = buf[begin:pos] if keep else None
            case _:
                raise DecodeError(f"byte {pos}: a cell is cut or of an unknown kind")
        if keep:
            cells.append(cell)
    if pos > len(buf):
        raise DecodeError(f"byte {pos}: a tuple runs past the end of its message")
    return cells, pos


def _ordered(pick: Pick, wanted: Sequence[int]) -> Pick:
    """Return ``pick`` with its cells, which come in column order, put into the order of ``wanted``."""
    in_column_order = sorted(set(wanted))
    if list(wanted) == in_column_order:
        return pick
    order = [in_column_order.index(index) for index in wanted]

    def pick_ordered(buf: bytes, pos: int) -> tuple[list[Cell], int]:
        cells, end = pick(buf, pos)
        return [cells[index] for index in order], end

    return pick_ordered


class RowDecoder:
    """Reads the row changes of one table, given whole CopyData payloads.

    ``body`` is where the pgoutput body starts; inside a stream block add 4, for the xid that stands after the tag.
    Neither tag nor OID is looked at: they are what led the caller here. Every method raises :class:`DecodeError`, and
    nothing else, if the rest is not such a change of a table of this shape.

    Args:
        relation: The table as described on this connection.
        wanted: Positions of the columns to return, in the order wanted.
    """

    __slots__ = ("_picker", "relation")

    def __init__(self, relation: Relation, wanted: Sequence[int]) -> None:
        self.relation = relation
        self._picker = TuplePicker(len(relation.columns), wanted)

    def insert(self, buf: bytes, body: int = BODY) -> list[Cell]:
        """Return the wanted cells of an Insert."""
        return self._last(buf, self._kind(buf, body + 5, (_NEW_KIND,)))

    def update(self, buf: bytes, body: int = BODY) -> tuple[list[Cell] | None, list[Cell]]:
        """Return the wanted cells of the old row, if it was sent, and of the new.

        Of an old key (identity DEFAULT or INDEX) only the key's cells mean something: the others are None because
        they were not sent.
        """
        first = body + 5
        if buf[first : first + 1] == b"N":
            return None, self._last(buf, first + 1)
        old, pos = self._pick(buf, self._kind(buf, first, _OLD_KINDS))
        return old, self._last(buf, self._kind(buf, pos, (_NEW_KIND,)))

    def delete(self, buf: bytes, body: int = BODY) -> list[Cell]:
        """Return the wanted cells of a Delete; of an old key only the key's cells mean something."""
        return self._last(buf, self._kind(buf, body + 5, _OLD_KINDS))

    def last_tuple(self, buf: bytes, first_cell: int = BODY + 8) -> list[Cell]:
        """Return the wanted cells of the tuple that starts at ``first_cell`` and ends with the message.

        For payloads found by their route key, which has vouched for the kind of tuple and the number of columns.
        """
        try:
            cells, end = self._picker.cells(buf, first_cell)
        except DecodeError as wrong:
            raise self._wrong(first_cell, wrong.message) from None
        return self._whole(buf, cells, end)

    def _kind(self, buf: bytes, pos: int, kinds: tuple[int, ...]) -> int:
        """Check the kind of the tuple that starts at ``pos`` and return where its number of columns stands."""
        if pos >= len(buf) or buf[pos] not in kinds:
            raise self._wrong(pos, f"a tuple of kind {bytes(kinds).decode()} is expected")
        return pos + 1

    def _pick(self, buf: bytes, pos: int) -> tuple[list[Cell], int]:
        try:
            return self._picker.pick(buf, pos)
        except DecodeError as wrong:
            raise self._wrong(pos, wrong.message) from None

    def _last(self, buf: bytes, pos: int) -> list[Cell]:
        cells, end = self._pick(buf, pos)
        return self._whole(buf, cells, end)

    def _whole(self, buf: bytes, cells: list[Cell], end: int) -> list[Cell]:
        if end != len(buf):
            raise self._wrong(end, f"{len(buf) - end} bytes too many")
        return cells

    def _wrong(self, pos: int, what: str) -> DecodeError:
        return DecodeError(f"a change of {self.relation.table}, byte {pos}: {what}")


def route_keys(relation: Relation) -> dict[bytes, bytes]:
    """Return what ``payload[ROUTE_KEY]`` may be for a row change of ``relation``, with the tag that it stands for.

    With these as keys one lookup tells a watched row from everything else. A change of a watched table that is not
    found so does not fit the table's description; :class:`RowDecoder` says how.
    """
    oid, count = _OID.pack(relation.oid), _COUNT.pack(len(relation.columns))
    kinds = ((b"I", b"N"), (b"U", b"N"), (b"U", b"K"), (b"U", b"O"), (b"D", b"K"), (b"D", b"O"))
    return {tag + oid + kind + count: tag for tag, kind in kinds}
