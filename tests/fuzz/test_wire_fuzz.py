"""Broken bytes into every decoder: only DecodeError may come out, and nothing may take long.

``FUZZ_SECONDS`` (3) is the time for all targets together; ``FUZZ_SEED`` replays what a failure printed.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Final

import pytest

from cdc.errors import DecodeError
from cdc.testing.walbytes import encode, keepalive, xlog_data
from cdc.wire.frames import BODY, parse_frame
from cdc.wire.pgoutput import decode
from cdc.wire.tuples import ROUTE_KEY, RowDecoder, route_keys
from tests.wire.samples import OID, SAMPLES
from tests.wire.test_tuples import CHANGES, FIVE

SECONDS: Final = float(os.environ.get("FUZZ_SECONDS", "3"))
SEED: Final = int(os.environ.get("FUZZ_SEED", random.SystemRandom().randrange(2**32)))
INTERESTING: Final = [b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\0", b"\xc3\x28"]

DECODER: Final = RowDecoder(FIVE, (4, 0, 2))
KEYS: Final = route_keys(FIVE)
READERS: Final = {b"I": DECODER.insert, b"U": DECODER.update, b"D": DECODER.delete}


def routed(data: bytes) -> None:
    """Read as the reader of the stream does."""
    tag = KEYS.get(data[ROUTE_KEY])
    if tag == b"I":
        DECODER.last_tuple(data)
    elif tag is not None:
        READERS[tag](data)


FRAMES: Final = [xlog_data(bytes.fromhex(hexes)) for _, hexes, _ in SAMPLES] + [keepalive(7, 8, True)]
BODIES: Final = [bytes.fromhex(hexes) for _, hexes, _ in SAMPLES]
ROWS: Final = [xlog_data(encode(change)) for change in CHANGES]
TARGETS: Final[dict[str, tuple[list[bytes], Callable[[bytes], object]]]] = {
    "frame": (FRAMES, parse_frame),
    "message": (BODIES, decode),
    "message in a stream block": (BODIES, lambda body: decode(body, streaming=True)),
    "insert": (ROWS, DECODER.insert),
    "update": (ROWS, DECODER.update),
    "delete": (ROWS, DECODER.delete),
    "route": (ROWS, routed),
}


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    """Return a seed with one to four changes: bits, bytes, cuts, repeats, splices with another seed."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        match rng.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                del data[at : at + rng.randint(1, 8)]
            case 3:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
            case 4:
                other = rng.choice(seeds)
                data[at:] = other[rng.randint(0, len(other)) :]
            case _:
                word = rng.choice(INTERESTING)
                data[at : at + len(word)] = word
    return bytes(data)


@pytest.mark.parametrize("target", TARGETS)
def test_only_decode_errors_escape(target: str) -> None:
    seeds, read = TARGETS[target]
    rng = random.Random(f"{SEED} {target}")
    stop, tried, refused = time.monotonic() + SECONDS / len(TARGETS), 0, 0
    while time.monotonic() < stop or tried < 100:
        data = rng.randbytes(rng.randint(0, 80)) if rng.random() < 0.05 else mutated(rng, seeds)
        tried += 1
        try:
            read(data)
        except DecodeError:
            refused += 1
        except Exception as escaped:
            pytest.fail(f"{escaped!r} escaped: {target}, input {data.hex()} (FUZZ_SEED={SEED}, case {tried})")
    print(f"{target}: {tried} inputs, {refused} refused, FUZZ_SEED={SEED}")
    assert 0 < refused < tried  # the mutations reach both the good and the bad paths


def test_a_row_that_decodes_one_way_decodes_the_other_way_too() -> None:
    """The quick and the full decoder agree on which bytes are a row."""
    rng = random.Random(f"{SEED} agree")
    agreed = 0
    for _ in range(3000):
        data = mutated(rng, ROWS)
        tag, oid = data[BODY : BODY + 1], data[BODY + 1 : BODY + 5]
        if tag not in READERS or oid != OID.to_bytes(4):
            continue
        outcomes = [_accepts(decode, data[BODY:]), _accepts(READERS[tag], data)]
        if outcomes[0]:
            cells = [len(part.cells) if hasattr(part, "cells") else len(part) for part in _rows_of(data[BODY:])]
            outcomes[0] = all(count == 5 for count in cells)
        assert outcomes[0] == outcomes[1], f"input {data.hex()}, FUZZ_SEED={SEED}"
        agreed += 1
    assert agreed > 100


def _rows_of(body: bytes) -> list:
    message = decode(body)
    return [row for row in (getattr(message, "old", None), getattr(message, "new", None)) if row is not None]


def _accepts(read: Callable[[bytes], object], data: bytes) -> bool:
    try:
        read(data)
    except DecodeError:
        return False
    return True
