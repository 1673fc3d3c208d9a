"""Hypothesis strategies: any message of the protocol."""

from __future__ import annotations

from hypothesis import strategies as st

from cdc.lsn import Lsn
from cdc.rows import UNCHANGED
from cdc.wire import messages as m
from cdc.wire.relations import Relation, RelationColumn, ReplicaIdentity

u32 = st.integers(0, 2**32 - 1)
lsns = st.integers(0, 2**64 - 1).map(Lsn)
times = st.integers(-(2**63), 2**63 - 1)
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
text_cells = st.one_of(st.binary(max_size=300), st.none(), st.just(UNCHANGED))
cells = text_cells | st.builds(m.BinaryCell, st.binary(max_size=40))
rows = st.lists(cells, max_size=7).map(tuple)
old_rows = st.builds(m.OldTuple, st.booleans(), rows)
columns = st.builds(RelationColumn, names, u32, st.integers(-(2**31), 2**31 - 1), st.booleans())
relations = st.builds(
    Relation, u32, names, names, st.sampled_from(ReplicaIdentity), st.lists(columns, max_size=6).map(tuple)
)


def streamed(xid: st.SearchStrategy[int | None]) -> st.SearchStrategy[m.Message]:
    """Messages that carry the transaction's xid inside a stream block."""
    return st.one_of(
        st.builds(m.RelationMessage, xid, relations),
        st.builds(m.Type, xid, u32, names, names),
        st.builds(m.Insert, xid, u32, rows),
        st.builds(m.Update, xid, u32, st.none() | old_rows, rows),
        st.builds(m.Delete, xid, u32, old_rows),
        st.builds(m.Truncate, xid, st.lists(u32, max_size=5).map(tuple), st.booleans(), st.booleans()),
        st.builds(m.LogicalMessage, xid, st.booleans(), lsns, names | st.just(""), st.binary(max_size=50)),
    )


unstreamed = st.one_of(
    st.builds(m.Begin, lsns, times, u32),
    st.builds(m.Commit, lsns, lsns, times),
    st.builds(m.Origin, lsns, names),
    st.builds(m.StreamStart, u32, st.booleans()),
    st.builds(m.StreamStop),
    st.builds(m.StreamCommit, u32, lsns, lsns, times),
    st.builds(m.StreamAbort, u32, u32),
    st.builds(m.StreamAbort, u32, u32, lsns, times),
    st.builds(m.BeginPrepare, lsns, lsns, times, u32, names),
    st.builds(m.Prepare, lsns, lsns, times, u32, names),
    st.builds(m.CommitPrepared, lsns, lsns, times, u32, names),
    st.builds(m.RollbackPrepared, lsns, lsns, times, times, u32, names),
    st.builds(m.StreamPrepare, lsns, lsns, times, u32, names),
)

plain_messages = unstreamed | streamed(st.none())
streamed_messages = unstreamed | streamed(u32)
