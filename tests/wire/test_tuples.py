from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.errors import DecodeError
from cdc.lsn import Lsn
from cdc.rows import UNCHANGED
from cdc.testing.walbytes import encode, xlog_data
from cdc.wire import messages as m
from cdc.wire.frames import BODY
from cdc.wire.relations import Relation, RelationColumn, ReplicaIdentity
from cdc.wire.tuples import ROUTE_KEY, RowDecoder, TuplePicker, route_keys
from tests.wire.strategies import cells

OID = 16384
FIVE = Relation(
    OID,
    "public",
    "five",
    ReplicaIdentity.DEFAULT,
    tuple(RelationColumn(f"c{index}", 25, -1, index == 0) for index in range(5)),
)
ROW: m.Tuple = (b"7", b"title", None, UNCHANGED, m.BinaryCell(b"\0\1"))
KEY: m.Tuple = (b"6", None, None, None, None)
five_cells = st.tuples(cells, cells, cells, cells, cells)
choices = st.lists(st.integers(0, 4), max_size=6)


def plain(row: m.Tuple, wanted: list[int]) -> list[object]:
    """What a picker of ``wanted`` must give for ``row``."""
    picked = [row[index] for index in wanted]
    return [cell.data if isinstance(cell, m.BinaryCell) else cell for cell in picked]


def payload(message: m.Message) -> bytes:
    return xlog_data(encode(message), 0x16B3748)


@given(five_cells, choices, st.binary(max_size=9), st.binary(max_size=9))
def test_any_columns_in_any_order_are_picked_wherever_the_tuple_stands(
    row: m.Tuple, wanted: list[int], before: bytes, after: bytes
) -> None:
    tuple_bytes = encode(m.Insert(None, OID, row))[6:]
    got, end = TuplePicker(5, wanted).pick(before + tuple_bytes + after, len(before))
    assert got == plain(row, wanted)
    assert end == len(before) + len(tuple_bytes)


@pytest.mark.parametrize("row", [ROW, (b"a",) * 5, (b"a" * 20, None, b"b" * 20, UNCHANGED, b"c" * 20)])
def test_a_tuple_cut_anywhere_is_an_error(row: m.Tuple) -> None:
    whole = encode(m.Insert(None, OID, row))[6:]
    for cut in range(len(whole)):
        with pytest.raises(DecodeError):
            TuplePicker(5, (0, 4)).pick(whole[:cut], 0)


@given(five_cells, five_cells, choices, st.booleans())
def test_the_row_decoder_agrees_with_the_full_decoder(
    old: m.Tuple, new: m.Tuple, wanted: list[int], key_only: bool
) -> None:
    decoder, before = RowDecoder(FIVE, wanted), m.OldTuple(key_only, old)
    assert decoder.insert(payload(m.Insert(None, OID, new))) == plain(new, wanted)
    assert decoder.update(payload(m.Update(None, OID, None, new))) == (None, plain(new, wanted))
    assert decoder.update(payload(m.Update(None, OID, before, new))) == (plain(old, wanted), plain(new, wanted))
    assert decoder.delete(payload(m.Delete(None, OID, before))) == plain(old, wanted)


KEYS = route_keys(FIVE)


@given(five_cells, five_cells, choices)
def test_route_keys_find_every_change_of_the_table(old: m.Tuple, new: m.Tuple, wanted: list[int]) -> None:
    decoder = RowDecoder(FIVE, wanted)
    for kind in (True, False):
        before = m.OldTuple(kind, old)
        assert KEYS[payload(m.Update(None, OID, before, new))[ROUTE_KEY]] == b"U"
        assert KEYS[payload(m.Delete(None, OID, before))[ROUTE_KEY]] == b"D"
        assert decoder.last_tuple(payload(m.Delete(None, OID, before))) == plain(old, wanted)
    for message, tag in ((m.Insert(None, OID, new), b"I"), (m.Update(None, OID, None, new), b"U")):
        assert KEYS[payload(message)[ROUTE_KEY]] == tag
        assert decoder.last_tuple(payload(message)) == plain(new, wanted)


def test_inside_a_stream_block_the_body_starts_four_bytes_later() -> None:
    data = payload(m.Insert(731, OID, ROW))
    assert RowDecoder(FIVE, (0, 1)).insert(data, BODY + 4) == [b"7", b"title"]


CHANGES: list[m.Message] = [
    m.Insert(None, OID, ROW),
    m.Insert(None, OID, (b"7", b"a", b"b", b"c", None)),
    m.Update(None, OID, None, ROW),
    m.Update(None, OID, m.OldTuple(True, KEY), ROW),
    m.Update(None, OID, m.OldTuple(False, ROW), ROW),
    m.Delete(None, OID, m.OldTuple(True, KEY)),
    m.Delete(None, OID, m.OldTuple(False, ROW)),
]


@pytest.mark.parametrize("wanted", [(), (0,), (4, 0), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: type(change).__name__)
def test_cut_anywhere_or_too_long_is_an_error_whatever_is_wanted(change: m.Message, wanted: tuple[int, ...]) -> None:
    decoder, data = RowDecoder(FIVE, wanted), payload(change)
    read = {"I": decoder.insert, "U": decoder.update, "D": decoder.delete}[chr(data[BODY])]
    read(data)
    for cut in range(BODY + 5, len(data)):
        with pytest.raises(DecodeError):
            read(data[:cut])
    with pytest.raises(DecodeError):
        read(data + b"\0")


@pytest.mark.parametrize(
    "broken",
    [
        payload(m.Insert(None, OID, ROW[:4])),
        payload(m.Insert(None, OID, (*ROW, b"6"))),
        payload(m.Insert(None, OID, ROW)).replace(b"N\0\5", b"K\0\5"),
        payload(m.Delete(None, OID, m.OldTuple(True, KEY))).replace(b"K\0\5", b"N\0\5"),
        payload(m.Insert(None, OID, ROW))[: BODY + 7],
    ],
)
def test_a_row_of_another_shape_has_no_route_key_and_is_an_error(broken: bytes) -> None:
    assert broken[ROUTE_KEY] not in KEYS
    decoder = RowDecoder(FIVE, (0,))
    with pytest.raises(DecodeError):
        (decoder.delete if broken[BODY] == ord("D") else decoder.insert)(broken)


def test_other_messages_and_other_tables_have_no_route_key() -> None:
    others: list[m.Message] = [
        m.Begin(Lsn(OID << 32), 0, 1),  # its LSN starts with the table's OID
        m.Insert(None, OID + 1, ROW),
        m.Truncate(None, (OID,), False, False),
        m.RelationMessage(None, FIVE),
    ]
    assert not {payload(message)[ROUTE_KEY] for message in others} & set(KEYS)
    assert len(KEYS) == 6


@pytest.mark.parametrize("change", [CHANGES[0], CHANGES[1], CHANGES[2], CHANGES[5]])
def test_a_last_tuple_that_is_cut_or_too_long_is_an_error(change: m.Message) -> None:
    data = payload(change)
    for broken in [data[:cut] for cut in range(BODY + 8, len(data))] + [data + b"\0"]:
        with pytest.raises(DecodeError, match=r"public\.five"):
            RowDecoder(FIVE, (0, 1)).last_tuple(broken)


@pytest.mark.parametrize("kind", [b"\0", b"x", b"T", b"\xff"])
@pytest.mark.parametrize("column", range(5))
def test_a_kind_of_cell_that_does_not_exist_is_an_error(kind: bytes, column: int) -> None:
    cell = b"t\0\0\0\1a"
    body = b"I" + OID.to_bytes(4) + b"N\0\5" + b"".join(kind if i == column else cell for i in range(5))
    with pytest.raises(DecodeError):
        RowDecoder(FIVE, (0,)).insert(xlog_data(body))


def test_lengths_past_the_end_and_negative_ones_are_errors() -> None:
    for length in (2, 2**31 - 1, 2**32 - 1):
        for column in range(5):
            row = b"".join(b"t" + (length if i == column else 1).to_bytes(4) + b"a" for i in range(5))
            with pytest.raises(DecodeError):
                RowDecoder(FIVE, (0, 4)).insert(xlog_data(b"I" + OID.to_bytes(4) + b"N\0\5" + row))


def test_errors_name_the_table_and_show_no_row() -> None:
    data = payload(m.Insert(None, OID, (b"secret",) * 5))
    with pytest.raises(DecodeError, match=r"public\.five") as raised:
        RowDecoder(FIVE, (0,)).insert(data[:-1])
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("wanted", [(5,), (-1,), (0, 5)])
def test_columns_that_cannot_be_picked_are_refused(wanted: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cannot be picked"):
        TuplePicker(5, wanted)
