from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cdc.flow.ledger import Ledger


def closed(ledger: Ledger, lsn: int, work: int):
    commit = ledger.begin(lsn, 0, 0)
    commit.outstanding += work
    ledger.end(lsn + 8)
    return commit


def test_nothing_is_acknowledged_at_first():
    assert Ledger().acknowledged == 0


def test_an_idle_keepalive_is_acknowledged():
    ledger = Ledger()
    ledger.keepalive(500)
    assert ledger.acknowledged == 500


def test_a_keepalive_inside_a_transaction_promises_nothing():
    ledger = Ledger()
    ledger.keepalive(100)
    ledger.begin(400, 7, 0)
    ledger.keepalive(500)
    assert (ledger.acknowledged, ledger.received) == (100, 100)
    ledger.end(408)
    assert ledger.acknowledged == 408


def test_a_keepalive_after_unsettled_work_waits_for_it():
    """The bug that lost rows elsewhere: a keepalive acknowledged past a small transaction still being written."""
    ledger = Ledger()
    commit = closed(ledger, 100, 1)
    ledger.keepalive(900)
    assert ledger.acknowledged == 0
    commit.outstanding = 0
    assert ledger.acknowledged == 900


def test_the_end_of_a_commit_is_acknowledged_never_its_record():
    ledger = Ledger()
    closed(ledger, 100, 0)
    assert ledger.acknowledged == 108


def test_settling_out_of_order_acknowledges_in_order():
    ledger = Ledger()
    first, second, third = (closed(ledger, lsn, 1) for lsn in (100, 200, 300))
    third.outstanding = second.outstanding = 0
    assert (ledger.acknowledged, ledger.oldest) == (0, first)
    first.outstanding = 0
    assert ledger.acknowledged == 308


def test_settled_before_its_end_a_commit_still_holds():
    ledger = Ledger()
    closed(ledger, 100, 0)
    ledger.begin(200, 0, 0)
    assert ledger.acknowledged == 108 and ledger.open is not None


def test_an_end_without_a_begin_is_harmless():
    ledger = Ledger()
    ledger.end(50)
    assert ledger.acknowledged == 50


@given(st.lists(st.tuples(st.sampled_from("bekws"), st.integers(0, 40)), max_size=60))
def test_any_history_acknowledges_in_order_and_never_past_work(steps):
    ledger, position, last, commits = Ledger(), 10, 0, []
    for step, n in steps:
        position += 10
        if step == "b" and ledger.open is None:
            commits.append(ledger.begin(position, 0, 0))
        elif step == "e" and ledger.open is not None:
            ledger.end(position)
        elif step == "k":
            ledger.keepalive(position)
        elif step == "w" and ledger.open is not None:
            ledger.open.outstanding += 1
        elif step == "s" and (owing := [c for c in commits if c.outstanding]):
            owing[n % len(owing)].outstanding -= 1
        now = ledger.acknowledged
        assert now >= last
        assert all(now < c.lsn for c in commits if c.outstanding or not c.closed)
        last = now
