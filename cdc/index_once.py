"""An index built once from a snapshot, put together: into a file, or with pgvector in the database."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cdc.config import Settings
from cdc.errors import ConfigError
from cdc.external_indexes import HnswIndexes
from cdc.flow.keycodec import KeyCodec
from cdc.jobs import IndexSpec
from cdc.postgres.connect import connection_params
from cdc.postgres.hnsw import build_index
from cdc.postgres.index_snapshot import IndexSnapshot
from cdc.rows import Table
from cdc.services.keyed_index import KeyedIndex

_KEYS_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class Made:
    """A file that was made. ``skipped`` rows have a vector that no index can hold."""

    rows: int
    skipped: int
    dimension: int
    keys: Path
    bytes: int
    seconds: float


def build_file(
    settings: Settings, table: Table, spec: IndexSpec, out: Path, dimension: int, progress: Callable[[int, int], None]
) -> Made:
    """Build an index of a column as it is now, and write it to ``out``, its keys to ``<out>.keys.csv``.

    Args:
        settings: The database, and what an index may use.
        table: The table.
        spec: What is built.
        out: The file.
        dimension: What the vectors should have; 0: what they have.
        progress: Told the rows done, and about how many there are.

    Raises:
        ConfigError: the column holds no such vectors, there are none, they do not fit into memory, or the file cannot
            be written.
        Unavailable: the database is away.
    """
    began = time.monotonic()
    keys = out.with_name(f"{out.name}.keys.csv")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"{out} cannot be written: there is no such folder.")
    indexes = HnswIndexes(settings.index_threads, settings.index_memory)
    with IndexSnapshot(settings, table, spec.column, spec.metric) as snapshot:
        indexed = snapshot.indexed
        index = KeyedIndex(
            snapshot.codec, lambda width, capacity: indexes.make(spec, width, capacity), indexed.dimension
        )
        done, room = 0, 0
        for chunk in snapshot.chunks():
            done += len(chunk.vectors) + chunk.skipped
            index.skipped += chunk.skipped
            width = chunk.vectors.shape[1] if len(chunk.vectors) else 0
            if dimension and width not in (0, dimension):
                raise ConfigError(f"{table}.{spec.column} holds vectors of {width} dimensions, not of {dimension}.")
            if width and index.count + len(chunk.vectors) > room:
                room = max(indexed.rows * 51 // 50, (index.count + len(chunk.vectors)) * 5 // 4) + 1024
                indexes.check_room(spec, width, room)
            index.load(chunk.keys, chunk.vectors, room)
            progress(done, max(indexed.rows, done))
    made, _ = index.now
    if made is None or index.dimension is None:
        raise ConfigError(f"Column {spec.column} of {table} holds no vector, so there is nothing to index.")
    try:
        made.save(out)
        _save_keys(index, snapshot.codec, keys)
    except OSError as exc:
        raise ConfigError(f"{out} cannot be written: {exc.strerror or exc}.") from exc
    return Made(index.count, index.skipped, index.dimension, keys, out.stat().st_size, time.monotonic() - began)


def _save_keys(index: KeyedIndex, codec: KeyCodec, path: Path) -> None:
    """Write which row stands under which label."""
    _, known = index.now
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["label", *(column.name for column in codec.columns)])
        for start in range(0, index.count, _KEYS_AT_ONCE):
            labels = np.arange(start, min(start + _KEYS_AT_ONCE, index.count))
            for label, key in zip(labels.tolist(), known.keys(labels), strict=True):
                lines.writerow([label, *codec.to_object(key).values()])


async def build_in_database(settings: Settings, table: Table, spec: IndexSpec, progress: Callable[[int], None]) -> str:
    """Build pgvector's index of the name that ``spec`` has, and return in a sentence what was done.

    Raises:
        ConfigError: it cannot be built; the sentence says why.
        Unavailable: the database is away.
    """
    with IndexSnapshot(settings, table, spec.column, spec.metric) as snapshot:
        indexed = snapshot.indexed

    async def tell(percent: int) -> None:
        progress(percent)

    said = await build_index(connection_params(settings, "create-index"), table, indexed, spec, tell)
    if said.startswith("No index was built"):
        raise ConfigError(said, "Build it into a file with --out.")
    return said
