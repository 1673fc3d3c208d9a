from hypothesis import given
from hypothesis import strategies as st

from cdc.flow.sharing import share


@given(st.integers(0, 1 << 40), st.lists(st.integers(0, 1 << 20), min_size=1).filter(any))
def test_nothing_is_lost_and_the_parts_stand_in_proportion(whole, weights):
    parts = share(whole, weights)
    assert sum(parts) == whole and len(parts) == len(weights)
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - whole * weight / sum(weights)) <= 1 + whole * 1e-12
