"""How many requests the model is given at once: more while it answers as fast, half as many when it is full.

Additive increase, multiplicative decrease (Jacobson, "Congestion avoidance and control", 1988), with latency as the
sign of a queue, as in TCP Vegas: the bound grows only while requests that had to wait for their turn come back nearly
as fast as the fastest of their size, for then the server works on them side by side. Below where it started it grows in
any case, one by one, back from a cut.
"""

from __future__ import annotations

FLAT = 1.5
"""A request that took at most this many times the shortest time of its size counts as not having queued."""
STEEP = 3.0
"""One that took longer than this shows a queue."""
FORGET = 1.01
"""By how much the shortest time of a size is raised with each request: what a server could once do is forgotten."""


class Inflight:
    """The bound on requests in flight. Every request takes a ticket when it begins."""

    def __init__(self, start: int, most: int) -> None:
        """Begin with ``start`` and never go past ``most``."""
        self.limit = start
        self._start = start
        self._most = max(start, most)
        self._cuts = 0
        self._flat = 0
        self._steep = 0
        self._shortest: dict[int, float] = {}

    def ticket(self) -> int:
        """Return what :meth:`succeeded` and :meth:`overloaded` want to know of when a request began."""
        return self._cuts

    def succeeded(self, ticket: int, size: int, seconds: float, *, full: bool) -> None:
        """Take note of an answer.

        Args:
            ticket: the request's.
            size: of its texts, in characters.
            seconds: how long it took.
            full: whether all of the bound was in use when it began; if not, a larger one would be of no use.
        """
        if ticket != self._cuts:
            return
        kind = size.bit_length()
        shortest = min(seconds, self._shortest.get(kind, seconds) * FORGET)
        self._shortest[kind] = shortest
        if not full:
            return
        if self.limit < self._start or seconds <= shortest * FLAT:
            self._flat += 1
        elif seconds > shortest * STEEP:
            self._steep += 1
        if self._flat + self._steep < self.limit:
            return
        if self._steep > self._flat:
            self.limit = max(self._start, self.limit - 1)
        elif self._flat > self._steep:
            self.limit = min(self._most, self.limit + 1)
        self._flat = self._steep = 0

    def overloaded(self, ticket: int) -> None:
        """Halve the bound, once for all the requests that were under way together."""
        if ticket != self._cuts:
            return
        self.limit = max(1, self.limit // 2)
        self._cuts += 1
        self._flat = self._steep = 0
