from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import get_args

import pytest
from hypothesis import given

from cdc.errors import DecodeError
from cdc.lsn import Lsn
from cdc.testing.walbytes import encode
from cdc.wire import messages as m
from cdc.wire.pgoutput import RULES, StreamDecoder, decode
from tests.wire.samples import SAMPLES, X
from tests.wire.strategies import plain_messages, streamed_messages

SHORT_ABORT = 9  # a Stream Abort cut here is the whole message of version 2


@pytest.mark.parametrize(("streaming", "hexes", "message"), SAMPLES, ids=lambda value: type(value).__name__)
def test_the_pages_bytes_are_read(streaming: bool, hexes: str, message: m.Message) -> None:
    assert decode(bytes.fromhex(hexes), streaming=streaming) == message


@pytest.mark.parametrize(("streaming", "hexes", "message"), SAMPLES, ids=lambda value: type(value).__name__)
def test_the_encoder_writes_the_pages_bytes(streaming: bool, hexes: str, message: m.Message) -> None:
    assert encode(message) == bytes.fromhex(hexes)


def test_every_message_of_the_protocol_has_a_sample_and_a_rule() -> None:
    assert {type(message) for _, _, message in SAMPLES} == set(get_args(m.Message))
    assert {bytes.fromhex(hexes)[0] for _, hexes, _ in SAMPLES} == set(RULES) == set(b"BCORYIUDTMSEcAbPKrp")


@given(plain_messages)
def test_messages_round_trip(message: m.Message) -> None:
    assert decode(encode(message)) == message


@given(streamed_messages)
def test_messages_in_a_stream_block_round_trip(message: m.Message) -> None:
    assert decode(encode(message), streaming=True) == message


@pytest.mark.parametrize(("streaming", "hexes", "message"), SAMPLES, ids=lambda value: type(value).__name__)
def test_cut_at_any_byte_is_an_error(streaming: bool, hexes: str, message: m.Message) -> None:
    whole = bytes.fromhex(hexes)
    for cut in range(len(whole)):
        if isinstance(message, m.StreamAbort) and cut == SHORT_ABORT:
            continue
        with pytest.raises(DecodeError):
            decode(whole[:cut], streaming=streaming)


@pytest.mark.parametrize(("streaming", "hexes", "message"), SAMPLES, ids=lambda value: type(value).__name__)
def test_bytes_too_many_are_an_error(streaming: bool, hexes: str, message: m.Message) -> None:
    with pytest.raises(DecodeError):
        decode(bytes.fromhex(hexes) + b"\0", streaming=streaming)


@pytest.mark.parametrize(
    "hexes",
    [
        "",
        "00",
        "7a 00",
        "49 00004000 4e 0001 74 ffffffff 61",  # a negative length
        "49 00004000 4e 0001 74 7fffffff 61",
        "49 00004000 4e 0001 78",  # a kind of cell that does not exist
        "49 00004000 4e ffff 6e",
        "49 00004000 4b 0001 6e",  # an insert with an old row
        "55 00004000 4b 0001 6e 4f 0001 6e",  # two old rows
        "44 00004000 4e 0001 6e",  # a delete with a new row
        "54 ffffffff 00",
        "54 00000001 00 00004000 00004001",
        "52 00004000 ff00 7400 64 0000",  # not UTF-8
        "52 00004000 00 7400 7a 0000",  # a replica identity that does not exist
        "4f 0000000000000001 6162",  # a string without end
        "4d 01 0000000000000001 7000 ffffffff 78",
        f"43 01 {'00' * 24}",  # unknown flags
        f"63 {X} 80 {'00' * 24}",
        f"4b 01 {'00' * 28} 6700",
        f"41 {X} {X} {'00' * 15}",
    ],
)
def test_bytes_that_are_no_message_are_an_error(hexes: str) -> None:
    with pytest.raises(DecodeError):
        decode(bytes.fromhex(hexes))


def test_an_error_says_where_and_shows_no_row() -> None:
    with pytest.raises(DecodeError, match=r"pgoutput Insert, byte 13 of 18: 9 bytes are expected and 5 are left"):
        decode(b"I\0\0\x40\0N\0\x01t\0\0\0\x09secre")
    with pytest.raises(DecodeError) as raised:
        decode(b"I\0\0\x40\0N\0\x01t\0\0\0\x06secret!")
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_unknown_bits_of_other_flags_are_ignored_as_the_server_does() -> None:
    truncate = decode(bytes.fromhex("54 00000001 fd 00004000"))
    assert truncate == m.Truncate(None, (16384,), True, False)


def test_messages_are_frozen_values() -> None:
    with pytest.raises(FrozenInstanceError):
        m.StreamStart(1, True).xid = 1


def test_a_stream_block_changes_how_rows_are_read() -> None:
    decoder = StreamDecoder()
    row = m.Insert(None, 16384, (b"1",))
    in_block = m.Insert(731, 16384, (b"1",))
    commit = m.StreamCommit(731, Lsn(1), Lsn(2), 3)
    script: list[m.Message] = [row, m.StreamStart(731, True), in_block, m.StreamStop(), commit, row]
    assert [decoder.decode(encode(message)) for message in script] == script


def test_stream_blocks_do_not_nest() -> None:
    decoder = StreamDecoder()
    with pytest.raises(DecodeError, match="outside"):
        decoder.decode(b"E")
    decoder.decode(encode(m.StreamStart(731, True)))
    with pytest.raises(DecodeError, match="inside another"):
        decoder.decode(encode(m.StreamStart(732, True)))
