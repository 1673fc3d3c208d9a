from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.errors import DecodeError
from cdc.lsn import Lsn
from cdc.testing import walbytes
from cdc.wire.frames import BODY, Keepalive, XLogData, parse_frame, pg_us, standby_status, unix_us
from tests.wire.strategies import lsns, times

DATA = "77 00000016b374d848 00000016b374d878 0000000000000002 45"
ALIVE = "6b 00000016b374d848 ffffffffffffffff 01"


def test_the_pages_bytes_are_read() -> None:
    assert parse_frame(bytes.fromhex(DATA)) == XLogData(Lsn(0x16_B374D848), Lsn(0x16_B374D878), 2, b"E")
    assert parse_frame(bytes.fromhex(ALIVE)) == Keepalive(Lsn(0x16_B374D848), -1, True)
    assert bytes.fromhex(DATA)[BODY:] == b"E"


def test_the_status_reply_is_that_of_the_page() -> None:
    reply = standby_status(1, 2, 3, 4, True)
    assert (
        reply.hex() == "72" + "0000000000000001" + "0000000000000002" + "0000000000000003" + "0000000000000004" + "01"
    )
    assert standby_status(0, 0, 0, -1).hex() == "72" + "00" * 24 + "ff" * 8 + "00"


@given(lsns, times, st.binary(max_size=50), st.booleans())
def test_frames_round_trip(lsn: Lsn, sent_us: int, body: bytes, asked: bool) -> None:
    assert parse_frame(walbytes.xlog_data(body, lsn, sent_us)) == XLogData(lsn, lsn, sent_us, body)
    assert parse_frame(walbytes.keepalive(lsn, sent_us, asked)) == Keepalive(lsn, sent_us, asked)
    status = walbytes.read_status(standby_status(lsn, lsn // 2, lsn // 3, sent_us, asked))
    assert status == walbytes.StandbyStatus(lsn, Lsn(lsn // 2), Lsn(lsn // 3), sent_us, asked)


@pytest.mark.parametrize("frame", [DATA, ALIVE])
def test_a_cut_frame_is_an_error(frame: str) -> None:
    whole = bytes.fromhex(frame)
    for cut in range(min(BODY, len(whole))):
        with pytest.raises(DecodeError):
            parse_frame(whole[:cut])


@pytest.mark.parametrize("frame", [bytes.fromhex(ALIVE) + b"\0", b"d", b"\xff" * 40, b"s" + b"\0" * 40])
def test_a_strange_frame_is_an_error(frame: bytes) -> None:
    with pytest.raises(DecodeError):
        parse_frame(frame)


def test_clocks_convert() -> None:
    moment = datetime(2026, 3, 4, 5, 6, 7, 89, UTC)
    since_2000 = (moment - datetime(2000, 1, 1, tzinfo=UTC)).total_seconds()
    assert pg_us(round(moment.timestamp() * 1e6)) == round(since_2000 * 1e6)
    assert unix_us(pg_us(123)) == 123
    assert unix_us(0) == round(datetime(2000, 1, 1, tzinfo=UTC).timestamp() * 1e6)
