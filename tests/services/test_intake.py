"""What the stream says becomes dirty keys, counts and commits: bytes in, decisions out."""

from __future__ import annotations

import threading

import pytest

from cdc.errors import DecodeError
from cdc.flow.counts import SourceCount
from cdc.flow.dirty import Budget, DirtyKeys, Kind
from cdc.lsn import Lsn
from cdc.ports import Route
from cdc.prepare.text import source_hash
from cdc.rows import UNCHANGED, Column, Table
from cdc.services.desk import Desk
from cdc.services.intake import Intake
from cdc.services.lanes import Lane
from cdc.testing import walbytes
from cdc.testing.twins import Tally
from cdc.wire import messages as m
from cdc.wire.relations import Relation, RelationColumn, ReplicaIdentity

OID = 16_384


def relation(
    oid: int = OID, name: str = "notes", columns=("id", "title", "body"), full: bool = False
) -> m.RelationMessage:
    described = tuple(RelationColumn(c, 25, -1, c == "id" or full) for c in columns)
    identity = ReplicaIdentity.FULL if full else ReplicaIdentity.DEFAULT
    return m.RelationMessage(None, Relation(oid, "public", name, identity, described))


class Stream:
    """An intake with one pipeline, fed one transaction after the other."""

    def __init__(self, streamed_as=("notes",), text=("title", "body")) -> None:
        lock = threading.Lock()
        self.tally, self.heard, self.woken = Tally(), 0, 0
        self.budget = Budget(10_000, 1_000)
        self.intake = Intake(lock, self.budget, self.tally, self._wake, self._hear)
        self.desk = Desk("public.notes", lock, DirtyKeys(self.budget), SourceCount(), b"twin")
        route = Route(
            tuple(Table("public", name) for name in streamed_as),
            (Column("id", "integer", "int4"),),
            tuple(Column(name, "text", "text") for name in text),
        )
        self.intake.attach([Lane(self.desk, route)])
        self.lsn = 1_000

    def _wake(self) -> None:
        self.woken += 1

    def _hear(self) -> None:
        self.heard += 1

    def frames(self, *changes: m.Message) -> list[bytes]:
        self.lsn += 100
        return walbytes.transaction(changes, xid=self.lsn, commit_lsn=self.lsn, end_lsn=self.lsn + 8, commit_us=1)

    def send(self, *changes: m.Message) -> None:
        self.intake.feed(self.frames(*changes))

    def taken(self) -> list[tuple[object, Kind, bytes | None]]:
        works = self.desk.dirty.take(100, 1 << 20)
        for work in works:
            self.desk.dirty.settle(work)
        return [(work.key, work.kind, work.text) for work in works]


@pytest.fixture
def stream() -> Stream:
    it = Stream()
    it.send(relation())
    return it


def insert(*cells, oid: int = OID) -> m.Insert:
    return m.Insert(None, oid, cells)


def update(*cells, old=None, key_only: bool = True) -> m.Update:
    return m.Update(None, OID, m.OldTuple(key_only, old) if old else None, cells)


def delete(*cells, key_only: bool = True) -> m.Delete:
    return m.Delete(None, OID, m.OldTuple(key_only, cells))


def test_an_insert_brings_its_text(stream):
    stream.send(insert(b"1", b"t", b"b"), insert(b"2", None, b"  "))
    assert stream.taken() == [(b"1", Kind.INSERT, b"title: t\nbody: b"), (b"2", Kind.INSERT, None)]
    assert stream.tally.heard["insert"] == 2 and stream.woken


def test_an_update_that_left_a_long_value_out_is_read_again(stream):
    stream.send(update(b"1", b"new", UNCHANGED))
    assert stream.taken() == [(b"1", Kind.REREAD, None)]


def test_an_update_that_left_all_texts_out_changed_nothing(stream):
    stream.send(update(b"1", UNCHANGED, UNCHANGED))
    assert stream.taken() == [] and stream.intake.ledger.oldest is None


def test_an_update_that_left_all_texts_out_but_moved_the_row_changed_the_row(stream):
    stream.send(update(b"2", UNCHANGED, UNCHANGED, old=(b"1", None, None)))
    assert sorted(stream.taken()) == [(b"1", Kind.REREAD, None), (b"2", Kind.REREAD, None)]


def test_a_change_of_the_key_touches_both_keys(stream):
    stream.send(update(b"2", b"t", b"b", old=(b"1", None, None)))
    assert stream.taken() == [(b"1", Kind.REREAD, None), (b"2", Kind.UPDATE, b"title: t\nbody: b")]


def test_full_identity_brings_the_old_row_and_only_the_key_counts():
    stream = Stream()
    stream.send(relation(full=True))
    stream.send(update(b"1", b"new", b"b", old=(b"1", b"old", b"b"), key_only=False))
    stream.send(delete(b"2", b"t", b"b", key_only=False))
    assert stream.taken() == [(b"1", Kind.UPDATE, b"title: new\nbody: b"), (b"2", Kind.DELETE, None)]


def test_a_column_that_the_table_did_not_have_yet_is_read_from_the_table():
    stream = Stream()
    stream.send(relation(columns=("id", "title")))
    stream.send(insert(b"1", b"t"))
    assert stream.taken() == [(b"1", Kind.REREAD, None)]


def test_rows_are_counted_at_the_end_of_their_transaction(stream):
    frames = stream.frames(insert(b"1", b"t", b"b"), insert(b"2", b"t", b"b"), delete(b"1", None, None))
    stream.intake.feed(frames[:-1])
    assert stream.desk.count.counted.rows == 0
    stream.intake.feed(frames[-1:])
    assert stream.desk.count.counted.rows == 1


def test_a_commit_is_not_settled_before_its_count_is_durable(stream):
    stream.send(insert(b"1", b"t", b"b"))
    assert len(stream.taken()) == 1 and stream.intake.ledger.oldest is not None
    stream.desk.count.persisted(stream.desk.count.counted)
    assert stream.intake.ledger.oldest is None


def test_a_truncation_voids_what_came_before_it_in_the_same_transaction_too(stream):
    stream.send(insert(b"1", b"t", b"b"), m.Truncate(None, (OID,), False, False), insert(b"2", b"t", b"b"))
    assert stream.desk.count.counted.rows == 1
    commit = stream.desk.dirty.truncation
    assert commit is not None and stream.taken() == []
    stream.desk.dirty.truncated(commit)
    assert [work[0] for work in stream.taken()] == [b"2"]


def test_a_truncated_partition_of_several_needs_a_scan_and_holds_the_log_until_one_is_due():
    stream = Stream(streamed_as=("notes_a", "notes_b"))
    stream.send(relation(1, "notes_a"), relation(2, "notes_b"))
    stream.send(insert(b"1", b"t", b"b", oid=1), insert(b"2", b"t", b"b", oid=2))
    assert len(stream.taken()) == 2
    stream.desk.count.persisted(stream.desk.count.counted)
    stream.send(m.Truncate(None, (1,), False, False))
    assert len(stream.desk.gaps) == 1 and stream.desk.dirty.truncation is None and stream.heard
    assert stream.intake.ledger.oldest is stream.desk.gaps[0]


def test_a_replayed_commit_is_read_from_the_table(stream):
    stream.desk.replay_until = stream.lsn + 100
    stream.send(insert(b"1", b"t", b"b"), delete(b"2", None, None))
    stream.send(insert(b"3", b"t", b"b"))
    kinds = [(key, kind) for key, kind, _ in stream.taken()]
    assert kinds == [(b"1", Kind.REREAD), (b"2", Kind.REREAD), (b"3", Kind.INSERT)]


def test_our_own_write_comes_back_and_is_known_by_its_hash(stream):
    own = m.LogicalMessage(None, True, Lsn(5), "walvec", b"own")
    stream.desk.expect(b"1", source_hash(b"twin", b"title: t\nbody: b"))
    stream.desk.expect(b"2", source_hash(b"twin", b"title: t\nbody: b"))
    stream.send(own, update(b"1", b"t", b"b"), update(b"2", b"by a trigger", b"b"))
    assert stream.taken() == [(b"2", Kind.UPDATE, b"title: by a trigger\nbody: b")]
    assert stream.desk.rounds == {b"2": 1}
    stream.desk.expect(b"1", source_hash(b"twin", b"title: t\nbody: b"))
    stream.send(update(b"1", b"t", b"b"))  # the same text, but not our transaction
    assert [work[0] for work in stream.taken()] == [b"1"]


def test_other_messages_of_ours_are_heard_and_those_of_others_are_not(stream):
    before = stream.heard
    stream.send(m.LogicalMessage(None, True, Lsn(5), "other", b"own"))
    assert stream.heard == before
    stream.send(m.LogicalMessage(None, True, Lsn(5), "walvec", b"sync"))
    assert stream.heard > before


def test_nothing_is_acknowledged_over_a_gap_nor_beyond_what_is_reserved(stream):
    stream.intake.ack_limit = 1 << 40
    stream.intake.feed([walbytes.keepalive(5_000)])
    assert stream.intake.acknowledged() == 5_000
    stream.intake.ack_limit = 4_000
    assert stream.intake.acknowledged() == 4_000
    stream.intake.missed("changes were skipped")
    assert stream.intake.acknowledged() == 0 and stream.heard


def test_a_new_connection_starts_with_nothing_reserved_and_nothing_pending(stream):
    stream.intake.ack_limit = 1 << 40
    stream.intake.feed(stream.frames(insert(b"1", b"t", b"b"))[:-1])  # cut off
    stream.intake.reset()
    assert (stream.intake.ack_limit, stream.intake.acknowledged(), stream.desk.dirty.rows) == (0, 0, 0)
    assert (stream.budget.rows, stream.budget.text_bytes) == (0, 0)
    stream.send(relation())
    stream.send(insert(b"1", b"t", b"b"))
    assert stream.desk.count.counted.rows == 1 and len(stream.taken()) == 1


def test_tables_that_nobody_follows_are_passed_over(stream):
    stream.send(relation(99, "strangers"), insert(b"1", b"t", b"b", oid=99))
    assert stream.taken() == [] and stream.intake.ledger.oldest is None


def test_a_row_that_does_not_fit_its_table_is_never_skipped(stream):
    with pytest.raises(DecodeError):
        stream.send(insert(b"1", b"t"))


def test_a_change_outside_a_transaction_is_refused(stream):
    with pytest.raises(DecodeError):
        stream.intake.feed(stream.frames(update(b"1", b"t", b"b"))[1:2])


def test_hot_keys_coalesce(stream):
    for n in range(50):
        stream.send(update(b"1", b"%d" % n, b"b"))
    assert stream.tally.heard["coalesced"] == 49
    assert stream.taken() == [(b"1", Kind.UPDATE, b"title: 49\nbody: b")]
