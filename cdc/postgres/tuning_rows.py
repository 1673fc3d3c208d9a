"""Rows of vectors as ``COPY … FROM STDIN (FORMAT binary)`` takes them, laid out by NumPy in one piece.

Layouts: the file format of COPY (https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-BINARY),
``vector_recv`` and ``halfvec_recv`` of pgvector, and ``bit_recv`` (src/backend/utils/adt/varbit.c).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
_END: Final = struct.pack(">h", -1)
_BLOCK: Final = 4_096  # rows

_SCALARS: Final = {"vector": ">f4", "halfvec": ">f2"}


def binary_rows(rows: NDArray[np.float32], kind: str) -> Iterator[bytes]:
    """Yield ``rows``, shape ``(rows, dimension)``, as a table of one column of ``kind``: vector, halfvec or bit.

    For bit every number is one bit, 0 or 1.
    """
    yield _HEADER
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        yield (_bits(block) if kind == "bit" else _vectors(block, _SCALARS[kind])).tobytes()
    yield _END


def _vectors(rows: NDArray[np.float32], scalar: str) -> NDArray[np.void]:
    count, dimension = rows.shape
    layout = np.dtype(
        [("fields", ">i2"), ("length", ">i4"), ("dimension", ">i2"), ("unused", ">i2"), ("data", scalar, (dimension,))]
    )
    records = np.zeros(count, layout)
    records["fields"] = 1
    records["length"] = layout.itemsize - 6
    records["dimension"] = dimension
    records["data"] = rows
    return records


def _bits(rows: NDArray[np.float32]) -> NDArray[np.void]:
    count, dimension = rows.shape
    packed = np.packbits(rows > 0.5, axis=1)
    layout = np.dtype([("fields", ">i2"), ("length", ">i4"), ("bits", ">i4"), ("data", "u1", (packed.shape[1],))])
    records = np.zeros(count, layout)
    records["fields"] = 1
    records["length"] = layout.itemsize - 6
    records["bits"] = dimension
    records["data"] = packed
    return records
