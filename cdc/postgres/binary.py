"""Array parameters built in one piece.

A batch of vectors goes to the server as one binary array that NumPy lays out in a single buffer; no Python object
stands for a number. Layouts: ``array_recv`` (src/backend/utils/adt/arrayfuncs.c) and pgvector's ``vector_recv`` and
``halfvec_recv``. Keys travel as array literals in the very text the server printed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from psycopg.adapt import Dumper
from psycopg.pq import Format

_HEADER = struct.Struct(">iiIii")  # dimensions, has nulls, element type, length, lower bound
_FLOAT4 = 700
_BYTEA = 17


@dataclass(frozen=True, slots=True)
class BinaryArray:
    """An array in binary form; the cast in the SQL says of what."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ArrayLiteral:
    """An array in text form; the cast in the SQL says of what."""

    data: bytes


class BinaryArrayDumper(Dumper):
    """Sends a :class:`BinaryArray` as it is."""

    format = Format.BINARY

    def dump(self, obj: BinaryArray) -> bytes:
        """Return the bytes to send."""
        return obj.data


class ArrayLiteralDumper(Dumper):
    """Sends an :class:`ArrayLiteral` as it is."""

    def dump(self, obj: ArrayLiteral) -> bytes:
        """Return the bytes to send."""
        return obj.data


def literal(cells: Iterable[bytes | None]) -> ArrayLiteral:
    """Return the one-dimensional array literal of ``cells`` (https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO)."""
    items = [
        b"NULL"
        if cell is None
        else cell
        if cell.isalnum() and cell.lower() != b"null"
        else b'"' + cell.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
        for cell in cells
    ]
    return ArrayLiteral(b"{" + b",".join(items) + b"}")


def lsns(values: Iterable[int]) -> ArrayLiteral:
    """Return the array literal of log positions."""
    return ArrayLiteral(("{" + ",".join(f"{v >> 32:X}/{v & 0xFFFFFFFF:X}" for v in values) + "}").encode())


def _array(element_type: int, records: NDArray[np.void]) -> BinaryArray:
    count = len(records)
    if not count:
        return BinaryArray(struct.pack(">iiI", 0, 0, element_type))
    return BinaryArray(_HEADER.pack(1, 0, element_type, count, 1) + records.tobytes())


def hashes(values: Sequence[bytes]) -> BinaryArray:
    """Return the ``bytea[]`` of ``values``, all of one width in bytes."""
    if not values:
        return _array(_BYTEA, np.empty(0, "V1"))
    width = len(values[0])
    records = np.empty(len(values), np.dtype([("length", ">i4"), ("data", f"V{width}")]))
    records["length"] = width
    records["data"] = np.frombuffer(b"".join(values), f"V{width}")
    return _array(_BYTEA, records)


def vectors(array: NDArray[np.float32], element_type: int) -> BinaryArray:
    """Return the ``vector[]`` of ``array``, shape ``(rows, dimension)``; ``element_type`` is the OID of ``vector``."""
    return _pgvector(array, ">f4", element_type)


def half_vectors(array: NDArray[np.float32], element_type: int) -> BinaryArray:
    """Return the ``halfvec[]`` of ``array``, shape ``(rows, dimension)``; ``element_type`` is its OID."""
    return _pgvector(array, ">f2", element_type)


def _pgvector(array: NDArray[np.float32], scalar: str, element_type: int) -> BinaryArray:
    rows, dimension = array.shape
    layout = np.dtype([("length", ">i4"), ("dimension", ">i2"), ("unused", ">i2"), ("data", scalar, (dimension,))])
    records = np.empty(rows, layout)
    records["length"] = layout.itemsize - 4
    records["dimension"] = dimension
    records["unused"] = 0
    records["data"] = array
    return _array(element_type, records)


def reals(array: NDArray[np.float32]) -> BinaryArray:
    """Return the one-dimensional ``real[]`` of all numbers of ``array``, row after row."""
    records = np.empty(array.size, np.dtype([("length", ">i4"), ("value", ">f4")]))
    records["length"] = 4
    records["value"] = array.ravel()
    return _array(_FLOAT4, records)


def real_arrays(array: NDArray[np.float32], element_type: int) -> BinaryArray:
    """Return an array whose elements are ``real[]`` of ``array``, shape ``(rows, dimension)``.

    PostgreSQL has no arrays of arrays of one row each; a domain over ``real[]`` makes one. ``element_type`` is its OID.
    """
    rows, dimension = array.shape
    number = np.dtype([("length", ">i4"), ("value", ">f4")])
    layout = np.dtype([("length", ">i4"), ("header", f"V{_HEADER.size}"), ("data", number, (dimension,))])
    records = np.empty(rows, layout)
    records["length"] = layout.itemsize - 4
    records["header"] = np.frombuffer(_HEADER.pack(1, 0, _FLOAT4, dimension, 1), f"V{_HEADER.size}")
    records["data"]["length"] = 4
    records["data"]["value"] = array
    return _array(element_type, records)
