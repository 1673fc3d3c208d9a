"""A pipeline as the stream sees it, and what reads a table's changes for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cdc.errors import DecodeError
from cdc.ports import Route
from cdc.prepare.text import Composer
from cdc.rows import UNCHANGED, Cell, Key, Unchanged
from cdc.services.desk import Desk
from cdc.wire.frames import BODY
from cdc.wire.relations import Relation
from cdc.wire.tuples import RowDecoder

FIRST_CELL: Final = BODY + 8
"""Where the first cell of an Insert stands in its frame."""


@dataclass(slots=True)
class Lane:
    """A pipeline as the stream sees it."""

    desk: Desk
    route: Route
    composer: Composer = field(init=False)

    def __post_init__(self) -> None:
        """Make the composer of the route's text."""
        self.composer = Composer(self.route.text)


class TableReader:
    """Reads one table's changes for one lane: the key's cells first, then the text's.

    ``inserted`` counts rows that the desk has not been told of yet. ``beside`` are the readers of the table's other
    lanes, at the first of them.
    """

    def __init__(self, relation: Relation, lane: Lane) -> None:
        names = {name: index for index, name in enumerate(relation.column_names)}
        key = [names.get(column.name) for column in lane.route.key]
        text = [names.get(column.name) for column in lane.route.text]
        self.lane = lane
        self.width = len(key)
        self.readable = None not in key
        # A column that the table did not have yet: the row is read from the table, as it is now.
        self.has_text = None not in text
        wanted = [index for index in (*key, *(text if self.has_text else ())) if index is not None]
        self.decoder = RowDecoder(relation, wanted if self.readable else ())
        self.inserted = 0
        self.beside: tuple[TableReader, ...] = ()
        # Whether the key is the first cell, so that it can be had without reading the row.
        self.key_first = self.readable and self.has_text and key == [0]

    def sealed_text(self, row: bytes) -> bytes | Unchanged | None:
        """Return the text of an Insert; UNCHANGED where the row must be read from its table."""
        try:
            cells = self.decoder.last_tuple(row, FIRST_CELL)
        except DecodeError:
            return UNCHANGED
        return self.lane.composer.text(cells[1:])

    def key(self, cells: Sequence[Cell], old: Sequence[Cell] | None = None) -> Key:
        """Return the key of a row; a cell too long to be sent again is taken from the old tuple."""
        if self.width == 1:
            cell = cells[0]
            if cell is UNCHANGED or cell is None:
                cell = old[0] if old is not None else b""
            return cell if isinstance(cell, bytes) else b""
        whole = [
            (old[i] if cell is UNCHANGED and old is not None else cell) for i, cell in enumerate(cells[: self.width])
        ]
        return tuple(cell if isinstance(cell, bytes) else b"" for cell in whole)
