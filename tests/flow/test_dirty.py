"""Dirty keys, case by case; ``test_dirty_machine`` has the histories."""

from __future__ import annotations

import pytest

from cdc.flow.dirty import Budget, Claim, DirtyKeys, Kind
from cdc.flow.ledger import Commit


@pytest.fixture
def budget():
    return Budget(max_text_bytes=100, max_rows=1_000)


@pytest.fixture
def dirty(budget):
    return DirtyKeys(budget)


def commit(lsn: int, time_us: int = 0) -> Commit:
    return Commit(lsn, time_us=time_us)


def taken(dirty: DirtyKeys, rows: int = 100):
    return [(work.key, work.kind, work.text, work.lsn) for work in dirty.take(rows, 1 << 20)]


def test_the_newest_change_wins_in_the_place_of_the_first(dirty):
    first, second = commit(1), commit(2)
    assert not dirty.mark(b"1", Kind.UPDATE, b"old", first)
    dirty.mark(b"2", Kind.UPDATE, b"other", first)
    assert dirty.mark(b"1", Kind.UPDATE, b"new", second)
    assert (first.outstanding, second.outstanding) == (1, 1)
    assert taken(dirty) == [(b"1", Kind.UPDATE, b"new", 2), (b"2", Kind.UPDATE, b"other", 1)]


def test_a_row_inserted_again_may_still_have_the_embedding_of_its_former_life(dirty):
    dirty.mark(b"1", Kind.DELETE, None, commit(1))
    dirty.mark(b"1", Kind.INSERT, b"again", commit(2))
    assert taken(dirty) == [(b"1", Kind.UPDATE, b"again", 2)]


def test_lag_is_counted_from_the_oldest_change_that_a_key_stands_for(dirty):
    dirty.mark(b"1", Kind.UPDATE, b"a", commit(1, time_us=1_000))
    dirty.mark(b"1", Kind.UPDATE, b"b", commit(2, time_us=9_000))
    assert dirty.take(1, 100)[0].since_us == 1_000


def test_past_the_text_budget_only_the_key_is_held_and_the_row_is_read_again(dirty, budget):
    dirty.mark(b"1", Kind.UPDATE, b"x" * 60, commit(1))
    dirty.mark(b"2", Kind.UPDATE, b"y" * 60, commit(1))
    assert (budget.text_bytes, budget.rows) == (60, 2)
    assert taken(dirty)[1] == (b"2", Kind.REREAD, None, 1)
    assert (budget.text_bytes, budget.rows) == (0, 0)


def test_a_key_in_flight_is_held_back_until_its_work_lands(dirty):
    dirty.mark(b"1", Kind.UPDATE, b"a", commit(1))
    (work,) = dirty.take(1, 100)
    dirty.mark(b"1", Kind.UPDATE, b"b", commit(2))
    assert dirty.rows == 1  # one key, pending and in flight
    assert taken(dirty) == []
    dirty.settle(work)
    assert taken(dirty) == [(b"1", Kind.UPDATE, b"b", 2)]


def test_work_given_back_gives_way_to_a_newer_change(dirty):
    first = commit(1)
    dirty.mark(b"1", Kind.UPDATE, b"a", first)
    (work,) = dirty.take(1, 100)
    dirty.mark(b"1", Kind.UPDATE, b"b", commit(2))
    dirty.requeue(work)
    assert first.outstanding == 0
    assert taken(dirty) == [(b"1", Kind.UPDATE, b"b", 2)]


def test_what_a_scan_saw_beside_a_pending_change_is_looked_at_again(dirty, budget):
    """Either may be the newer one, or the row differs without any event: neither text can be trusted."""
    claim, change = Claim(50), commit(1)
    dirty.mark(b"1", Kind.UPDATE, b"by the stream", change)
    dirty.found(b"1", b"by the scan", claim)
    dirty.found(b"2", b"by the scan", claim)
    dirty.mark(b"2", Kind.UPDATE, b"by the stream", change)
    assert claim.outstanding == 0 and change.outstanding == 2
    assert sorted(taken(dirty)) == [(b"1", Kind.REREAD, None, 1), (b"2", Kind.REREAD, None, 1)]
    assert (dirty.found_rows, budget.rows, budget.text_bytes) == (0, 0, 0)


def test_a_scan_that_starts_again_takes_over_what_the_last_one_found(dirty):
    """Its cursor must not pass a key whose only trace is a claim that nobody waits for any more."""
    old, new = Claim(10), Claim(20)
    dirty.found(b"1", b"a", old)
    dirty.found(b"1", b"b", new)
    assert (old.outstanding, new.outstanding) == (0, 1)
    (work,) = dirty.take_found(1, 100)
    dirty.requeue(work, Kind.REREAD)
    newest = Claim(30)
    dirty.found(b"1", b"c", newest)
    assert (new.outstanding, newest.outstanding, dirty.found_rows) == (0, 1, 0)


def test_a_scan_never_stands_still_over_work_that_it_found_twice(dirty, budget):
    first, second = Claim(10), Claim(20)
    dirty.found(b"1", b"a", first)
    (work,) = dirty.take_found(1, 100)
    dirty.found(b"1", b"b", second)
    dirty.requeue(work)  # the model is away
    assert (first.outstanding, second.outstanding, budget.rows, dirty.rows) == (0, 1, 1, 1)


def test_a_truncation_voids_what_is_pending_and_nothing_is_taken_before_it_is_done(dirty, budget):
    before, cut, after, claim = commit(1), commit(2), commit(3), Claim(1)
    dirty.mark(b"1", Kind.UPDATE, b"a", before)
    dirty.found(b"9", b"z", claim)
    dirty.truncate(cut)
    dirty.mark(b"2", Kind.INSERT, b"b", after)
    assert (before.outstanding, claim.outstanding, cut.outstanding) == (0, 0, 1)
    assert taken(dirty) == [] and dirty.take_found(9, 9) == []
    dirty.truncated(cut)
    assert taken(dirty) == [(b"2", Kind.INSERT, b"b", 3)]
    assert cut.outstanding == 0 and budget.text_bytes == 0


def test_a_second_truncation_stands_for_the_first(dirty):
    first, second = commit(1), commit(2)
    dirty.truncate(first)
    dirty.truncate(second)
    assert (first.outstanding, second.outstanding) == (0, 1)


def test_a_truncation_that_comes_while_another_is_carried_out_is_still_due(dirty):
    first, second = commit(1), commit(2)
    dirty.truncate(first)
    dirty.truncate(second)
    dirty.truncated(first)
    assert (first.outstanding, second.outstanding, dirty.truncation) == (0, 1, second)
    dirty.truncated(second)
    assert (first.outstanding, second.outstanding, dirty.truncation) == (0, 0, None)


def test_a_million_keys_drain_in_linear_time_and_keep_their_order(dirty):
    one = commit(1)
    for n in range(200_000):
        dirty.mark(b"%d" % n, Kind.REREAD, None, one)
    order = []
    while works := dirty.take(1000, 1 << 20):
        order += [int(work.key) for work in works]
        for work in works:
            dirty.settle(work)
    assert order == list(range(200_000)) and one.outstanding == 0


def test_live_changes_are_taken_while_a_scan_waits_and_keys_in_flight_are_skipped(dirty):
    claim = Claim(10)
    dirty.mark(b"1", Kind.UPDATE, b"a", commit(1))
    works = dirty.take(9, 100)
    dirty.found(b"1", b"b", claim)
    dirty.found(b"2", b"c", claim)
    assert [work.key for work in dirty.take_found(9, 100)] == [b"2"]
    dirty.settle(works[0])
    assert [work.key for work in dirty.take_found(9, 100)] == [b"1"]


def test_a_key_of_the_durable_queue_that_is_pending_already_is_left_alone(dirty):
    dirty.mark(b"1", Kind.UPDATE, b"a", commit(1))
    assert not dirty.load(b"1", Claim(1))
    dirty.settle(*dirty.take(1, 100))
    assert dirty.load(b"1", Claim(1))


def test_a_key_of_the_durable_queue_whose_work_is_in_flight_is_looked_at_once_more(dirty):
    """It was leased, so the queue gives it out no more; and that work's write may have begun before."""
    claim = Claim(1)
    dirty.mark(b"1", Kind.UPDATE, b"a", commit(1))
    (work,) = dirty.take(1, 100)
    assert dirty.load(b"1", claim) and not dirty.load(b"1", Claim(1))
    assert not dirty.take(1, 100)
    dirty.settle(work)
    (again,) = dirty.take(1, 100)
    assert (again.key, again.kind, claim.outstanding) == (b"1", Kind.REREAD, 1)


def test_a_work_that_comes_back_after_its_table_was_emptied_is_void(dirty):
    one, two = commit(1), commit(2)
    dirty.mark(b"1", Kind.INSERT, b"a", one)
    (work,) = dirty.take(1, 100)
    dirty.truncate(two)
    dirty.requeue(work)  # the model is away
    dirty.truncated(two)
    assert dirty.take(1, 100) == [] and (one.outstanding, two.outstanding, dirty.rows) == (0, 0, 0)


def test_nothing_goes_to_the_durable_queue_while_a_truncation_is_due(dirty):
    """Its statement takes away what is queued with its own commit's position, and what came after it has the same."""
    one = commit(1)
    dirty.truncate(one)
    dirty.mark(b"1", Kind.INSERT, b"a", one)
    assert dirty.spill(10) == []
    dirty.truncated(one)
    assert [work.key for work in dirty.spill(10)] == [b"1"]
