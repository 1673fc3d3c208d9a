"""How fast PostgreSQL takes vectors at all: plain SQL, nothing computed, nothing checked.

The yardstick for the whole way from a row to its embedding: a prepared ``INSERT … SELECT FROM unnest`` with binary
arrays, the fastest write-back by measurement, of vectors that were made beforehand, into a table of key and vector.
"""

from __future__ import annotations

import struct
import time
from typing import Any, Final

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult

from cdc.bench.figures import WrongResult
from cdc.bench.scene import Scene
from cdc.postgres import binary
from inference.hashing import hash_vectors

DIMENSION: Final = 384
BATCH: Final = 1024

_INSERT: Final = "INSERT INTO plain (id, embedding) SELECT * FROM unnest($1::bigint[], $2::{}[]) ON CONFLICT DO NOTHING"
_INT8: Final = 20


def plain_write(stage: Scene, rows: int, synchronous_commit: str) -> float:
    """Write ``rows`` vectors in batches of 1024, a transaction each; return rows per second.

    Raises:
        WrongResult: not every vector is in the table.
    """
    connection = stage.connection
    column, parameter, element = _vector_type(connection)
    vectors = hash_vectors([f"text {i}" for i in range(BATCH)], DIMENSION)
    build = binary.vectors if parameter == "vector" else binary.real_arrays
    connection.execute(f"CREATE TABLE plain (id bigint PRIMARY KEY, embedding {column})")
    connection.execute("SELECT set_config('synchronous_commit', %s, false)", (synchronous_commit,))
    _done(connection.pgconn.prepare(b"plain", _INSERT.format(parameter).encode()))
    seconds = 0.0
    for first in range(0, rows, BATCH):
        keys = np.arange(first, min(first + BATCH, rows))
        batch = (_bigints(keys), build(vectors[: len(keys)], element).data)
        begin = time.perf_counter()
        _done(connection.pgconn.exec_prepared(b"plain", batch, [Format.BINARY, Format.BINARY]))
        seconds += time.perf_counter() - begin
    written = stage.one("SELECT count(*) FROM plain")
    connection.execute("DEALLOCATE plain")
    connection.execute("DROP TABLE plain")
    connection.execute("RESET synchronous_commit")
    connection.execute("CHECKPOINT")
    if written != rows:
        raise WrongResult(f"{written} of {rows} vectors were written")
    return rows / seconds


def _vector_type(connection: psycopg.Connection[Any]) -> tuple[str, str, int]:
    """Return the column's type, the array element's type and its OID: pgvector's, or real[] where there is none."""
    there = connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'").fetchone()
    if there:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        column, element = f"vector({DIMENSION})", "vector"
    else:
        connection.execute("DROP DOMAIN IF EXISTS plain_vector; CREATE DOMAIN plain_vector AS real[]")
        column, element = "real[]", "plain_vector"
    row = connection.execute("SELECT %s::regtype::oid::bigint", (element,)).fetchone()
    assert row is not None
    return column, element, int(row[0])


def _bigints(keys: NDArray[np.int64]) -> bytes:
    records = np.empty(len(keys), np.dtype([("length", ">i4"), ("value", ">i8")]))
    records["length"], records["value"] = 8, keys
    return struct.pack(">iiIii", 1, 0, _INT8, len(keys), 1) + records.tobytes()


def _done(result: PGresult) -> None:
    if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
        raise WrongResult(result.error_message.decode(errors="replace").strip())
