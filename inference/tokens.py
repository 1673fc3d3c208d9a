"""How many tokens a text will be, guessed from its length, for cutting batches; and how many it was.

A tokenizer costs some 30 µs a text; a guess costs nothing and a batch needs no more: sorting by it already puts alike
texts together. Four bytes of UTF-8 to a token, plus the two marks around a text. Measured with MiniLM's tokenizer on
3,916 docstrings of the standard library the guess is 0.97 of the truth in the median (5th to 95th percentile 0.68 to
1.19, mean error 12 %, 4 % too low in all); on 6,649 pieces of Python source 0.92 (0.61 to 1.29); on 976 paragraphs of
licence prose 1.27 (0.95 to 1.55). Chinese is guessed a quarter too low, Russian by half, base64 by more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

BYTES_PER_TOKEN = 4
MARKS = 2
"""[CLS] and [SEP]."""


class Tally:
    """Tokens that a runtime counted on behalf of one request; None: it has counted none."""

    def __init__(self) -> None:
        self.tokens: int | None = None


_tally: ContextVar[Tally | None] = ContextVar("tally", default=None)


@contextmanager
def tallied() -> Iterator[Tally]:
    """Collect what runtimes :func:`count` inside the block, in tasks that begin there too."""
    tally = Tally()
    token = _tally.set(tally)
    try:
        yield tally
    finally:
        _tally.reset(token)


def count(tokens: int) -> None:
    """Note that ``tokens`` were read for the request that is under way, if somebody collects them."""
    tally = _tally.get()
    if tally is not None:
        tally.tokens = (tally.tokens or 0) + tokens


def estimate(length_bytes: int, max_tokens: int) -> int:
    """Return the tokens to reckon with for a text of ``length_bytes`` in UTF-8: 1 to ``max_tokens``."""
    return max(1, min(max_tokens, MARKS - (-length_bytes // BYTES_PER_TOKEN)))
