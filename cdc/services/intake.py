"""Frames of the stream become dirty keys, row counts, and commits in the ledger.

The reader's thread feeds frames, the event loop takes work; whoever touches what they share holds :attr:`Intake.lock`.
Nothing here waits, and nothing here knows the time. A transaction is worked on as it arrives: it is never assembled, so
its size does not matter.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Final

from cdc.errors import DecodeError
from cdc.flow.dirty import Budget, Kind
from cdc.flow.ledger import Commit, Ledger
from cdc.ports import Observer
from cdc.prepare.text import source_hash
from cdc.rows import UNCHANGED, Key, Table
from cdc.services.desk import NO_TEXT, Desk
from cdc.services.lanes import FIRST_CELL, Lane, TableReader
from cdc.wire.frames import BODY, KEEPALIVE, Keepalive, parse_frame, unix_us
from cdc.wire.messages import LogicalMessage, RelationMessage, Truncate
from cdc.wire.pgoutput import decode
from cdc.wire.relations import Relation
from cdc.wire.tuples import ROUTE_KEY, route_keys

PREFIX: Final = "walvec"
OWN: Final = b"own"
"""How the content of a message begins that marks a transaction as a write-back of ours; whose it is follows."""

_INSERT, _UPDATE, _DELETE, _BEGIN, _COMMIT = b"I", b"U", b"D", b"B", b"C"
_BEGIN_BODY = Struct(">QqI").unpack_from
_COMMIT_BODY = Struct(">xQQq").unpack_from
_RUN_KEY = slice(BODY, BODY + 9)  # the route key, and the kind of the first cell
_FIRST_SIZE = Struct(">I").unpack_from
_SEALED_BYTES = 1024
"""Longer rows are read at once: they may hold much that is not text, and all of a sealed row stays in memory."""
# Looking a member of an enumeration up costs more than all else that is done with it.
_OF_INSERT, _OF_UPDATE, _OF_DELETE, _REREAD = Kind.INSERT, Kind.UPDATE, Kind.DELETE, Kind.REREAD


class Intake:
    """What the stream has told, for all pipelines of one consumer.

    Args:
        lock: The lock of all desks.
        budget: What pending work may hold.
        observer: Told of changes, in bulk.
        wake: Called from the reader's thread when keys became dirty.
        heard: Called from the reader's thread when somebody sent a message of ours, or a table's definition changed.
    """

    def __init__(
        self,
        lock: threading.Lock,
        budget: Budget,
        observer: Observer,
        wake: Callable[[], None],
        heard: Callable[[], None],
    ) -> None:
        self.lock = lock
        self.budget = budget
        self.ledger = Ledger()
        self.gap = ""
        self.ack_limit = 0
        self._observer = observer
        self._wake = wake
        self._heard = heard
        self._lanes: dict[Table, list[Lane]] = {}
        self._relations: dict[int, Relation] = {}
        self._readers: dict[bytes, tuple[bytes, TableReader]] = {}
        self._shared: dict[bytes, list[TableReader]] = {}  # of tables that several pipelines read
        self._runs: dict[bytes, TableReader] = {}
        self._by_oid: dict[int, list[TableReader]] = {}
        self._commit: Commit | None = None
        self._last_xid = 0
        self._own = b""
        self._changed: Counter[tuple[str, str]] = Counter()
        self._coalesced: Counter[str] = Counter()
        self._inserting: list[TableReader] = []
        self._touched: set[int] = set()
        self._counting: list[Desk] = []

    # -- from the event loop ----------------------------------------------------------------------------------------

    def attach(self, lanes: Sequence[Lane]) -> int:
        """Follow these pipelines from here on, and no others; return the xid of the newest transaction heard of.

        Changes that came before belong to scans: a scan must wait until that transaction is visible.
        """
        with self.lock:
            self._lanes = {}
            for lane in lanes:
                for table in lane.route.streamed_as:
                    self._lanes.setdefault(table, []).append(lane)
            self._forget_readers()
            # A pipeline that ended must not be counted for when the open transaction ends: nobody would settle it.
            attached = {id(lane.desk) for lane in lanes}
            self._counting = [desk for desk in self._counting if id(desk) in attached]
            self._touched &= attached
            for relation in self._relations.values():
                self._learn(relation)
            return self._commit.xid if self._commit is not None else self._last_xid

    def reset(self) -> None:
        """Begin anew with a new connection: what was not acknowledged will be sent again."""
        with self.lock:
            self.ledger = Ledger()
            self.gap = ""
            self.ack_limit = 0  # what was reserved was reserved for the connection that ended
            self._relations.clear()
            self._forget_readers()
            self._commit = None
            self._own = b""
            self._inserting.clear()
            for desk in {id(lane.desk): lane.desk for lanes in self._lanes.values() for lane in lanes}.values():
                desk.dirty.disconnect()
                desk.count.forget()
                desk.gaps.clear()
            # Desks that were let go before still had their share: nothing of them is pending any more.
            self.budget.rows = self.budget.text_bytes = 0

    def _forget_readers(self) -> None:
        self._readers.clear()
        self._shared.clear()
        self._runs.clear()
        self._by_oid.clear()

    def acknowledged(self) -> int:
        """Return the furthest position that may be acknowledged; none while a gap is not durably known.

        ``ack_limit`` is durably reserved: a slot that stands beyond it was moved by somebody else.
        """
        with self.lock:
            return 0 if self.gap else min(self.ledger.acknowledged, self.ack_limit)

    def received(self) -> int:
        """Return the end of what has been received."""
        with self.lock:
            return self.ledger.received

    @property
    def is_full(self) -> bool:
        """Whether reading should pause until keys have gone to the durable queue."""
        return self.budget.rows > self.budget.max_rows + self.budget.max_rows // 4 + 10_000

    # -- from the reader's thread -----------------------------------------------------------------------------------

    def missed(self, what: str) -> None:
        """Note that changes were skipped: nothing is acknowledged until a reconcile is durably due."""
        with self.lock:
            self.gap = what
        self._heard()

    def feed(self, frames: Sequence[bytes]) -> list[Keepalive]:
        """Take frames in, in order; return the keepalives among them.

        Raises:
            DecodeError: a frame is not what the protocol says. Nothing may be skipped, so the connection must end.
        """
        keepalives: list[Keepalive] = []
        with self.lock:
            find, find_run = self._readers.get, self._runs.get
            run: list[bytes] = []
            running: TableReader | None = None
            for frame in frames:
                reader = find_run(frame[_RUN_KEY])  # a keepalive ends before the place of a route key
                if reader is not None and len(frame) <= _SEALED_BYTES:
                    if reader is not running:
                        self._insert_run(running, run)
                        run, running = [], reader
                    run.append(frame)
                    continue
                if running is not None:
                    self._insert_run(running, run)
                    run, running = [], None
                found = find(frame[ROUTE_KEY])
                if found is not None:
                    if found[0] == _INSERT:
                        self._insert(found[1], frame)
                    else:
                        self._change(found[0], found[1], frame)
                elif frame[0] == KEEPALIVE:
                    keepalive = parse_frame(frame)
                    assert isinstance(keepalive, Keepalive)
                    self.ledger.keepalive(keepalive.wal_end)
                    keepalives.append(keepalive)
                else:
                    self._message(frame)
            self._insert_run(running, run)
            self._tally()
        self._report()
        return keepalives

    def _insert_run(self, reader: TableReader | None, run: list[bytes]) -> None:
        """Take in Inserts of one table that came in a row, for all who read it."""
        if reader is not None:
            self._insert_all(reader, run)
            for other in reader.beside:
                self._insert_all(other, run)

    def _insert_all(self, reader: TableReader, run: list[bytes]) -> None:
        """Take in Inserts for one lane, unread where that will do."""
        desk, commit = reader.lane.desk, self._commit
        if commit is not None and commit.lsn > desk.replay_until and not self._own and not desk.rounds:
            sizes = [_FIRST_SIZE(frame, FIRST_CELL + 1)[0] for frame in run if len(frame) >= FIRST_CELL + 5]
            begin = FIRST_CELL + 5
            keys = [frame[begin : begin + size] for frame, size in zip(run, sizes, strict=False)]
            whole = len(keys) == len(run) and sum(map(len, keys)) == sum(sizes)
            if whole and desk.dirty.insert(keys, run, reader.sealed_text, commit):
                if not reader.inserted:
                    self._inserting.append(reader)
                reader.inserted += len(run)
                return
        for frame in run:
            self._insert(reader, frame)

    def _insert(self, reader: TableReader, frame: bytes) -> None:
        """Take in an Insert: a backlog consists of them, so the way is short."""
        commit = self._commit
        if commit is None:
            raise DecodeError("A row change arrived outside a transaction.")
        cells = reader.decoder.last_tuple(frame, FIRST_CELL)
        if not reader.inserted:
            self._inserting.append(reader)
        reader.inserted += 1
        lane = reader.lane
        desk, key = lane.desk, reader.key(cells)
        text = lane.composer.text(cells[reader.width :]) if reader.has_text else UNCHANGED
        if text is UNCHANGED:
            self._mark(desk, key, _REREAD, None, commit)
        else:
            self._text(desk, key, _OF_INSERT, text, commit)

    def _change(self, op: bytes, reader: TableReader, frame: bytes) -> None:
        commit = self._commit
        if commit is None:
            raise DecodeError("A row change arrived outside a transaction.")
        lane, width = reader.lane, reader.width
        desk = lane.desk
        if op == _DELETE:
            self._mark(desk, reader.key(reader.decoder.delete(frame)), _OF_DELETE, None, commit)
            self._count(desk, commit, -1)
            self._changed[desk.name, "delete"] += 1
            return
        old, cells = reader.decoder.update(frame)
        self._changed[desk.name, "update"] += 1
        key = reader.key(cells, old)
        if old is not None:
            before = reader.key(old)
            if before != key:
                # Keys that print differently may still be equal (1.0 and 1.00): only the table can tell.
                self._mark(desk, before, _REREAD, None, commit)
        texts = cells[width:]
        text = lane.composer.text(texts) if reader.has_text else UNCHANGED
        if text is not UNCHANGED:
            self._text(desk, key, _OF_UPDATE, text, commit)
            return
        moved = old is not None and reader.key(old) != key
        if moved or not reader.has_text or any(cell is not UNCHANGED for cell in texts):
            self._mark(desk, key, _REREAD, None, commit)

    def _text(self, desk: Desk, key: Key, kind: Kind, text: bytes | None, commit: Commit) -> None:
        """Mark a row whose text came with the change, unless it is the pipeline's own write-back.

        A write-back of another pipeline is a change like any other: its column may be this one's text.
        """
        if desk.expected and self._own == desk.mark:
            if self._is_echo(desk, key, text):
                return
        elif desk.rounds and not self._own:
            desk.rounds.pop(key, None)  # the user's own change: it counts anew
        self._mark(desk, key, kind, text, commit)

    def _mark(self, desk: Desk, key: Key, kind: Kind, text: bytes | None, commit: Commit) -> None:
        if commit.lsn <= desk.replay_until:
            kind, text = _REREAD, None
        if desk.dirty.mark(key, kind, text, commit):
            self._coalesced[desk.name] += 1

    def _is_echo(self, desk: Desk, key: Key, text: bytes | None) -> bool:
        """Tell whether a change is our own write-back seen again; count the times that it is not, for the same key."""
        expected = desk.expected.pop(key, None)
        if expected is None:
            return False
        if (NO_TEXT if text is None else source_hash(desk.fingerprint, text)) == expected:
            desk.rounds.pop(key, None)
            return True
        desk.rounds[key] = desk.rounds.get(key, 0) + 1
        return False

    def _tally(self) -> None:
        """Count the rows inserted since the last time: one addition for many rows."""
        commit = self._commit
        for reader in self._inserting:
            desk, rows = reader.lane.desk, reader.inserted
            reader.inserted = 0
            self._changed[desk.name, "insert"] += rows
            if commit is not None:
                self._count(desk, commit, rows)
        self._inserting.clear()

    def _count(self, desk: Desk, commit: Commit, difference: int) -> None:
        desk.count.add(commit, difference)
        if id(desk) not in self._touched:
            self._touched.add(id(desk))
            self._counting.append(desk)

    def _message(self, frame: bytes) -> None:
        tag = frame[BODY : BODY + 1]
        if tag == _BEGIN and len(frame) == BODY + 21:
            lsn, time, xid = _BEGIN_BODY(frame, BODY + 1)
            self._commit = self.ledger.begin(lsn, xid, unix_us(time))
            self._own = b""
        elif tag == _COMMIT and len(frame) == BODY + 26:
            self._end(_COMMIT_BODY(frame, BODY + 1)[1])
        elif tag in (_INSERT, _UPDATE, _DELETE):
            self._row(tag, frame)
        else:
            self._other(frame)

    def _row(self, tag: bytes, frame: bytes) -> None:
        """Take in a row that no reader has by itself: several share its table, or nobody follows it."""
        for reader in self._shared.get(frame[ROUTE_KEY]) or self._misfit(frame):
            if tag == _INSERT:
                self._insert(reader, frame)
            else:
                self._change(tag, reader, frame)

    def _misfit(self, frame: bytes) -> list[TableReader]:
        readers = self._by_oid.get(int.from_bytes(frame[BODY + 1 : BODY + 5]), [])
        if readers:  # a table that is followed, and a row that does not fit it: nothing may be skipped
            decode(frame[BODY:])
            raise DecodeError(f"A change of {readers[0].lane.desk.name} does not fit the table that was announced.")
        return readers

    def _other(self, frame: bytes) -> None:
        message = decode(frame[BODY:])
        if isinstance(message, RelationMessage):
            known = self._relations.get(message.relation.oid)
            self._relations[message.relation.oid] = message.relation
            self._learn(message.relation)
            if known is not None and known != message.relation:
                self._heard()
        elif isinstance(message, Truncate):
            for oid in message.relation_oids:
                self._truncate(oid)
        elif isinstance(message, LogicalMessage) and message.prefix == PREFIX:
            if message.content.startswith(OWN):
                self._own = message.content if message.transactional else b""
            else:
                self._heard()

    def _truncate(self, oid: int) -> None:
        readers, commit = self._by_oid.get(oid, []), self._commit
        if not readers or commit is None:
            return
        self._tally()  # what the same transaction had inserted before is gone as well
        for reader in readers:
            self._truncate_lane(reader, commit)

    def _truncate_lane(self, reader: TableReader, commit: Commit) -> None:
        desk = reader.lane.desk
        self._changed[desk.name, "truncate"] += 1
        if len(reader.lane.route.streamed_as) == 1:
            desk.dirty.truncate(commit)
            desk.count.truncate(commit)
            if id(desk) not in self._touched:
                self._touched.add(id(desk))
                self._counting.append(desk)
        else:  # one partition of several: which keys it held, only a scan can say
            commit.outstanding += 1
            desk.gaps.append(commit)
            self._heard()

    def _end(self, end_lsn: int) -> None:
        commit = self._commit
        if commit is None:
            return
        self._tally()
        for desk in self._counting:
            desk.count.close(commit)
        self._counting.clear()
        self._touched.clear()
        self.ledger.end(end_lsn)
        self._last_xid = commit.xid
        self._commit = None

    def _learn(self, relation: Relation) -> None:
        """Make or renew the readers of a table. Rows are found by tag, table, kind of tuple and number of columns."""
        oid = relation.oid
        for known in [key for key in (*self._readers, *self._shared) if key[1:5] == oid.to_bytes(4)]:
            self._readers.pop(known, None)
            self._shared.pop(known, None)
            self._runs.pop(known + b"t", None)
        self._by_oid.pop(oid, None)
        readers = [TableReader(relation, lane) for lane in self._lanes.get(relation.table, ())]
        # Where a key column is gone, the catalogue says so too, and a scan follows once it is mended.
        readers = [reader for reader in readers if reader.readable]
        if not readers:
            return
        first = readers[0]
        first.beside = tuple(readers[1:])
        self._by_oid[oid] = readers
        for route, tag in route_keys(relation).items():
            if first.beside:
                self._shared[route] = readers
            else:
                self._readers[route] = (tag, first)
            if tag == _INSERT and all(reader.key_first for reader in readers):
                self._runs[route + b"t"] = first

    def _report(self) -> None:
        if self._changed:
            for (name, op), rows in self._changed.items():
                self._observer.changes(name, op, rows)
            self._changed.clear()
            self._wake()
        if self._coalesced:
            for name, rows in self._coalesced.items():
                self._observer.coalesced(name, rows)
            self._coalesced.clear()
