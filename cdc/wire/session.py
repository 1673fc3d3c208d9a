"""What one replication connection owes the server, and whether the server is still there.

The session is told what arrives and what time it is (seconds of a monotonic clock), and answers three questions: is a
status reply due, how far does it acknowledge, and should the connection be given up? It belongs to one connection: a
position that another one received means nothing here.

Why each rule exists:

* An acknowledgement past what was received is accepted without complaint, and the rows between are never sent again.
  So positions are clamped to what THIS connection received.
* An idle consumer that answers only on request lets WAL pile up, makes a fast shutdown of the server hang, and holds
  back commits that wait for it as a synchronous standby. So every keepalive is answered while nothing is pending.
* The server ends a connection that is silent for ``wal_sender_timeout``, also when it is the one that cannot send
  because we do not read. So replies go out on time whether reading is paused or not.
* A peer that vanished without closing looks like an idle one. So after some silence the server is asked for a sign of
  life, and given up if none comes. While reading is paused nothing could be heard: that time does not count.
* A server in fast shutdown waits for its last position to be acknowledged, asking over and over. With work still
  pending that answer cannot be given, so the way to let it stop is to close the connection.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from cdc.lsn import ZERO, Lsn
from cdc.wire.frames import Keepalive, standby_status

LONGEST_REPLY_INTERVAL_S: Final = 10.0
SHORTEST_REPLY_INTERVAL_S: Final = 0.001


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Times in seconds.

    Attributes:
        reply_interval: A status reply goes out at least this often.
        min_interval: Replies that nobody asked for keep this distance. Live pipelines wait for them, so it is short.
        ask_after: After so much silence the server is asked for a sign of life.
        dead_after: After so much silence the connection is given up; below 30, more than ``ask_after``.
        shutdown_requests: So many requests for a reply within ``shutdown_window``, with no progress, mean shutdown.
        shutdown_window: See there.
    """

    reply_interval: float = LONGEST_REPLY_INTERVAL_S
    min_interval: float = SHORTEST_REPLY_INTERVAL_S
    ask_after: float = 10.0
    dead_after: float = 25.0
    shutdown_requests: int = 5
    shutdown_window: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_interval <= self.reply_interval or not 0 < self.ask_after < self.dead_after < 30:
            raise ValueError("limits need min_interval <= reply_interval and ask_after < dead_after < 30 s")

    @classmethod
    def for_server(cls, wal_sender_timeout: float) -> SessionLimits:
        """Return the limits for a server with this ``wal_sender_timeout`` in seconds; 0 means it has none."""
        if wal_sender_timeout <= 0:
            return cls()
        return cls(reply_interval=max(min(LONGEST_REPLY_INTERVAL_S, wal_sender_timeout / 3), SHORTEST_REPLY_INTERVAL_S))


class ReplicationSession:
    """Feedback and silence of one connection.

    Args:
        now: When the stream started.
        limits: The times to keep.
    """

    def __init__(self, now: float, limits: SessionLimits | None = None) -> None:
        self._limits = limits or SessionLimits()
        self._received = ZERO
        self._acknowledged = ZERO
        self._reported = ZERO
        self._replied_at = now
        self._reply_asked = False
        self._reply_wanted = False
        self._silence = _Silence(now, self._limits)
        self._requests: deque[float] = deque(maxlen=self._limits.shutdown_requests)
        self._shutting_down = False

    @property
    def received(self) -> Lsn:
        """The furthest position that may be acknowledged: end of a commit, or of a keepalive, on this connection."""
        return self._received

    @property
    def acknowledged(self) -> Lsn:
        """What the next status reply gives as flushed and applied."""
        return self._acknowledged

    @property
    def server_is_shutting_down(self) -> bool:
        """The server waits for an acknowledgement that pending work forbids: close the connection to let it stop."""
        return self._shutting_down and self._acknowledged < self._received

    def heard_data(self, now: float) -> None:
        """Frames arrived, of whatever kind; the positions in an XLogData header are not to be trusted and not taken."""
        self._silence.broken(now)

    def heard_commit(self, end_lsn: Lsn) -> None:
        """A Commit message with this end was decoded, from data reported by :meth:`heard_data`."""
        self._advance(end_lsn)

    def heard_keepalive(self, keepalive: Keepalive, now: float) -> None:
        """A keepalive arrived. Acknowledge its position, if nothing is pending, before asking for the reply."""
        self._silence.broken(now)
        self._advance(keepalive.wal_end)
        if keepalive.reply_requested:
            self._reply_asked = True
            self._note_request(now)
        self._reply_wanted = True

    def acknowledge(self, lsn: Lsn) -> Lsn:
        """Let the server forget what lies below ``lsn``; never goes back, never past what was received.

        Returns:
            The acknowledged position after that.
        """
        self._acknowledged = max(self._acknowledged, min(lsn, self._received))
        return self._acknowledged

    def paused(self, now: float, is_paused: bool) -> None:
        """Reading stops or goes on."""
        self._silence.paused(now, is_paused)

    def reply_due(self, now: float) -> bool:
        """Tell whether a status reply should go out now."""
        return self._reply_asked or self._silence.should_ask(now) or now >= self._next_reply()

    def status_bytes(self, now: float, now_us: int) -> bytes:
        """Return the status reply; it counts as sent.

        Args:
            now: The monotonic clock, seconds.
            now_us: The wall clock, microseconds since 2000-01-01 UTC.
        """
        asks = self._silence.should_ask(now)
        if asks:
            self._silence.asked(now)
        self._replied_at = now
        self._reply_asked = self._reply_wanted = False
        self._reported = self._acknowledged
        return standby_status(self._received, self._acknowledged, self._acknowledged, now_us, asks)

    def silent_for(self, now: float) -> float:
        """Seconds of reading since anything arrived."""
        return self._silence.seconds(now)

    def is_dead(self, now: float) -> bool:
        """Tell whether the peer was asked for a sign of life and has stayed silent too long."""
        return self._silence.is_dead(now)

    def next_deadline(self, now: float) -> float:
        """Return when :meth:`reply_due` or :meth:`is_dead` may next change by itself; not before ``now``."""
        if self._reply_asked:
            return now
        return max(now, min(self._next_reply(), self._silence.next_deadline()))

    def _next_reply(self) -> float:
        unreported = self._acknowledged > self._reported
        idle = self._reply_wanted and self._acknowledged >= self._received
        wait = self._limits.min_interval if unreported or idle else self._limits.reply_interval
        return self._replied_at + wait

    def _advance(self, lsn: Lsn) -> None:
        if lsn > self._received:
            self._received = lsn
            self._requests.clear()
            self._shutting_down = False

    def _note_request(self, now: float) -> None:
        if self._acknowledged >= self._received:
            self._requests.clear()
            return
        self._requests.append(now)
        burst = len(self._requests) == self._limits.shutdown_requests
        if burst and now - self._requests[0] <= self._limits.shutdown_window:
            self._shutting_down = True


class _Silence:
    """Seconds in which we listened and heard nothing."""

    def __init__(self, now: float, limits: SessionLimits) -> None:
        self._ask_after = limits.ask_after
        self._dead_after = limits.dead_after
        self._since = now  # while listening: when the silence began, pauses left out
        self._before_pause: float | None = None  # while paused: how long it had lasted
        self._asked_at: float | None = None

    def broken(self, now: float) -> None:
        self._since = now
        self._asked_at = None
        if self._before_pause is not None:
            self._before_pause = 0.0

    def paused(self, now: float, is_paused: bool) -> None:
        if is_paused and self._before_pause is None:
            self._before_pause = self.seconds(now)
        elif not is_paused and self._before_pause is not None:
            # An answer may lie unread in the socket: ask anew, and leave the time to hear it.
            self._since = now - self._before_pause
            self._before_pause = self._asked_at = None

    def seconds(self, now: float) -> float:
        return now - self._since if self._before_pause is None else self._before_pause

    def should_ask(self, now: float) -> bool:
        return self._asked_at is None and now >= self.next_deadline()

    def asked(self, now: float) -> None:
        self._asked_at = now

    def is_dead(self, now: float) -> bool:
        return self._asked_at is not None and now >= self.next_deadline()

    def next_deadline(self) -> float:
        """When to ask; once that is done, when to give up; never while paused."""
        if self._before_pause is not None:
            return float("inf")
        if self._asked_at is None:
            return self._since + self._ask_after
        return max(self._since + self._dead_after, self._asked_at + self._dead_after - self._ask_after)
