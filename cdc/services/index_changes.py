"""Frames of the stream become changes of an index. No thread, no clock: bytes in, changes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from struct import Struct

from cdc.errors import DecodeError, PipelineFault
from cdc.flow.vectorformat import VectorFormat
from cdc.ports.indexes import Indexed
from cdc.rows import UNCHANGED, Cell
from cdc.services.index_journal import Change, Place
from cdc.services.keyed_index import KeyedIndex
from cdc.wire.frames import BODY
from cdc.wire.messages import RelationMessage, Truncate
from cdc.wire.pgoutput import decode
from cdc.wire.relations import Relation
from cdc.wire.tuples import ROUTE_KEY, RowDecoder, route_keys

_BEGIN, _COMMIT, _DELETE = b"B", b"C", b"D"
_BEGIN_BODY = Struct(">QqI").unpack_from
_COMMIT_BODY = Struct(">xQQq").unpack_from


class ChangeReader:
    """Reads what one connection sends.

    ``is_open``: a transaction is under way. ``ended``: the end of the newest one that is complete. ``commit`` and
    ``taken``: the transaction of which a part was taken in, and how many of its row changes were. ``committed_us``:
    when the one under way was committed, by the server's clock. ``tags``: changes by kind, until they are taken.

    Args:
        indexed: The column, as it was when the index was made.
        column: Its name.
        form: How its vectors are sent.
        index: Whose keys they are; rows that it cannot hold are counted there.
        place: What is in already. A transaction that the connection before broke off in comes again whole, and what
            was taken of it is passed over.
    """

    def __init__(self, indexed: Indexed, column: str, form: VectorFormat, index: KeyedIndex, place: Place) -> None:
        self.is_open = False
        self.ended = 0
        self.commit, self.taken = place.commit, place.changes
        self._seen = 0  # row changes of the transaction under way
        self.committed_us = 0
        self.tags: Counter[bytes] = Counter()
        self._indexed = indexed
        self._column = column
        self._format = form
        self._index = index
        self._others: set[int] = set()  # tables that the publication was given by somebody else
        self._decoders: dict[bytes, tuple[bytes, RowDecoder]] = {}
        self._skip = False

    def read(self, frame: bytes, written: int, changes: list[Change]) -> int:
        """Add to ``changes`` what a frame tells; return the end of the transaction that it ends, else 0.

        Args:
            frame: XLogData.
            written: All commits below are in already; what comes of them again is passed over.
            changes: Added to.

        Raises:
            DecodeError: the frame is not what the protocol says.
            PipelineFault: the key changed, or the column was dropped, renamed, or changed its type.
        """
        found = self._decoders.get(frame[ROUTE_KEY])
        if found is None:
            return self._message(frame, written, changes)
        if not self.is_open:
            raise DecodeError("A row change arrived outside a transaction.")
        if not self._skip and self._is_new():
            self._change(found[0], found[1], frame, changes)
        return 0

    def _is_new(self) -> bool:
        """Count a row change of the transaction under way; return whether it is not in yet."""
        self._seen += 1
        if self._seen <= self.taken:
            return False
        self.taken = self._seen
        return True

    def _begin(self, commit: int, written: int) -> None:
        self.is_open = True
        self._skip = commit < written
        self._seen = 0
        if not self._skip and commit != self.commit:
            self.commit, self.taken = commit, 0

    def _message(self, frame: bytes, written: int, changes: list[Change]) -> int:
        tag = frame[BODY : BODY + 1]
        if tag == _BEGIN and len(frame) == BODY + 21:
            lsn, committed, _ = _BEGIN_BODY(frame, BODY + 1)
            self._begin(int(lsn), written)
            self.committed_us = 0 if self._skip else committed
            return 0
        if tag == _COMMIT and len(frame) == BODY + 26:
            self.is_open, self.committed_us = False, 0
            end = int(_COMMIT_BODY(frame, BODY + 1)[1])
            self.ended = max(self.ended, end)
            if self._skip:
                return 0
            self.commit = self.taken = 0
            return end
        message = decode(frame[BODY:])
        if isinstance(message, RelationMessage):
            self._learn(message.relation)
        elif isinstance(message, Truncate) and not self._skip:
            if self._indexed.oid in message.relation_oids and self._is_new():
                changes.append(Change("clear"))
                self.tags[tag] += 1
        elif tag in (b"I", b"U", _DELETE) and int.from_bytes(frame[BODY + 1 : BODY + 5]) not in self._others:
            raise DecodeError("A change does not fit the table that was announced.")
        return 0

    def _learn(self, relation: Relation) -> None:
        """Learn how the table's rows are sent; those of a partition come as rows of the whole table."""
        if relation.oid != self._indexed.oid:
            self._others.add(relation.oid)
            return
        wanted = []
        for column in self._indexed.key:
            place = relation.index_of(column.name)
            if place is None:
                raise PipelineFault(f"Key column {column.name} of {relation.table} was dropped or renamed.")
            if not relation.columns[place].is_key:
                raise PipelineFault(f"The key of {relation.table} was changed.")
            wanted.append(place)
        place = relation.index_of(self._column)
        if place is None:
            raise PipelineFault(f"Column {self._column} of {relation.table} was dropped or renamed.")
        if relation.columns[place].type_oid != self._indexed.type_oid:
            raise PipelineFault(f"Column {self._column} of {relation.table} changed its type.")
        self._decoders.clear()
        decoder = RowDecoder(relation, [*wanted, place])
        for key, tag in route_keys(relation).items():
            self._decoders[key] = (tag, decoder)

    def _change(self, tag: bytes, decoder: RowDecoder, frame: bytes, changes: list[Change]) -> None:
        self.tags[tag] += 1
        if tag == _DELETE:
            changes.append(Change("drop", self._key(decoder.delete(frame))))
            return
        old, new = decoder.update(frame) if tag == b"U" else (None, decoder.insert(frame))
        cells = [
            before if cell is UNCHANGED and old is not None else cell
            for cell, before in zip(new[:-1], (old or new)[:-1], strict=True)
        ]
        key, vector = self._key([*cells, None]), new[-1]
        if old is not None and (before_key := self._key(old)) != key:
            changes.append(Change("rename", before_key, other=key))
        if vector is UNCHANGED:
            return
        values = self._format.from_text(vector) if isinstance(vector, bytes) else None
        if values is not None and self._format.usable(values[None, :])[0]:
            changes.append(Change("put", key, values))
        else:
            self._index.skipped += vector is not None
            changes.append(Change("drop", key))

    def _key(self, cells: Sequence[Cell]) -> int | bytes:
        if any(cell is UNCHANGED for cell in cells[:-1]):
            raise PipelineFault(f"A key of the table that {self._column} is in is too long to come with each change.")
        return self._index.codec.from_cells([cell if isinstance(cell, bytes) else b"" for cell in cells[:-1]])
