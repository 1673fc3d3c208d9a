"""How many rows the source has, kept from the stream.

One ``count(*)`` at the start of a reconcile gives a base and the snapshot it was taken under; from then on inserts and
deletes are added as their commits arrive. Commits that the snapshot covers are in the base already, and commits at or
below the counted position were added before a restart: neither is added twice.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from cdc.flow.ledger import Commit
from cdc.flow.snapshots import Snapshot

_RECENT = 4096


@dataclass(frozen=True, slots=True)
class Counted:
    """The number of source rows as of the commit at ``lsn``; ``snapshot`` is the base's, while it still matters.

    That is up to ``until``, a position that the log had reached when the base was counted, or a later one: no commit
    beyond it is in the base. The stream's transaction ids have 32 bits and come round, so the snapshot must not be
    asked for ever.
    """

    rows: int = 0
    lsn: int = 0
    snapshot: Snapshot | None = None
    until: int = field(default=0, compare=False)


class SourceCount:
    """The row count of one source. Not thread-safe: the caller holds a lock.

    A commit that changed the count holds its place in the ledger until :meth:`persisted` says that the count is
    durable: otherwise a crash right after the acknowledgement would forget the difference.
    """

    def __init__(self, counted: Counted | None = None) -> None:
        self.counted = counted or Counted()
        self._saved = self.counted
        self._pending: deque[Commit] = deque()
        self._recent: deque[tuple[int, bool, int]] = deque(maxlen=_RECENT)  # (xid, truncated, difference since)
        self._open: Commit | None = None
        self._difference = 0
        self._truncated = False

    def add(self, commit: Commit, difference: int) -> None:
        """Note that the open transaction ``commit`` changes the number of rows by ``difference``."""
        if commit is not self._open:
            self._open, self._difference, self._truncated = commit, 0, False
        self._difference += difference

    def truncate(self, commit: Commit) -> None:
        """Note that the open transaction ``commit`` empties the table at this point."""
        if commit is not self._open:
            self._open, self._truncated = commit, False
        self._difference, self._truncated = 0, True

    def close(self, commit: Commit) -> None:
        """Take the differences of ``commit`` into the count; call it at the transaction's end."""
        if commit is not self._open:
            return
        self._open = None
        now = self.counted
        if self._saved.lsn < commit.lsn <= now.lsn and (self._difference or self._truncated):
            self._claim(commit)  # sent again after a reconnect, counted in memory, not yet durable
        snapshot = now.snapshot if commit.lsn <= now.until else None
        if commit.lsn <= now.lsn or (snapshot is not None and snapshot.covers(commit.xid)):
            return
        base = 0 if self._truncated else now.rows
        if base + self._difference != now.rows or self._truncated:
            self._recent.append((commit.xid, self._truncated, self._difference))
            self._claim(commit)
        self.counted = Counted(base + self._difference, commit.lsn, snapshot, now.until)

    def _claim(self, commit: Commit) -> None:
        commit.outstanding += 1
        self._pending.append(commit)

    def rebase(self, rows: int, snapshot: Snapshot, until: int) -> None:
        """Start again from ``rows``, counted under ``snapshot`` before the log reached ``until``.

        Commits heard of but not in it are added again.
        """
        for xid, truncated, difference in self._recent:
            if not snapshot.covers(xid):
                rows = difference if truncated else rows + difference
        self.counted = Counted(rows, self.counted.lsn, snapshot, until)

    @property
    def unsaved(self) -> bool:
        """Whether the count is not durable yet; commits may be waiting for it."""
        return bool(self._pending) or self.counted != self._saved

    def persisted(self, counted: Counted) -> None:
        """Settle the commits whose differences are in ``counted``, which is durable now."""
        self._saved = counted
        while self._pending and self._pending[0].lsn <= counted.lsn:
            self._pending.popleft().outstanding -= 1

    def abandon(self) -> None:
        """Let all commits go: a reconcile that is durably due will count again."""
        while self._pending:
            self._pending.popleft().outstanding -= 1
        self._open = None

    def forget(self) -> None:
        """Drop what belongs to a connection that ended; its unacknowledged commits will be sent again."""
        self._pending.clear()
        self._open = None
