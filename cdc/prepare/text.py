"""The source text of a row.

One column: its value. Several: ``name: value`` lines in column order, joined by one newline. NULL, empty and all-blank
values are left out, and with nothing left the row has no text, hence no embedding.

SQL computes the very same text (``cdc.postgres.expressions``): a property test holds the two together.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence

from cdc.rows import UNCHANGED, Cell, Column, Unchanged

BLANKS = "".join(chr(point) for point in range(sys.maxunicode + 1) if chr(point).isspace())
"""Every character that counts as white space: Unicode White_Space and the four ASCII separators."""

TEXT_TYPES = frozenset({"text", "varchar", "bpchar", "citext", "json", "jsonb", "xml"})
"""Base types whose columns are embedded (CONTRACT: text-like)."""

HASH_BYTES = 16
"""Width of a source hash: SHA-256 cut to 128 bits, so that it costs little beside a vector."""


def is_text_like(column: Column) -> bool:
    """Tell whether ``column`` can be part of the text."""
    return column.base_type in TEXT_TYPES


def fingerprint(model: str, dimension: int) -> bytes:
    """Return what stands for the pipeline's configuration in every source hash: shape ``(16,)`` bytes."""
    return hashlib.sha256(f"{model}\0{dimension}".encode()).digest()[:16]


def source_hash(config: bytes, text: bytes) -> bytes:
    """Return the hash of ``text`` under the configuration ``config``: 16 bytes."""
    return hashlib.sha256(config + text).digest()[:HASH_BYTES]


def is_blank(value: bytes) -> bool:
    """Tell whether UTF-8 ``value`` is empty or only white space."""
    rest = value.strip()
    if not rest:
        return True
    first = rest[0]
    if 0x20 < first < 0x80:
        return False
    return not rest.decode("utf-8", "replace").strip(BLANKS)


class Composer:
    """Puts the cells of the source columns together into the row's text.

    Args:
        columns: The source columns, in column order.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self._padded = [column.base_type == "bpchar" for column in columns]
        self._parts = [
            (column.name.encode() + b": ", padded) for column, padded in zip(columns, self._padded, strict=True)
        ]
        self._single = len(columns) == 1

    def text(self, cells: Sequence[Cell]) -> bytes | Unchanged | None:
        """Return the text of a row; None where it has none, UNCHANGED where a source cell was not sent.

        The first byte tells at once that most values are not blank: it is a printable ASCII character.
        """
        if self._single:
            cell = cells[0]
            if cell is None or cell is UNCHANGED:
                return cell
            if self._padded[0]:
                cell = cell.rstrip(b" ")
            return cell if b"!" <= cell < b"\x7f" or not is_blank(cell) else None
        lines = []
        for (label, padded), cell in zip(self._parts, cells, strict=True):
            if cell is None:
                continue
            if cell is UNCHANGED:
                return cell
            if b"!" <= cell < b"\x7f" or not is_blank(cell):
                lines.append(label + (cell.rstrip(b" ") if padded else cell))
        return b"\n".join(lines) or None
