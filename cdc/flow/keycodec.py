"""Keys of rows as an index knows them: a number or bytes, made of cells of the WAL or of records of binary COPY."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cdc.errors import DecodeError
from cdc.rows import Column

IndexKey = int | bytes
"""A row's key: the number for one integer column, else bytes that only :class:`KeyCodec` reads."""

Keys = NDArray[Any]
"""Shape ``(rows,)``: int64, or byte strings of a fixed width."""

_INTEGERS: Final = {"int2": 2, "int4": 4, "int8": 8, "oid": 4}
_WIDTHS: Final = {**_INTEGERS, "uuid": 16}


class KeyCodec:
    """Turns the cells of a key into an :data:`IndexKey` and back.

    Args:
        columns: The key's columns, in the order in which their cells come.
    """

    def __init__(self, columns: tuple[Column, ...]) -> None:
        self.columns = columns
        self.widths = [_WIDTHS.get(column.base_type, 0) for column in columns]
        self.is_fixed = all(self.widths)
        self.is_int = self.is_fixed and len(columns) == 1 and columns[0].base_type in _INTEGERS

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of keys of a fixed width."""
        return np.dtype(np.int64) if self.is_int else np.dtype(f"S{sum(self.widths)}")

    def layout(self) -> list[tuple[str, str]]:
        """Return the fields of a key of fixed width in binary COPY: length, value, length, value …"""
        if self.is_int:
            kind = "u" if self.columns[0].base_type == "oid" else "i"
            return [("n0", ">i4"), ("k0", f">{kind}{self.widths[0]}")]
        return [
            field for i, width in enumerate(self.widths) for field in ((f"n{i}", ">i4"), (f"k{i}", f"S{width}"))
        ]  # fmt: skip

    def from_records(self, records: NDArray[Any]) -> Keys:
        """Return the keys of records of :meth:`layout`."""
        if self.is_int:
            return records["k0"].astype(np.int64)
        whole = np.empty(len(records), np.dtype([(f"k{i}", f"S{width}") for i, width in enumerate(self.widths)]))
        for i in range(len(self.widths)):
            whole[f"k{i}"] = records[f"k{i}"]
        return whole.view(self.dtype)

    def from_cells(self, cells: Sequence[bytes]) -> IndexKey:
        """Return the key of cells in the server's text form.

        Raises:
            DecodeError: a cell is not of its column's type.
        """
        try:
            if self.is_int:
                return int(cells[0])
            if self.is_fixed:
                return b"".join(map(self._binary, cells, self.columns)).rstrip(b"\0")
        except (ValueError, OverflowError):
            raise DecodeError("A key is not of its column's type.") from None
        if len(cells) == 1:
            return bytes(cells[0])
        return b"".join(len(cell).to_bytes(4, "big") + cell for cell in cells)

    @staticmethod
    def _binary(cell: bytes, column: Column) -> bytes:
        if column.base_type == "uuid":
            return uuid.UUID(cell.decode()).bytes
        return int(cell).to_bytes(_WIDTHS[column.base_type], "big", signed=column.base_type != "oid")

    def to_object(self, key: IndexKey) -> dict[str, Any]:
        """Return the key as people read it: column names to values, integers as numbers."""
        if isinstance(key, int):
            return {self.columns[0].name: key}
        if not self.is_fixed:
            cells = zip(self.columns, self._cells(key), strict=True)
            return {column.name: _readable(cell, column) for column, cell in cells}
        found: dict[str, Any] = {}
        key, start = key.ljust(sum(self.widths), b"\0"), 0
        for column, width in zip(self.columns, self.widths, strict=True):
            part = key[start : start + width]
            start += width
            found[column.name] = (
                str(uuid.UUID(bytes=part))
                if column.base_type == "uuid"
                else int.from_bytes(part, "big", signed=column.base_type != "oid")
            )
        return found

    def _cells(self, key: bytes) -> list[bytes]:
        if len(self.columns) == 1:
            return [key]
        cells, start = [], 0
        while start < len(key):
            size = int.from_bytes(key[start : start + 4], "big")
            cells.append(key[start + 4 : start + 4 + size])
            start += 4 + size
        return cells

    def pack(self, key: IndexKey) -> bytes:
        """Return the key as bytes, for a file."""
        return key.to_bytes(8, "little", signed=True) if isinstance(key, int) else key

    def unpack(self, data: bytes) -> IndexKey:
        """Return the key that :meth:`pack` made ``data`` of."""
        return int.from_bytes(data, "little", signed=True) if self.is_int else data


def _readable(cell: bytes, column: Column) -> int | str:
    """Return a cell in the server's text form as people read it."""
    return int(cell) if column.base_type in _INTEGERS else cell.decode("utf-8", "replace")
