from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cdc.flow.paging import LEAST, MOST, TARGET_S, PageSize


@given(st.lists(st.tuples(st.integers(0, 10_000), st.floats(0, 100)), max_size=30))
def test_a_page_at_most_doubles_or_halves_and_stays_in_bounds(pages):
    size = PageSize()
    for rows, seconds in pages:
        before = size.rows
        size.took(rows, seconds)
        assert LEAST <= size.rows <= MOST
        assert before // 2 <= size.rows <= before * 2 or size.rows in (LEAST, MOST)


def test_a_slow_table_gets_small_pages_and_a_fast_one_large_ones():
    slow, fast = PageSize(), PageSize()
    for _ in range(10):
        slow.took(slow.rows, slow.rows * 0.01)
        fast.took(fast.rows, fast.rows * 1e-6)
    assert slow.rows == LEAST and fast.rows == MOST
    assert LEAST * 0.01 >= TARGET_S  # even the smallest page of this table takes longer than wished


def test_an_empty_page_says_nothing():
    size = PageSize()
    size.took(0, 5)
    assert size.rows == 1024
