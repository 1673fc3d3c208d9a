from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.flow.snapshots import Snapshot


def test_a_snapshot_reads_and_prints_as_postgresql_does():
    for text in ("10:20:10,14,15", "100:100:"):
        assert str(Snapshot.parse(text)) == text


@pytest.mark.parametrize(
    ("xid", "covered"), [(9, True), (10, False), (12, True), (14, False), (19, True), (20, False), (25, False)]
)
def test_what_has_ended_is_covered(xid, covered):
    assert Snapshot.parse("10:20:10,14").covers(xid) is covered


wide = st.integers(3, 1 << 40)


@given(xmax=wide, back=st.integers(0, (1 << 31) - 2), running=st.sets(st.integers(1, 50), max_size=5))
def test_32_bits_of_a_transaction_id_suffice_within_half_the_circle(xmax, back, running):
    xids = {xmax - r for r in running if xmax - r > 0}
    snapshot = Snapshot(min(xids, default=xmax), xmax, frozenset(xids))
    xid = xmax - 1 - back
    if xid >= 3:
        assert snapshot.covers(xid & 0xFFFFFFFF) is (xid not in xids)
    ahead = xmax + min(back, (1 << 31) - 2)
    assert snapshot.covers(ahead & 0xFFFFFFFF) is False


def test_the_epoch_boundary():
    edge = 1 << 32
    snapshot = Snapshot(edge - 5, edge + 5, frozenset({edge - 5, edge + 1}))
    around = (edge - 6, edge - 5, edge - 1, edge, edge + 1, edge + 4, edge + 5)
    assert [snapshot.covers(xid & 0xFFFFFFFF) for xid in around] == [True, False, True, True, False, True, False]
