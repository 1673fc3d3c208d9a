"""CopyData payloads of a replication connection, and the status reply that answers them.

Source: https://www.postgresql.org/docs/current/protocol-replication.html, messages ``XLogData`` (w), ``Primary
keepalive message`` (k) and ``Standby status update`` (r). Integers are big-endian; clocks count microseconds since
2000-01-01 UTC.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

from cdc.errors import DecodeError
from cdc.lsn import Lsn

XLOG_DATA: Final = 0x77
"""``w``, the first byte of a payload that carries WAL data."""

KEEPALIVE: Final = 0x6B
"""``k``, the first byte of a keepalive."""

BODY: Final = 25
"""Where the pgoutput message starts in an XLogData payload: after the tag and three 64-bit numbers."""

PG_EPOCH_UNIX_US: Final = 946_684_800_000_000
"""2000-01-01 00:00 UTC in microseconds since 1970-01-01 UTC."""

_XLOG_HEADER: Final = Struct(">QQq")
_KEEPALIVE: Final = Struct(">QqB")
_STATUS: Final = Struct(">cQQQqB")


@dataclass(frozen=True, slots=True)
class XLogData:
    """A piece of the stream.

    ``start`` is not ordered across transactions and may be 0/0: nothing is ever acknowledged by it.
    ``sent_us`` is the server's clock in microseconds since 2000-01-01 UTC.
    """

    start: Lsn
    end: Lsn
    sent_us: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Keepalive:
    """A sign of life. All commits below ``wal_end`` that are for us have been sent before it."""

    wal_end: Lsn
    sent_us: int
    reply_requested: bool


def parse_frame(frame: bytes) -> XLogData | Keepalive:
    """Return what one CopyData payload holds.

    Raises:
        DecodeError: The tag is unknown or the length is not the protocol's.
    """
    tag = frame[:1]
    if tag == b"w" and len(frame) >= BODY:
        start, end, sent_us = _XLOG_HEADER.unpack_from(frame, 1)
        return XLogData(Lsn(start), Lsn(end), sent_us, frame[BODY:])
    if tag == b"k" and len(frame) == 1 + _KEEPALIVE.size:
        wal_end, sent_us, reply = _KEEPALIVE.unpack_from(frame, 1)
        return Keepalive(Lsn(wal_end), sent_us, reply != 0)
    if tag in (b"w", b"k"):
        raise DecodeError(f"replication frame {tag.decode()!r} of {len(frame)} bytes has the wrong length")
    raise DecodeError(f"replication frame of {len(frame)} bytes starts with the unknown tag {tag.hex() or 'nothing'}")


def standby_status(written: int, flushed: int, applied: int, now_us: int, reply_requested: bool = False) -> bytes:
    """Return a standby status update, ready to be sent as CopyData.

    Args:
        written: End of the WAL received, in bytes.
        flushed: The server may forget everything below; 0 means "nothing to report" and changes no slot.
        applied: What ``synchronous_commit = remote_apply`` waits for.
        now_us: The client's clock, microseconds since 2000-01-01 UTC.
        reply_requested: Ask the server to answer with a keepalive at once.
    """
    return _STATUS.pack(b"r", written, flushed, applied, now_us, reply_requested)


def unix_us(pg_us: int) -> int:
    """Microseconds since 2000-01-01 UTC to microseconds since 1970-01-01 UTC."""
    return pg_us + PG_EPOCH_UNIX_US


def pg_us(unix_us: int) -> int:
    """Microseconds since 1970-01-01 UTC to microseconds since 2000-01-01 UTC."""
    return unix_us - PG_EPOCH_UNIX_US
