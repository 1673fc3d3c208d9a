"""Results of the rows of a request that failed on another row: they were paid for, and the rows will be asked again.

A request is embedded whole or not at all: where one row fails, its callers halve the request or send it again. What is
dear per row (a completion, a download) is kept until then.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from inference.errors import (
    EmbedError,
    ModelFailed,
    ModelMisconfigured,
    ModelUnavailable,
    RequestTooLarge,
    TextRefused,
)

R = TypeVar("R")

MOST_BYTES = 32 << 20


class Kept(Generic[R]):
    """Results by text, the newest of them, up to a number of bytes in all."""

    def __init__(self, size: Callable[[R], int], most_bytes: int = MOST_BYTES) -> None:
        """Keep results whose size in bytes ``size`` tells."""
        self._size = size
        self._most = most_bytes
        self._results: OrderedDict[str, R] = OrderedDict()
        self.bytes = 0

    def get(self, text: str) -> R | None:
        """Return the result of a text, if it is there."""
        return self._results.get(text)

    def keep(self, text: str, result: R) -> None:
        """Keep a result; the oldest make room for it."""
        self.drop([text])
        self._results[text] = result
        self.bytes += self._cost(text, result)
        while self.bytes > self._most:
            oldest, dropped = self._results.popitem(last=False)
            self.bytes -= self._cost(oldest, dropped)

    def drop(self, texts: Iterable[str]) -> None:
        """Forget the results of texts that were handed over."""
        for text in texts:
            result = self._results.pop(text, None)
            if result is not None:
                self.bytes -= self._cost(text, result)

    def _cost(self, text: str, result: R) -> int:
        return len(text) * 4 + self._size(result)


ORDER = (ModelMisconfigured, ModelUnavailable, ModelFailed, RequestTooLarge, TextRefused)
"""What stops everything goes before what can wait, and that before what is one row's fault."""


def worst(failures: Iterable[EmbedError]) -> EmbedError:
    """Return the failure to raise for a request of which several rows failed."""
    return min(failures, key=lambda failure: [isinstance(failure, kind) for kind in ORDER].index(True))
