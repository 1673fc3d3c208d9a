"""Who may touch an HNSW index now: searches of one ``ef`` together, a change alone, in the order in which they came.

hnswlib lets additions run beside each other and searches beside each other, but not one beside the other, and its
``ef`` belongs to the index and not to the query (https://github.com/nmslib/hnswlib#readme, "thread safety").
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Gate:
    """A fair readers/writer lock whose readers come in kinds: those of one kind enter together.

    First come, first served: a stream of searches cannot keep a change waiting, nor the other way round.

    Args:
        turned: Called with the new kind when readers of another kind than before enter, before any of them does.
    """

    def __init__(self, turned: Callable[[int], None]) -> None:
        self._turned = turned
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()
        self._readers = 0
        self._kind: int | None = None
        self._writing = False

    @property
    def kind(self) -> int | None:
        """The kind of the readers that are or were last inside; None before the first."""
        return self._kind

    @contextmanager
    def shared(self, kind: int) -> Iterator[None]:
        """Enter together with others of the same ``kind``."""
        with self._changed:
            self._wait(lambda: not self._writing and (not self._readers or self._kind == kind))
            if self._kind != kind:
                self._turned(kind)
                self._kind = kind
            self._readers += 1
            self._changed.notify_all()  # who stands behind us in the queue may be let in, too
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Enter with nobody else inside."""
        with self._changed:
            self._wait(lambda: not self._writing and not self._readers)
            self._writing = True
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()

    def _wait(self, free: Callable[[], bool]) -> None:
        """Wait for our turn and for ``free``; then leave the queue."""
        ticket = object()
        self._queue.append(ticket)
        try:
            self._changed.wait_for(lambda: self._queue[0] is ticket and free())
        finally:
            self._queue.remove(ticket)
