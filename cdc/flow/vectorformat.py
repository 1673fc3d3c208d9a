"""Vectors as PostgreSQL sends them: pgvector's types, arrays and bit strings, binary by COPY and text in the WAL.

Binary forms: pgvector's ``vector_send`` (number of components, an unused word, the components), ``array_send`` (number
of dimensions, flags, element type, then length and value of each element), ``bit_send`` (number of bits, the bytes).
All of it is big-endian. For ``hamming`` every bit becomes a component that is 0 or 1: hnswlib knows no Hamming
distance, and of such vectors the squared Euclidean distance is one, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cdc.errors import ConfigError, PipelineFault
from cdc.rows import Table

Floats = NDArray[np.float32]

_FLOATS: Final = {"vector": ">f4", "halfvec": ">f2", "_float4": ">f4", "_float8": ">f8"}
_BITS: Final = {"bit": "u1", "_int4": ">i4"}
_ARRAYS: Final = ("_float4", "_float8", "_int4")
_NAMES: Final = {"_float4": "real[]", "_float8": "double precision[]", "_int4": "integer[]"}
_INT_BITS: Final = 32
_INT4_END: Final = 2**31


@dataclass(frozen=True, slots=True)
class VectorFormat:
    """How the vectors of one column are sent.

    ``base`` is the ``typname`` of the column's type under any domain; ``metric`` decides whether bits are components.
    """

    base: str
    metric: str

    @classmethod
    def of(cls, table: Table, column: str, base: str, metric: str) -> VectorFormat:
        """Return the format of a column.

        Raises:
            PipelineFault: the type holds no vectors, or has no such distance.
        """
        kinds = _BITS if metric == "hamming" else _FLOATS
        if base in kinds:
            return cls(base, metric)
        fit = ", ".join(_NAMES.get(name, name) for name in kinds)
        raise PipelineFault(
            f"Column {column} of {table} is of type {_NAMES.get(base, base)}, of which no index by {metric} distance "
            "can be made.",
            f"Use a column of one of these types: {fit}; or another operator.",
        )

    def dimension(self, elements: int) -> int:
        """Return the components of a vector of ``elements`` numbers (bits, for ``bit``)."""
        return elements * _INT_BITS if self.base == "_int4" else elements

    def elements(self, dimension: int) -> int:
        """Return the numbers (bits, for ``bit``) of a vector of ``dimension`` components."""
        return dimension // _INT_BITS if self.base == "_int4" else dimension

    def layout(self, elements: int) -> list[tuple[Any, ...]]:
        """Return the fields of a vector in binary COPY, from its length on."""
        if self.base == "bit":
            return [("length", ">i4"), ("elements", ">i4"), ("data", "u1", (-(-elements // 8),))]
        if self.base not in _ARRAYS:
            return [
                ("length", ">i4"),
                ("elements", ">i2"),
                ("unused", ">i2"),
                ("data", _FLOATS[self.base], (elements,)),
            ]
        number = np.dtype([("length", ">i4"), ("value", _FLOATS.get(self.base, ">i4"))])
        head = [("length", ">i4"), ("dimensions", ">i4"), ("nulls", ">i4"), ("type", ">u4"), ("elements", ">i4")]
        return [*head, ("lower", ">i4"), ("data", number, (elements,))]

    def elements_in(self, field: bytes) -> int:
        """Return the numbers (bits) that a vector holds, given its binary form without its length; 0: none."""
        if self.base not in _ARRAYS:
            return int.from_bytes(field[:4] if self.base == "bit" else field[:2], "big")
        return int.from_bytes(field[12:16], "big") if field[:8] == b"\0\0\0\1\0\0\0\0" else 0

    def fits(self, records: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which records of :meth:`layout` are what the layout says."""
        dtype = records.dtype
        assert dtype.fields is not None
        size = dtype.itemsize - dtype.fields["length"][1] - 4
        data = dtype.fields["data"][0]
        good = (records["length"] == size) & (
            (records["elements"] <= data.shape[0] * 8) & (records["elements"] > data.shape[0] * 8 - 8)
            if self.base == "bit"
            else records["elements"] == data.shape[0]
        )
        if self.base in _ARRAYS:
            good &= (records["dimensions"] == 1) & (records["nulls"] == 0)
        return np.asarray(good, np.bool_)

    def matrix(self, records: NDArray[Any], dimension: int) -> Floats:
        """Return the vectors of records that fit, shape ``(rows, dimension)``."""
        data = records["data"]
        if self.base == "bit":
            return np.unpackbits(np.ascontiguousarray(data), axis=1)[:, :dimension].astype(np.float32)
        if self.base in _ARRAYS:
            data = data["value"]
        return _bits(data) if self.base == "_int4" else np.ascontiguousarray(data, np.float32)

    def from_text(self, cell: bytes) -> Floats | None:
        """Return the vector of a cell in text form, shape ``(dimension,)``; None where it is none."""
        if self.base == "bit":
            bits = np.frombuffer(cell, np.uint8) - ord("0")
            return bits.astype(np.float32) if len(bits) and bits.max() <= 1 else None
        if self.base in _ARRAYS and cell[:1] == b"[":  # the bounds of an array that does not begin with 1
            cell = cell.partition(b"=")[2]
        number = int if self.base == "_int4" else float
        try:
            numbers: NDArray[Any] = np.array(list(map(number, cell[1:-1].split(b","))), np.float64)
        except ValueError:  # no number among them: NULL, say, or a row of an array of rows
            return None
        if self.base == "_int4":
            return np.asarray(_bits(numbers[None, :])[0])
        with np.errstate(over="ignore"):  # too large a number becomes infinite, and is not usable
            narrow: Floats = numbers.astype(np.float32)
            return narrow

    def from_numbers(self, numbers: NDArray[np.float64]) -> Floats:
        """Return the vector that somebody searches with, given as numbers: as they are, but for integers' bits.

        Raises:
            ConfigError: they are not what the column's type holds.
        """
        if self.base == "bit" and not np.isin(numbers, (0, 1)).all():
            raise ConfigError("The column holds bits, so a vector to search with has a 0 or a 1 for each.")
        if self.base == "_int4" and not ((numbers == np.rint(numbers)) & (np.abs(numbers + 0.5) < _INT4_END)).all():
            raise ConfigError(
                "The column holds integer[], so a vector to search with has whole numbers, from -2147483648 to "
                "2147483647."
            )
        return _bits(numbers[None, :])[0] if self.base == "_int4" else numbers.astype(np.float32)

    def usable(self, vectors: Floats) -> NDArray[np.bool_]:
        """Return which vectors an index can hold: finite ones, for ``cosine`` with a direction."""
        # One pass tells of nearly all that they are well; only numbers above 1e19 need a second look.
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("ij,ij->i", vectors, vectors)
        if np.isfinite(squares).all() and (self.metric != "cosine" or squares.all()):
            return np.ones(len(vectors), np.bool_)
        good = np.isfinite(vectors).all(axis=1)
        if self.metric == "cosine":
            good &= vectors.any(axis=1)
        return np.asarray(good, np.bool_)


def _bits(integers: NDArray[Any]) -> Floats:
    """Return the bits of 32-bit integers, shape ``(rows, 32 · numbers)``."""
    words = np.ascontiguousarray(integers.astype(np.int64).astype(np.uint32), ">u4")
    return np.unpackbits(words.view(np.uint8).reshape(len(words), -1), axis=1).astype(np.float32)
