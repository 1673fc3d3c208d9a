"""What the stream of one index is told to count, and how far the index is behind its table."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Final

from cdc.ports import Observer

_OPS: Final = {b"I": "insert", b"U": "update", b"D": "delete", b"T": "truncate"}


class IndexMeter:
    """Counts for one index. :meth:`read` and :meth:`applied` may be called by two threads at once, under one lock.

    Args:
        observer: Told what happens; None: nobody is.
        pipeline: The name that the index has there.
    """

    def __init__(self, observer: Observer | None = None, pipeline: str = "") -> None:
        self._observer = observer
        self._pipeline = pipeline
        self._read = self._applied = 0
        self._behind: deque[tuple[int, float, int]] = deque()  # changes read by then, the commit's time, how many

    @property
    def oldest(self) -> float:
        """When the oldest commit was made that cannot be found yet, in seconds since the epoch; 0: there is none."""
        try:
            return self._behind[0][1]
        except IndexError:  # the other thread has taken the last one
            return 0.0

    @property
    def waiting(self) -> int:
        """Changes that were read and cannot be found yet."""
        return self._read - self._applied

    def tell(self, observer: Observer | None, pipeline: str) -> None:
        """Have ``observer`` told from now on."""
        self._observer, self._pipeline = observer, pipeline

    def read(self, changes: int, committed: float) -> None:
        """Note changes of commits from ``committed`` on (seconds since the epoch), which wait from now on."""
        if changes:
            self._read += changes
            self._behind.append((self._read, committed, changes))

    def applied(self, changes: int) -> list[tuple[float, int]]:
        """Note that the next so many changes can be found; return when they were committed, and how many each time."""
        self._applied += changes
        found = []
        while self._behind and self._behind[0][0] <= self._applied:
            _, committed, rows = self._behind.popleft()
            found.append((committed, rows))
        return found

    def decoded(self, tags: Mapping[bytes, int]) -> None:
        """Tell of decoded changes, by the tag of their message."""
        if self._observer is not None:
            for tag, rows in tags.items():
                self._observer.changes(self._pipeline, _OPS[tag], rows)

    def found(self, commits: list[tuple[float, int]], puts: int) -> None:
        """Tell that changes of these commits can be found, so many vectors among them."""
        if self._observer is None:
            return
        now = time.time()
        if puts:
            self._observer.embedded(self._pipeline, puts, 0)
        ages = [max(0.0, now - committed) for committed, rows in commits for _ in range(rows)]
        if ages:
            self._observer.visible(self._pipeline, ages)
