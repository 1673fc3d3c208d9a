"""Rows as walvec knows them: a key, and the cells that make the text.

Cells stay ``bytes`` exactly as the server printed them (UTF-8, text format, under pinned output settings) until a
model needs a string: hashing, comparing and copying need no decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

Key = bytes | tuple[bytes, ...]
"""A row's key in the server's text form: the cell itself for one column, a tuple of cells for several."""


class Unchanged(Enum):
    """The marker for a TOASTed cell that an UPDATE did not touch and the server therefore did not send."""

    UNCHANGED = "u"


UNCHANGED: Final = Unchanged.UNCHANGED

Cell = bytes | None | Unchanged
"""A column's value in a tuple: text-format bytes, NULL, or not sent because unchanged."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table by name. Identifiers are as stored in the catalogue, unquoted."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name, the type as SQL would write it (``format_type``), and the type's base name.

    ``base_type`` is the ``pg_type.typname`` under any domain (``text``, ``bpchar``, ``jsonb`` …).
    """

    name: str
    type: str
    base_type: str


def key_cells(key: Key) -> tuple[bytes, ...]:
    """Return the key as a tuple of cells, whatever its width."""
    return key if isinstance(key, tuple) else (key,)
