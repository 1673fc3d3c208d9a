"""Several pipelines that read one table: each has all of its changes, counts them, and knows its own writes alone."""

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
from tests.services.test_intake import OID, insert, relation, update

ID = (Column("id", "integer", "int4"),)


class Shared:
    """An intake with a pipeline per text column of one table."""

    def __init__(self, *columns: str) -> None:
        lock = threading.Lock()
        self.budget = Budget(1 << 20, 10_000)
        self.intake = Intake(lock, self.budget, Tally(), lambda: None, lambda: None)
        self.desks = [
            Desk(name, lock, DirtyKeys(self.budget), SourceCount(), name.encode(), b"own %d" % id)
            for id, name in enumerate(columns)
        ]
        self.lanes = [
            Lane(desk, Route((Table("public", "notes"),), ID, (Column(desk.name, "text", "text"),)))
            for desk in self.desks
        ]
        self.intake.attach(self.lanes)
        self.lsn = 1_000

    def send(self, *changes: m.Message) -> None:
        self.lsn += 100
        self.intake.feed(
            walbytes.transaction(changes, xid=self.lsn, commit_lsn=self.lsn, end_lsn=self.lsn + 8, commit_us=1)
        )

    def taken(self, index: int) -> list[tuple[object, Kind, bytes | None]]:
        desk = self.desks[index]
        works = desk.dirty.take(1000, 1 << 20)
        for work in works:
            desk.dirty.settle(work)
        desk.count.persisted(desk.count.counted)
        return [(work.key, work.kind, work.text) for work in works]


@pytest.fixture
def shared() -> Shared:
    it = Shared("title", "body")
    it.send(relation())
    return it


def test_each_has_its_own_text_and_a_commit_waits_for_all(shared):
    shared.send(insert(b"1", b"t", b"b"), update(b"2", b"t2", UNCHANGED))
    assert shared.taken(0) == [(b"1", Kind.INSERT, b"t"), (b"2", Kind.UPDATE, b"t2")]
    assert shared.intake.ledger.oldest is not None, "the other pipeline has not settled it"
    assert shared.taken(1) == [(b"1", Kind.INSERT, b"b")], "its column was not sent, so it did not change"
    assert shared.intake.ledger.oldest is None


def test_a_run_of_inserts_reaches_all(shared):
    rows = [insert(b"%d" % key, b"t%d" % key, b"b%d" % key) for key in range(500)]
    shared.send(*rows)
    assert shared.taken(0) == [(b"%d" % key, Kind.INSERT, b"t%d" % key) for key in range(500)]
    assert shared.taken(1) == [(b"%d" % key, Kind.INSERT, b"b%d" % key) for key in range(500)]
    assert [desk.count.counted.rows for desk in shared.desks] == [500, 500]


def test_a_run_that_one_of_them_must_read_row_by_row(shared):
    shared.desks[1].replay_until = shared.lsn + 100
    shared.send(insert(b"1", b"t", b"b"), insert(b"2", b"t", b"b"))
    assert shared.taken(0) == [(b"1", Kind.INSERT, b"t"), (b"2", Kind.INSERT, b"t")]
    assert shared.taken(1) == [(b"1", Kind.REREAD, None), (b"2", Kind.REREAD, None)]


def test_deletes_and_truncations_are_counted_by_each(shared):
    shared.send(*(insert(b"%d" % key, b"t", b"b") for key in range(3)))
    for index in (0, 1):
        shared.taken(index)
    shared.send(m.Delete(None, OID, m.OldTuple(True, (b"1", None, None))))
    assert [shared.taken(index) for index in (0, 1)] == [[(b"1", Kind.DELETE, None)]] * 2
    shared.send(m.Truncate(None, (OID,), False, False), insert(b"7", b"t", b"b"))
    assert [desk.count.counted.rows for desk in shared.desks] == [1, 1]
    assert all(desk.dirty.truncation is not None for desk in shared.desks)


def test_the_write_of_one_is_a_change_to_the_other(shared):
    for desk, text in zip(shared.desks, (b"t", b"b"), strict=True):
        desk.expect(b"1", source_hash(desk.fingerprint, text))
    shared.desks[1].rounds[b"1"] = 2
    shared.send(m.LogicalMessage(None, True, Lsn(5), "walvec", b"own 0"), update(b"1", b"t", b"changed"))
    assert shared.taken(0) == [], "its own write"
    assert shared.taken(1) == [(b"1", Kind.UPDATE, b"changed")], "the column that it reads was written by another"
    assert shared.desks[1].rounds == {b"1": 2}, "neither its own answer nor the user's change"
    assert b"1" in shared.desks[1].expected


def test_one_that_leaves_takes_nothing_along(shared):
    shared.intake.attach(shared.lanes[:1])
    shared.send(insert(b"1", b"t", b"b"))
    assert [len(shared.taken(index)) for index in (0, 1)] == [1, 0]
    shared.intake.attach(shared.lanes)
    shared.send(insert(b"2", b"t", b"b"))
    assert [len(shared.taken(index)) for index in (0, 1)] == [1, 1]


def test_a_row_that_fits_nobody_is_never_skipped(shared):
    with pytest.raises(DecodeError):
        shared.send(insert(b"1", b"t"))


def test_a_new_connection_begins_with_nothing_pending(shared):
    shared.send(insert(b"1", b"t", b"b"))
    shared.intake.reset()
    assert [desk.dirty.rows for desk in shared.desks] == [0, 0] and shared.budget.rows == 0
    shared.send(relation())
    shared.send(insert(b"1", b"t", b"b"))
    assert [len(shared.taken(index)) for index in (0, 1)] == [1, 1]
