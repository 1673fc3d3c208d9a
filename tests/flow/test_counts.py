"""The row count kept from the stream equals the rows of the source, whatever is delivered, replayed or counted when."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import example, given
from hypothesis import strategies as st

from cdc.flow.counts import Counted, SourceCount
from cdc.flow.ledger import Commit
from cdc.flow.snapshots import Snapshot


def deliver(count: SourceCount, commit: Commit, *steps: int | None) -> None:
    """Feed one transaction: differences, and None for TRUNCATE."""
    for step in steps:
        if step is None:
            count.truncate(commit)
        else:
            count.add(commit, step)
    count.close(commit)


def snapshot(seen: set[int], all_xids: list[int]) -> Snapshot:
    """The snapshot under which exactly these of the transactions are visible."""
    top = max(all_xids, default=0) + 1
    return Snapshot(min([x for x in all_xids if x not in seen], default=top), top, frozenset(set(all_xids) - seen))


@dataclass
class Tx:
    xid: int
    lsn: int
    steps: list[int | None]


transactions = st.lists(
    st.lists(st.one_of(st.integers(-3, 5), st.none()), min_size=1, max_size=4), min_size=1, max_size=8
)


def rows_after(start: int, txs: list[Tx]) -> int:
    rows = start
    for tx in txs:
        for step in tx.steps:
            rows = 0 if step is None else rows + step
    return rows


@given(
    start=st.integers(0, 100),
    steps=transactions,
    heard=st.integers(0, 8),
    seen=st.integers(0, 8),
    save=st.booleans(),
    restart_at=st.integers(0, 8),
)
@example(start=100, steps=[[None]], heard=1, seen=0, save=False, restart_at=0)
def test_a_base_and_the_stream_meet_in_any_interleaving(start, steps, heard, seen, save, restart_at):
    """``heard``: how much of the stream came before the base was known; ``seen``: how much the base includes."""
    txs = [Tx(xid=10 + i, lsn=100 + i * 10, steps=list(s)) for i, s in enumerate(steps)]
    xids = [tx.xid for tx in txs]
    seen, heard = min(seen, len(txs)), min(heard, len(txs))
    count = SourceCount()
    commits = []
    for tx in txs[:heard]:
        commits.append(Commit(tx.lsn, tx.xid))
        deliver(count, commits[-1], *tx.steps)
    count.rebase(rows_after(start, txs[:seen]), snapshot(set(xids[:seen]), xids), until=100 + len(txs) * 10)
    # What was heard and is not visible yet is added to the base at once.
    assert count.counted.rows == rows_after(start, txs[: max(heard, seen)]) or heard < seen
    saved = count.counted
    if save:
        count.persisted(saved)
    for tx in txs[heard:]:
        commits.append(Commit(tx.lsn, tx.xid))
        deliver(count, commits[-1], *tx.steps)
    assert count.counted.rows == rows_after(start, txs)
    # A restart from what was saved, replaying from any commit at or before it, ends in the same count.
    again = SourceCount(saved)
    first = min(restart_at, heard)
    for tx in txs[first:]:
        deliver(again, Commit(tx.lsn, tx.xid), *tx.steps)
    assert again.counted.rows == rows_after(start, txs)
    count.persisted(count.counted)
    assert all(commit.outstanding == 0 for commit in commits)
    assert not count.unsaved


def test_a_commit_that_changes_the_count_waits_until_the_count_is_durable():
    count, commit = SourceCount(Counted(5, 100)), Commit(200, 7)
    deliver(count, commit, 1)
    assert commit.outstanding == 1 and count.unsaved
    count.persisted(Counted(5, 150))
    assert commit.outstanding == 1
    count.persisted(count.counted)
    assert commit.outstanding == 0 and not count.unsaved


def test_a_commit_that_leaves_the_count_alone_waits_for_nothing():
    count, commit = SourceCount(Counted(5, 100)), Commit(200, 7)
    deliver(count, commit, 1, -1)
    assert commit.outstanding == 0


def test_a_truncation_of_an_already_empty_table_is_one_all_the_same():
    count, commit = SourceCount(Counted(0, 100)), Commit(200, 7)
    deliver(count, commit, None)
    assert (count.counted.rows, commit.outstanding) == (0, 1)


def test_a_replay_of_counted_commits_changes_nothing():
    count = SourceCount(Counted(5, 200))
    deliver(count, Commit(150, 6), 1)
    deliver(count, Commit(200, 7), 1)
    assert count.counted == Counted(5, 200)


def test_half_a_transaction_is_forgotten_with_its_connection():
    count = SourceCount(Counted(5, 100))
    count.add(Commit(200, 7), 3)
    count.forget()
    deliver(count, Commit(200, 7), 1)
    assert count.counted.rows == 6


def test_abandoning_lets_every_commit_go():
    count, commit = SourceCount(), Commit(200, 7)
    deliver(count, commit, 1)
    count.abandon()
    assert commit.outstanding == 0


def test_a_base_of_long_ago_never_hides_a_transaction_of_today():
    """Transaction ids are 32 bits and come round: a base's snapshot must not be asked about them for ever."""
    count = SourceCount()
    count.rebase(10, Snapshot(1000, 1000, frozenset()), until=105)
    count.persisted(count.counted)
    lsn = 100
    for xid in range(1000, 1000 + (1 << 32), 1 << 29):
        lsn += 10
        deliver(count, Commit(lsn, xid & 0xFFFFFFFF), 1)
    assert count.counted.rows == 10 + 8
