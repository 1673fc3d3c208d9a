"""The changes of an index since it was saved, in files: durable before the WAL they came by is acknowledged.

A journal is a row of segments. Each opens with a header that names the index it belongs to; what follows are records
of whole groups of changes: length, CRC-32, the place in the stream up to which all is in by then, and the changes. A
crash can cut the last record of the last segment: it is cut off, since nothing in it was acknowledged. Anything else
that does not check is damage, and the index is built anew.

No change may be made twice: one that moves a vector from key to key would move another the second time. The server
sends a transaction that was cut off again from its beginning, so what was taken of it is counted, and passed over.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct, error
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from cdc.errors import WalvecError
from cdc.flow.keycodec import IndexKey, KeyCodec

Floats = NDArray[np.float32]

_HEAD: Final = Struct("<8s32s")
_MAGIC: Final = b"walvecJ2"
_RECORD: Final = Struct("<II24s")  # bytes of changes, CRC-32 of place and changes, place
_PLACE: Final = Struct("<QQQ")
_CHANGE: Final = Struct("<cII")  # what, bytes of the key, bytes of the rest
_LARGEST: Final = 1 << 30


class JournalDamaged(WalvecError):
    """The journal is not what was written."""


@dataclass(frozen=True, slots=True)
class Place:
    """How much of the stream is in: all commits below ``lsn``, and some of one transaction that is not complete.

    ``commit`` is where that transaction commits, as its BEGIN says; ``changes`` is how many of its row changes are in,
    those counted that changed nothing here. The server decodes a transaction in the same order every time.
    """

    lsn: int
    commit: int = 0
    changes: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """One change: ``put`` a vector under ``key``, ``drop`` it, ``rename`` it to ``other``, or ``clear`` everything."""

    what: Literal["put", "drop", "rename", "clear"]
    key: IndexKey = 0
    vector: Floats | None = None
    other: IndexKey = 0


_CODES: Final = {"put": b"P", "drop": b"D", "rename": b"R", "clear": b"C"}
_WORDS: Final[dict[bytes, Literal["put", "drop", "rename", "clear"]]] = {
    b"P": "put", b"D": "drop", b"R": "rename", b"C": "clear",
}  # fmt: skip


class Journal:
    """Writes and reads the segments in a folder. One thread appends, any may call :meth:`sync`.

    Args:
        folder: Where they are.
        owner: 32 bytes that name the index.
        codec: Of its keys.
    """

    def __init__(self, folder: Path, owner: bytes, codec: KeyCodec) -> None:
        self.segment = 0
        self.bytes = 0  # since the base was saved
        self.folder = folder
        self._owner = owner
        self._codec = codec
        self._file = -1
        self._lock = threading.Lock()  # of the file, against its being closed while it is synchronized

    def open(self, segment: int) -> None:
        """Begin the segment of this number; the one before, if any, is made durable.

        Raises:
            OSError: it cannot be made; the one before goes on.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        path = self._path(segment)
        file = os.open(path, flags, 0o600)
        try:
            _write(file, _HEAD.pack(_MAGIC, self._owner))
            os.fsync(file)
            sync_folder(self.folder)
            with self._lock:
                if self._file >= 0:
                    os.fsync(self._file)
        except OSError as exc:
            os.close(file)
            path.unlink(missing_ok=True)
            raise OSError(exc.errno, exc.strerror, str(path)) from exc
        self.close()
        with self._lock:
            self._file, self.segment = file, segment

    def append(self, place: Place, changes: list[Change]) -> None:
        """Write a record: these changes, after which all up to ``place`` is in. Durable after :meth:`sync`.

        Raises:
            OSError: it cannot be written.
        """
        body = b"".join(map(self._pack, changes))
        packed = _PLACE.pack(place.lsn, place.commit, place.changes)
        crc = zlib.crc32(body, zlib.crc32(packed))
        end = os.lseek(self._file, 0, os.SEEK_END)
        try:
            _write(self._file, _RECORD.pack(len(body), crc, packed) + body)
        except OSError as exc:
            os.ftruncate(self._file, end)  # half a record would cut off all that follow it
            raise OSError(exc.errno, exc.strerror, str(self._path(self.segment))) from exc
        self.bytes += _RECORD.size + len(body)

    def sync(self) -> None:
        """Return when all that was appended before the call is on disk."""
        with self._lock:
            if self._file >= 0:
                os.fdatasync(self._file)

    def close(self) -> None:
        """Make the segment durable and close it."""
        with self._lock:
            if self._file >= 0:
                os.fsync(self._file)
                os.close(self._file)
                self._file = -1

    def is_newest(self) -> bool:
        """Whether the segment that is open is there and the last: nobody else has written since."""
        return max((number for number, _ in self._segments()), default=0) == self.segment

    def drop_before(self, segment: int) -> None:
        """Remove the segments below this number: the base holds what they hold."""
        for number, path in self._segments():
            if number < segment:
                path.unlink(missing_ok=True)

    def replay(self, first: int) -> Iterator[tuple[Place, list[Change]]]:
        """Yield the records from segment ``first`` on, oldest first; cut off what a crash left unfinished.

        Raises:
            JournalDamaged: a segment is missing or of another index, or a record is not what was written.
        """
        segments = [(number, path) for number, path in self._segments() if number >= first]
        if [number for number, _ in segments] != list(range(first, first + len(segments))):
            raise JournalDamaged("A part of the index's journal is missing.")
        for number, path in segments:
            yield from self._read(path, is_last=number == segments[-1][0])
        self.segment = segments[-1][0] if segments else first - 1

    def _read(self, path: Path, *, is_last: bool) -> Iterator[tuple[Place, list[Change]]]:
        data = path.read_bytes()
        if len(data) < _HEAD.size and is_last:
            path.unlink()  # a crash as the segment was made
            return
        if data[: _HEAD.size] != _HEAD.pack(_MAGIC, self._owner):
            raise JournalDamaged("The index's journal was not written for this index.")
        start = _HEAD.size
        self.bytes += len(data)
        while start < len(data):
            record = self._record(data, start)
            if record is None:
                if not is_last:
                    raise JournalDamaged("The index's journal is damaged.")
                os.truncate(path, start)
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                return
            place, changes, start = record
            yield place, changes

    def _record(self, data: bytes, start: int) -> tuple[Place, list[Change], int] | None:
        if start + _RECORD.size > len(data):
            return None
        size, crc, packed = _RECORD.unpack_from(data, start)
        body = data[start + _RECORD.size : start + _RECORD.size + size]
        if size > _LARGEST or len(body) != size or zlib.crc32(body, zlib.crc32(packed)) != crc:
            return None
        return Place(*_PLACE.unpack(packed)), list(self._unpack(body)), start + _RECORD.size + size

    def _pack(self, change: Change) -> bytes:
        key = b"" if change.what == "clear" else self._codec.pack(change.key)
        rest = b""
        if change.vector is not None:
            rest = change.vector.astype("<f4", copy=False).tobytes()
        elif change.what == "rename":
            rest = self._codec.pack(change.other)
        return _CHANGE.pack(_CODES[change.what], len(key), len(rest)) + key + rest

    def _unpack(self, body: bytes) -> Iterator[Change]:
        start = 0
        try:
            while start < len(body):
                code, key_size, rest_size = _CHANGE.unpack_from(body, start)
                start += _CHANGE.size
                key, rest = body[start : start + key_size], body[start + key_size : start + key_size + rest_size]
                start += key_size + rest_size
                what = _WORDS[code]
                yield Change(
                    what,
                    self._codec.unpack(key) if key or not self._codec.is_int else 0,
                    np.frombuffer(rest, "<f4").astype(np.float32) if what == "put" else None,
                    self._codec.unpack(rest) if what == "rename" else 0,
                )
        except (error, KeyError, ValueError):
            raise JournalDamaged("The index's journal is damaged.") from None

    def _path(self, segment: int) -> Path:
        return self.folder / f"journal-{segment:08d}"

    def _segments(self) -> list[tuple[int, Path]]:
        found = [(int(path.name.removeprefix("journal-")), path) for path in self.folder.glob("journal-????????")]
        return sorted(found)


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
