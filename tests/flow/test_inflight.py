from hypothesis import given
from hypothesis import strategies as st

from cdc.flow.inflight import Inflight


def answer(bound: Inflight, seconds: float, times: int = 1, *, full: bool = True, size: int = 1000) -> None:
    for _ in range(times):
        bound.succeeded(bound.ticket(), size, seconds, full=full)


def test_grows_while_latency_stays_flat_up_to_the_most():
    bound = Inflight(4, 16)
    answer(bound, 1.0, 4)
    assert bound.limit == 5
    answer(bound, 1.1, 1000)
    assert bound.limit == 16


def test_does_not_grow_while_nobody_waits():
    bound = Inflight(4, 16)
    answer(bound, 1.0, 1000, full=False)
    assert bound.limit == 4


def test_does_not_grow_on_a_queue():
    bound = Inflight(4, 16)
    answer(bound, 1.0)  # alone
    answer(bound, 4.0, 60)  # four deep in a queue of one server
    assert bound.limit == 4


def test_a_queue_brings_it_back_to_where_it_began_and_no_further():
    bound = Inflight(2, 16)
    answer(bound, 1.0, 100)
    assert bound.limit > 8
    answer(bound, 50.0, 200)
    assert bound.limit == 2


def test_large_requests_are_compared_with_large_ones():
    bound = Inflight(4, 16)
    for _ in range(200):
        answer(bound, 0.001, size=10)
        answer(bound, 1.0, size=100_000)
    assert bound.limit == 16


def test_a_full_queue_halves_it_once_for_all_that_were_under_way():
    bound = Inflight(8, 16)
    tickets = [bound.ticket() for _ in range(8)]
    for ticket in tickets:
        bound.overloaded(ticket)
    assert bound.limit == 4
    bound.overloaded(bound.ticket())
    bound.overloaded(bound.ticket())
    bound.overloaded(bound.ticket())
    assert bound.limit == 1


def test_answers_from_before_a_cut_do_not_raise_it():
    bound = Inflight(4, 16)
    old = bound.ticket()
    bound.overloaded(old)
    for _ in range(100):
        bound.succeeded(old, 1000, 1.0, full=True)
    assert bound.limit == 2


def test_comes_back_from_a_cut_also_on_a_queue():
    bound = Inflight(4, 16)
    answer(bound, 1.0)
    bound.overloaded(bound.ticket())
    answer(bound, 2.0, 5)
    assert bound.limit == 4


def test_a_server_that_became_slower_for_good_is_learned_anew():
    bound = Inflight(4, 16)
    answer(bound, 1.0, 3)
    answer(bound, 3.0, 500)
    assert bound.limit == 16


@given(st.integers(1, 50), st.integers(0, 50), st.lists(st.tuples(st.booleans(), st.floats(0, 100), st.booleans())))
def test_stays_between_one_and_the_most(start, most, history):
    bound = Inflight(start, most)
    for failed, seconds, full in history:
        if failed:
            bound.overloaded(bound.ticket())
        else:
            bound.succeeded(bound.ticket(), 10, seconds, full=full)
        assert 1 <= bound.limit <= max(start, most)
