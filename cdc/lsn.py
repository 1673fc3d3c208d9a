"""Log sequence numbers: byte positions in the write-ahead log.

An LSN is a 64-bit unsigned integer. PostgreSQL prints it as two hexadecimal halves, ``16/B374D848``
(https://www.postgresql.org/docs/current/datatype-pg-lsn.html). Only commit positions are ordered across transactions.
"""

from __future__ import annotations

from typing import NewType

from cdc.errors import DecodeError

Lsn = NewType("Lsn", int)
"""A position in the write-ahead log, in bytes."""

ZERO = Lsn(0)


def parse_lsn(text: str) -> Lsn:
    """Return the LSN that ``text`` (``X/Y``, hexadecimal) names.

    Raises:
        DecodeError: ``text`` is not in PostgreSQL's form.
    """
    high, slash, low = text.partition("/")
    try:
        if not slash or not 1 <= len(high) <= 8 or not 1 <= len(low) <= 8:
            raise ValueError(text)
        return Lsn(int(high, 16) << 32 | int(low, 16))
    except ValueError:
        raise DecodeError(f"{text!r} is not a log position of the form 16/B374D848") from None


def format_lsn(lsn: int) -> str:
    """Return ``lsn`` in PostgreSQL's ``X/Y`` form."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
