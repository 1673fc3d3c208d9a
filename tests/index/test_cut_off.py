"""A transaction that the connection, or the process, breaks off in is taken in once, although it comes again whole."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from cdc.errors import Unavailable, WalvecError
from cdc.external_indexes import HnswIndexes
from cdc.flow.keycodec import IndexKey, KeyCodec
from cdc.flow.vectorformat import VectorFormat
from cdc.jobs import IndexSpec
from cdc.ports.indexes import Indexed
from cdc.rows import UNCHANGED, Column
from cdc.services.index_follower import Checkpoint, IndexFollower
from cdc.services.index_journal import Journal, Place
from cdc.services.keyed_index import KeyedIndex
from cdc.testing.walbytes import transaction
from cdc.wire import messages as m
from cdc.wire.messages import OldTuple
from cdc.wire.relations import Relation, RelationColumn, ReplicaIdentity
from tests.index.conftest import Scene, wait

OID, ROWS = 5000, 12
KEY = (Column("id", "integer", "int4"),)
COLUMNS = (RelationColumn("id", 23, -1, True), RelationColumn("v", 1021, -1, False))
RELATION = m.RelationMessage(None, Relation(OID, "public", "t", ReplicaIdentity.DEFAULT, COLUMNS))
CODEC = KeyCodec(KEY)


def insert(number: int) -> m.Insert:
    return m.Insert(None, OID, (b"%d" % number, b"{%d,1}" % number))


def move(old: int, new: int) -> m.Update:
    """What ``UPDATE t SET id = …`` sends where the vector is TOASTed: the keys, and that the vector is the old one."""
    return m.Update(None, OID, OldTuple(True, (b"%d" % old, None)), (b"%d" % new, UNCHANGED))


FIRST = transaction([RELATION, *map(insert, range(1, ROWS + 1))], xid=1, commit_lsn=1000, end_lsn=1010)
SHIFT = transaction([RELATION, *(move(i, i - 1) for i in range(1, ROWS + 1))], xid=2, commit_lsn=2000, end_lsn=2010)
NEXT = transaction([RELATION, insert(77), move(77, 78)], xid=3, commit_lsn=3000, end_lsn=3010)
SHIFTED = {i - 1: float(i) for i in range(1, ROWS + 1)}
DONE = SHIFTED | {78: 77.0}


@dataclass
class Kept:
    """An index, its journal and its follower, and what was saved of it at the last checkpoint."""

    folder: Path
    base: tuple[Place, int, dict[IndexKey, float]] = (Place(0), 1, {})
    index: KeyedIndex = field(init=False)
    follower: IndexFollower = field(init=False)

    def open(self) -> Kept:
        """Begin as after ``kill -9``: with what was saved, and the journal."""
        indexes, spec = HnswIndexes(1, 0), IndexSpec("v", "l2sq", 8, 64, 64)
        place, segment, rows = self.base
        self.index = KeyedIndex(CODEC, lambda width, capacity: indexes.make(spec, width, capacity), None)
        if rows:
            vectors = np.array([[value, 1] for value in rows.values()], np.float32)
            self.index.load(np.array(list(rows), CODEC.dtype), vectors, 100)
        self.journal = Journal(self.folder, b"o" * 32, CODEC)
        for reached, changes in self.journal.replay(segment):
            self.index.apply(changes)
            place = reached
        self.journal.open(self.journal.segment + 1)
        indexed = Indexed(OID, KEY, "_float4", 1021, None, 0, "", "", False)
        form = VectorFormat("_float4", "l2sq")
        self.follower = IndexFollower(indexed, "v", form, self.index, self.journal, place, self._save)
        return self

    def _save(self, checkpoint: Checkpoint) -> None:
        self.base = (checkpoint.place, checkpoint.segment, self.rows())

    def rows(self) -> dict[IndexKey, float]:
        """Return the first component of each row's vector, by key."""
        index, keys = self.index.now
        if index is None:
            return {}
        labels = np.flatnonzero(keys.live)
        present, vectors = index.vectors(labels)
        return dict(zip(keys.keys(labels[present]), vectors[:, 0].tolist(), strict=True))

    def settled(self) -> dict[IndexKey, float]:
        wait(lambda: not self.follower._queue and not self.follower._waiting)
        return self.rows()


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path).open()
    yield made
    made.follower.close()


@pytest.mark.parametrize("cut", range(1, len(SHIFT)))
def test_a_cut_off_transaction_comes_again(kept: Kept, cut: int) -> None:
    kept.follower.feed([*FIRST, *SHIFT[:cut]])
    kept.follower.connected()
    kept.follower.feed(SHIFT[: cut // 2])  # the second connection breaks, too, and sooner
    kept.follower.connected()
    kept.follower.feed([*FIRST, *SHIFT[: cut + 1]])  # the server may begin further back than it need
    kept.follower.connected()
    kept.follower.feed([*SHIFT, *NEXT])
    assert kept.settled() == DONE


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("cut", range(1, len(SHIFT)))
def test_the_process_dies_within_a_transaction(kept: Kept, cut: int, saved: bool) -> None:
    kept.follower.feed([*FIRST, *SHIFT[: cut // 2]])
    if saved:
        kept.follower.checkpoint()
    kept.follower.feed(SHIFT[cut // 2 : cut])
    kept.settled()
    wait(lambda: kept.base[1] == (2 if saved else 1))
    kept.follower.close()
    kept.open()
    kept.follower.feed([*FIRST, *SHIFT, *NEXT])
    assert kept.settled() == DONE


def test_a_frame_that_is_wrong_takes_what_was_read_with_it(kept: Kept) -> None:
    kept.follower.feed(FIRST)
    with pytest.raises(WalvecError):
        kept.follower.feed([*SHIFT[:7], b"w" + bytes(24) + b"?"])
    kept.follower.connected()
    kept.follower.feed([*SHIFT, *NEXT])
    assert kept.settled() == DONE


def test_a_truncation_within_a_transaction_is_counted(kept: Kept) -> None:
    frames = transaction(
        [RELATION, insert(50), m.Truncate(None, (OID,), False, False), insert(51), move(51, 52), move(52, 53)],
        xid=4, commit_lsn=4000, end_lsn=4010,
    )  # fmt: skip
    for cut in range(2, len(frames) - 1):
        kept.follower.feed(frames[:cut])
        kept.follower.connected()
    kept.follower.feed([*frames, *transaction([RELATION, move(53, 54)], xid=5, commit_lsn=5000, end_lsn=5010)])
    assert kept.settled() == {54: 51.0}


@pytest.mark.parametrize("delay", [0.01, 0.05, 0.15])
@pytest.mark.parametrize("shifts", [["id - 1"], ["-id", "-id + 1"]])
def test_the_walsender_is_ended_while_it_sends_new_keys(scene18: Scene, shifts: list[str], delay: float) -> None:
    db = scene18.db
    db.execute("CREATE TABLE t (id int PRIMARY KEY, v vector(600))")
    db.execute("ALTER TABLE t ALTER v SET STORAGE EXTERNAL")
    db.execute(
        "INSERT INTO t SELECT i, (ARRAY[i] || array_fill(1, ARRAY[599]))::vector FROM generate_series(1, 6000) i"
    )
    loop, job = scene18.runner(), scene18.job(metric="l2sq", m=4, ef_construction=8)
    loop.ready(job)
    with db.transaction():
        for shift in shifts:
            db.execute(f"UPDATE t SET id = {shift}")
    time.sleep(delay)
    db.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
    with pytest.raises(Unavailable):
        loop.runs[0].result(20)
    assert not loop.ready(job).percents  # nothing is built again
    scene18.settle(loop, job)
    expected = dict(db.execute("SELECT id, (v::real[])[1] FROM t").fetchall())
    index, keys = loop.runner._served[job.id].index.now
    assert index is not None
    labels = np.flatnonzero(keys.live)
    present, vectors = index.vectors(labels)
    assert dict(zip(keys.keys(labels[present]), vectors[:, 0].tolist(), strict=True)) == expected
