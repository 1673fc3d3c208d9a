"""Rows that are inserted in a row are kept as they came: nobody may notice, but for the speed."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cdc.errors import DecodeError
from cdc.flow.counts import SourceCount
from cdc.flow.dirty import SEALED_BYTES, Budget, DirtyKeys, Kind, Work
from cdc.ports import Route
from cdc.rows import Column, Table
from cdc.services.desk import Desk
from cdc.services.intake import Intake
from cdc.services.lanes import Lane
from cdc.telemetry.metrics import Metrics
from cdc.testing.walbytes import encode, transaction, xlog_data
from cdc.wire.messages import Delete, Insert, Message, OldTuple, RelationMessage, Truncate, Update
from cdc.wire.relations import Relation, RelationColumn, ReplicaIdentity

OID = 16384
RELATION = Relation(
    OID, "public", "notes", ReplicaIdentity.DEFAULT,
    (RelationColumn("id", 23, -1, True), RelationColumn("a", 25, -1, False), RelationColumn("b", 25, -1, False)),
)  # fmt: skip
ROUTE = Route(
    (Table("public", "notes"),),
    (Column("id", "integer", "int4"),),
    (Column("a", "text", "text"), Column("b", "text", "text")),
)


class Side:
    """An intake, its desk and its budget."""

    def __init__(self, *, sealing: bool, max_text_bytes: int) -> None:
        lock = threading.Lock()
        self.budget = Budget(max_text_bytes, 1000)
        self.desk = Desk("public.notes", lock, DirtyKeys(self.budget), SourceCount(), fingerprint=b"f")
        self.intake = Intake(lock, self.budget, Metrics(), lambda: None, lambda: None)
        self.intake.attach([Lane(self.desk, ROUTE)])
        self.sealing = sealing
        self.taken: list[Work] = []

    def feed(self, frames: list[bytes]) -> None:
        if not self.sealing:
            for frame in frames:  # no two inserts in one hand-over, and none of them kept sealed
                self.intake._runs.clear()
                self.intake.feed([frame])
        else:
            self.intake.feed(frames)

    def state(self) -> object:
        dirty = self.desk.dirty
        return (dirty.rows, dirty.inflight_rows, self.budget.rows, self.intake.ledger.acknowledged,
                self.desk.count.counted)  # fmt: skip


texts = st.sampled_from([None, b"", b" ", b"short", "ü ".encode(), b"x" * 1200])
keys = st.integers(1, 5).map(lambda key: b"%d" % key)
inserts = st.builds(lambda key, a, b: Insert(None, OID, (key, a, b)), keys, texts, texts)
changes = st.one_of(
    inserts, inserts, inserts,
    st.builds(lambda key, a: Update(None, OID, None, (key, a, b"b")), keys, texts),
    st.builds(lambda key: Delete(None, OID, OldTuple(True, (key, None, None))), keys),
    st.just(Truncate(None, (OID,), False, False)),
)  # fmt: skip
commits = st.tuples(st.just("commit"), st.lists(changes, min_size=1, max_size=6))
steps = st.lists(
    st.one_of(
        commits,
        commits,
        commits,
        st.tuples(st.just("take"), st.integers(1, 8)),
        st.tuples(st.just("settle"), st.just(0)),
        st.tuples(st.just("requeue"), st.just(0)),
        st.tuples(st.just("truncated"), st.just(0)),
    ),
    min_size=3,
    max_size=25,
)


def apply(side: Side, step: str, argument: Any, frames: list[bytes]) -> object:
    dirty = side.desk.dirty
    if step == "commit":
        side.feed(frames)
    elif step == "take":
        works = dirty.take(argument, 1 << 20)
        side.taken += works
        return [(work.key, work.kind, work.text, work.lsn, work.since_us) for work in works]
    elif step == "truncated" and dirty.truncation is not None:
        dirty.truncated(dirty.truncation)
    elif step in ("settle", "requeue") and side.taken:
        getattr(dirty, step)(side.taken.pop(0))
    return None


@given(steps)
@example(  # a change that waits for its key to land, and a row of the same key after it
    [
        ("commit", [Insert(None, OID, (b"1", b"first", None))]),
        ("take", 1),
        ("commit", [Update(None, OID, None, (b"1", b"second", None))]),
        ("take", 1),
        ("commit", [Insert(None, OID, (b"1", b"third", None))]),
        ("settle", 0),
        ("take", 1),
    ]
)
def test_sealing_changes_nothing_that_can_be_seen(history):
    sides = [Side(sealing=sealing, max_text_bytes=1 << 30) for sealing in (True, False)]
    first: list[Message] = [RelationMessage(None, RELATION)]
    for number, (step, argument) in enumerate(history, start=1):
        frames = []
        if step == "commit":
            messages, first = [*first, *argument], []
            lsn = number * 1000
            frames = transaction(messages, xid=number, commit_lsn=lsn, end_lsn=lsn + 8, commit_us=number)
        mine, reference = (apply(side, step, argument, frames) for side in sides)
        assert mine == reference
        assert sides[0].state() == sides[1].state()
    sealed = sides[0]
    sealed.desk.dirty.clear()
    assert sealed.budget.text_bytes == sealed.budget.rows == 0


def commit_of(*rows: bytes) -> list[bytes]:
    begin, relation, end = transaction([RelationMessage(None, RELATION)], xid=7, commit_lsn=100, end_lsn=108)
    return [begin, relation, *rows, end]


def insert(key: bytes, text: bytes) -> bytes:
    return xlog_data(encode(Insert(None, OID, (key, text, None))))


def test_without_room_for_text_only_keys_are_kept():
    side = Side(sealing=True, max_text_bytes=10)
    side.feed(commit_of(insert(b"1", b"one"), insert(b"2", b"two")))
    assert side.budget.text_bytes == 0 and side.desk.count.counted.rows == 2
    assert [(work.key, work.kind) for work in side.desk.dirty.take(9, 99)] == [(b"1", Kind.REREAD), (b"2", Kind.REREAD)]


def test_sealed_text_counts_against_the_budget_and_a_row_is_read_when_it_is_taken():
    side = Side(sealing=True, max_text_bytes=1000)
    rows = [insert(b"1", b"one"), insert(b"2", b"two")]
    side.feed(commit_of(*rows))
    assert side.budget.text_bytes == sum(map(len, rows)) + 2 * SEALED_BYTES
    assert [work.text for work in side.desk.dirty.take(9, 99)] == [b"a: one", b"a: two"]
    assert side.budget.text_bytes == 0


def test_a_broken_row_behind_a_whole_key_is_read_from_its_table():
    side = Side(sealing=True, max_text_bytes=1000)
    side.feed(commit_of(insert(b"1", b"one")[:-3]))
    (work,) = side.desk.dirty.take(9, 99)
    assert (work.key, work.kind, work.text) == (b"1", Kind.REREAD, None)


def test_a_broken_key_ends_the_connection():
    side = Side(sealing=True, max_text_bytes=1000)
    with pytest.raises(DecodeError):
        side.feed(commit_of(insert(b"1234567890", b"")[:42]))


def test_a_new_connection_begins_with_an_empty_budget_also_when_the_pipelines_had_gone_before():
    side = Side(sealing=True, max_text_bytes=1000)
    side.feed(commit_of(insert(b"1", b"one"), insert(b"2", b"two")))
    side.intake.attach([])  # as when the fleet stops
    side.intake.reset()
    assert side.budget.rows == side.budget.text_bytes == 0 and not side.intake.is_full
