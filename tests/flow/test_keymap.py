"""Keys and labels against a dictionary, through every kind of key and a save in between."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc.errors import DecodeError
from cdc.flow.keycodec import KeyCodec
from cdc.flow.keymap import new_map, restore
from cdc.rows import Column


def column(name: str, base: str) -> Column:
    return Column(name, base, base)


CODECS = {
    "int": KeyCodec((column("a", "int8"),)),
    "pair": KeyCodec((column("a", "int4"), column("b", "int2"))),
    "uuid": KeyCodec((column("a", "uuid"),)),
    "text": KeyCodec((column("a", "text"),)),
    "two": KeyCodec((column("a", "text"), column("b", "numeric"))),
}


def cells(kind: str, number: int) -> list[bytes]:
    return {
        "int": [str(number - 3).encode()],
        "pair": [str(-number).encode(), str(number * 256).encode()],
        "uuid": [str(uuid.UUID(int=number << 120)).encode()],
        "text": [b"" if number == 0 else b"k" * number],
        "two": [b"x" * number, b"1.%d" % number],
    }[kind]


@pytest.mark.parametrize("kind", sorted(CODECS))
@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["put", "drop", "rename", "save"]), st.integers(0, 9), st.integers(0, 9))))
def test_a_map_is_a_dictionary_whose_labels_are_never_used_again(kind: str, steps: list[tuple[str, int, int]]) -> None:
    codec = CODECS[kind]
    keys = [codec.from_cells(cells(kind, number)) for number in range(10)]
    assert len(set(keys)) == 10
    known, oracle, used = new_map(codec), dict[object, int](), 0
    for what, one, other in steps:
        if what == "put":
            labels, old = known.put([keys[one]])
            assert labels.tolist() == [used] and old.tolist() == [oracle.get(keys[one], -1)]
            oracle[keys[one]] = used
            used += 1
        elif what == "drop":
            assert known.drop(keys[one]) == oracle.pop(keys[one], -1)
        elif what == "rename" and keys[one] in oracle and one != other:
            label, displaced = known.rename(keys[one], keys[other])
            assert displaced == oracle.pop(keys[other], -1)
            oracle[keys[other]] = oracle.pop(keys[one])
            assert label == oracle[keys[other]]
        else:
            known = restore(codec, known.arrays())
        assert [known.find(key) for key in keys] == [oracle.get(key, -1) for key in keys]
        assert sorted(np.flatnonzero(known.live)) == sorted(oracle.values())
        assert known.keys(np.array(list(oracle.values()), np.int64)) == list(oracle)


@pytest.mark.parametrize("kind", sorted(CODECS))
def test_a_key_reads_as_its_columns_values_and_survives_packing(kind: str) -> None:
    codec = CODECS[kind]
    for number in range(10):
        key = codec.from_cells(cells(kind, number))
        assert codec.unpack(codec.pack(key)) == key
        read = [str(value).encode() for value in codec.to_object(key).values()]
        assert read == cells(kind, number)


def test_a_cell_that_is_no_number_is_refused() -> None:
    with pytest.raises(DecodeError):
        CODECS["int"].from_cells([b"x"])
