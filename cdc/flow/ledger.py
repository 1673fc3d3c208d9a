"""How far the write-ahead log may be acknowledged.

A replication slot is acknowledged by position, and acknowledging a position promises that nothing before it is ever
needed again. Work settles in any order, so the ledger keeps the commits that still have unsettled work, in commit
order, and the position that was safe just before each of them began. The rule is one line: *the acknowledged position
is the floor of the oldest unsettled commit, or everything received when there is none.*

Facts it leans on (https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html):

* protocol version 1 delivers whole transactions, in commit order, so one transaction is open at a time;
* ``end_lsn`` of Commit is where the next read may start; positions inside a transaction are never acknowledged;
* a keepalive's ``wal_end`` between transactions promises that all commits before it have been delivered. Idle consumers
  must acknowledge it, or the server keeps WAL for ever and cannot shut down.

A change that a newer one of the same key overtakes moves its claim to the newer commit: should walvec stop there, the
newer commit is delivered again, and with it the row's newest state.
"""

from __future__ import annotations

from collections import deque

from cdc.lsn import ZERO, Lsn


class Commit:
    """A transaction in the stream, and how many dirty keys still stand on it.

    ``lsn`` is the position of the commit record, which orders versions; ``time_us`` the commit time in microseconds
    since the Unix epoch, by the server's clock; ``floor`` what may be acknowledged while this commit is unsettled.
    """

    __slots__ = ("closed", "end", "floor", "lsn", "outstanding", "time_us", "xid")

    def __init__(self, lsn: int, xid: int = 0, time_us: int = 0, floor: int = ZERO) -> None:
        self.lsn = lsn
        self.end = lsn
        self.xid = xid
        self.time_us = time_us
        self.floor = floor
        self.outstanding = 0
        self.closed = False

    def __repr__(self) -> str:
        return f"Commit({self.lsn:#x}, outstanding={self.outstanding}, closed={self.closed})"


class Ledger:
    """The open and unsettled commits of one replication connection. Not thread-safe: the caller holds a lock."""

    def __init__(self) -> None:
        self._unsettled: deque[Commit] = deque()
        self._open: Commit | None = None
        self._received: int = ZERO

    @property
    def open(self) -> Commit | None:
        """The transaction being received now, if any."""
        return self._open

    def begin(self, lsn: int, xid: int, time_us: int) -> Commit:
        """Open the transaction that commits at ``lsn``."""
        commit = Commit(lsn, xid, time_us, self._received)
        self._open = commit
        self._unsettled.append(commit)
        return commit

    def end(self, end_lsn: int) -> None:
        """Close the open transaction; ``end_lsn`` is where the WAL after its commit record starts."""
        commit = self._open
        if commit is not None:
            commit.end = end_lsn
            commit.closed = True
            self._open = None
        self._received = max(self._received, end_lsn)

    def keepalive(self, wal_end: int) -> None:
        """Note that all commits before ``wal_end`` have been delivered. Within a transaction it promises nothing."""
        if self._open is None:
            self._received = max(self._received, wal_end)

    @property
    def oldest(self) -> Commit | None:
        """The oldest commit with unsettled work, open or closed."""
        unsettled = self._unsettled
        while unsettled and unsettled[0].closed and unsettled[0].outstanding == 0:
            unsettled.popleft()
        return unsettled[0] if unsettled else None

    @property
    def acknowledged(self) -> Lsn:
        """The furthest position that passes no unsettled work."""
        oldest = self.oldest
        return Lsn(self._received if oldest is None else oldest.floor)

    @property
    def received(self) -> Lsn:
        """The end of all that has been received."""
        return Lsn(self._received)
