"""The stream of one index: frames become changes, durable in the journal and searchable in the index.

Three threads take part, so that none waits for another: the stream's decodes, writes to the journal (without waiting
for the disk) and hands over; one applies to the index; one makes the journal durable in groups, after which WAL may be
acknowledged. A search therefore sees a change within milliseconds, and the slot never holds WAL back for a save.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from cdc.errors import WalvecError
from cdc.flow.vectorformat import VectorFormat
from cdc.ports.indexes import Indexed
from cdc.services.index_changes import ChangeReader
from cdc.services.index_files import unwritable, writing
from cdc.services.index_journal import Change, Journal, Place
from cdc.services.index_meter import IndexMeter
from cdc.services.keyed_index import KeyedIndex
from cdc.wire.frames import KEEPALIVE, Keepalive, parse_frame, unix_us

log = structlog.get_logger()

MOST_WAITING: Final = 20_000
"""Changes handed over and not yet applied, beyond which reading pauses."""

GROUP: Final = 2048
"""Most changes applied at once."""

IDLE_S: Final = 5.0
"""Seconds between the positions that are noted while nothing of ours happens, so that the slot holds no WAL for us."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A place in the changes: the journal's segment that begins here, and what is in by then."""

    segment: int
    place: Place


class IndexFollower:
    """Implements :class:`cdc.ports.indexes.StreamListener` for one index.

    Args:
        indexed: The column, as it was when the index was made.
        column: Its name.
        form: How its vectors are sent.
        index: What is kept current.
        journal: Open.
        place: What is in the index or in the journal.
        save: Called by the applying thread at a checkpoint that was asked for.
        idle_s: Seconds between noted positions.
    """

    def __init__(
        self,
        indexed: Indexed,
        column: str,
        form: VectorFormat,
        index: KeyedIndex,
        journal: Journal,
        place: Place,
        save: Callable[[Checkpoint], None],
        idle_s: float = IDLE_S,
    ) -> None:
        self.failure: WalvecError | None = None
        self.gap = ""
        self.wake: Callable[[], None] = lambda: None  # something may be acknowledged
        self.failed: Callable[[], None] = lambda: None
        self.unsaved: Callable[[OSError], None] = lambda exc: None  # no checkpoint could be begun
        self.meter = IndexMeter()
        self._index = index
        self._journal = journal
        self._save = save
        self._idle_s = idle_s
        self._noted_at = time.monotonic()
        self._lock = threading.Lock()  # of what is handed over, and of appending to the journal
        self._handed = threading.Condition(self._lock)
        self._queue: deque[tuple[int, list[Change]] | Checkpoint] = deque()
        self._waiting = 0
        self._idle = True  # nothing waits, and nothing is being applied or saved
        self._place = place  # of what is handed over
        self._durable = self._received = self._applied = place.lsn
        self._applied_now = threading.Condition()
        self._syncing = threading.Condition()
        self._stopping = False
        self._new_reader = partial(ChangeReader, indexed, column, form, index)
        self._reader = self._new_reader(place)
        self._threads = [
            # in the job's context: what is logged from there names the database, too
            threading.Thread(target=contextvars.copy_context().run, args=(self._guarded, turn), name=name, daemon=True)
            for turn, name in ((self._apply, "walvec index _apply"), (self._sync, "walvec index _sync"))
        ]
        for thread in self._threads:
            thread.start()

    # -- from outside -----------------------------------------------------------------------------------------------

    def connected(self) -> None:
        """Begin anew with a new connection: what was not acknowledged will be sent again, and passed over.

        That goes for a part of a transaction, too: what was handed over counts, not what was read.
        """
        with self._lock:
            self._reader = self._new_reader(self._place)

    @property
    def applied(self) -> int:
        """The position up to which all commits can be found by a search."""
        return self._applied

    def behind(self) -> tuple[int, float]:
        """Return how many changes wait, and when the oldest was committed (seconds since the epoch; 0: none waits)."""
        return self.meter.waiting, self.meter.oldest

    def checkpoint(self) -> None:
        """Have the index saved: the journal goes on in a new segment, and what it held before goes with the base.

        Where there can be no new segment, it goes on in the one that it has, until it has grown again.
        """
        with self._lock:
            segment = self._journal.segment + 1
            self._journal.bytes = 0
            try:
                self._journal.open(segment)
            except OSError as exc:
                self.unsaved(exc)
                return
            self._queue.append(Checkpoint(segment, self._place))
            self._idle = False
            self._handed.notify_all()

    @property
    def durable(self) -> int:
        """The position up to which the disk holds all there was."""
        return self._durable

    def wait_idle(self, timeout_s: float) -> None:
        """Wait until all that was handed over is applied, and saved where that was asked for; or time ran out."""
        with self._applied_now:
            self._applied_now.wait_for(lambda: self._idle or self.failure is not None, timeout_s)

    def close(self) -> None:
        """Make what was handed over durable, and end the threads. What is not applied yet, the journal has."""
        self._stopping = True
        with self._lock:
            self._queue.clear()
            self._handed.notify_all()
        with self._syncing:
            self._syncing.notify_all()
        for thread in self._threads:
            thread.join()
        self._journal.close()

    @property
    def _written(self) -> int:
        return self._place.lsn

    # -- from the stream's thread -----------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether reading should pause until changes are applied."""
        return self._waiting > MOST_WAITING

    def received(self) -> int:
        """Return the end of the newest commit taken in."""
        return self._received

    def acknowledged(self) -> int:
        """Return the furthest position that may be acknowledged: what the disk holds, and nothing after a gap."""
        return 0 if self.gap else self._durable

    def missed(self, what: str) -> None:
        """Hear that changes were skipped: the index must be built anew."""
        self.gap = what
        self.failed()

    def feed(self, frames: Sequence[bytes]) -> list[Keepalive]:
        """Take frames in, in order; return the keepalives among them.

        Raises:
            DecodeError: a frame is not what the protocol says.
            PipelineFault: the key changed, or the column was dropped, renamed, or changed its type.
            Unavailable: the journal cannot be written. What came is not acknowledged, and comes again.
        """
        if self.failure is not None:
            raise self.failure
        keepalives, changes = list[Keepalive](), list[Change]()
        reader, lsn = self._reader, 0
        since = reader.committed_us
        for frame in frames:
            if frame[0] == KEEPALIVE:
                keepalive = parse_frame(frame)
                assert isinstance(keepalive, Keepalive)
                keepalives.append(keepalive)
                if not reader.is_open and time.monotonic() - self._noted_at > self._idle_s:
                    lsn = max(lsn, keepalive.wal_end)
            else:
                lsn = max(lsn, reader.read(frame, self._written, changes))
                since = since or reader.committed_us
        self._received = max(self._received, reader.ended)
        if changes or lsn > self._written:
            self._hand_over(lsn, changes, unix_us(since) / 1e6)
        if reader.tags:
            self.meter.decoded(reader.tags)
            reader.tags.clear()
        return keepalives

    def _hand_over(self, lsn: int, changes: list[Change], committed: float) -> None:
        with self._lock:
            lsn = max(lsn, self._written)
            place = Place(lsn, self._reader.commit, self._reader.taken)
            with writing(self._journal.folder):
                self._journal.append(place, changes)
            self._place = place
            self._queue.append((lsn, changes))
            self._waiting += len(changes)
            self._idle = False
            self.meter.read(len(changes), committed)
            self._handed.notify_all()  # now, before the disk has it: a search need not wait for that
            self._noted_at = time.monotonic()
        with self._syncing:
            self._syncing.notify_all()

    # -- threads of its own -----------------------------------------------------------------------------------------

    def _guarded(self, turn: Callable[[], bool]) -> None:
        try:
            while turn():
                pass
        except WalvecError as exc:
            self.failure = exc
        except OSError as exc:
            self.failure = unwritable(self._journal.folder, exc)
        except Exception as exc:  # a bug must end the job, not leave it behind the table for ever
            self.failure = WalvecError(f"Keeping the index failed: {type(exc).__name__}: {exc}.")
        if self.failure is not None:
            with self._applied_now:
                self._applied_now.notify_all()  # who waits would wait for ever
            self.failed()

    def _apply(self) -> bool:
        with self._handed:
            if not self._queue:
                self._rest()
            self._handed.wait_for(lambda: self._queue or self._stopping)
            if not self._queue:
                return False
            taken = self._take()
        if isinstance(taken, Checkpoint):
            self._save(taken)
            return True
        lsn, changes = taken
        self._index.apply(changes)
        with self._lock:
            self._waiting -= len(changes)
            commits = self.meter.applied(len(changes))
        with self._applied_now:
            self._applied = max(self._applied, lsn)
            self._applied_now.notify_all()
        self.meter.found(commits, sum(change.what == "put" for change in changes))
        return True

    def _rest(self) -> None:
        with self._applied_now:
            self._idle = True
            self._applied_now.notify_all()

    def _take(self) -> tuple[int, list[Change]] | Checkpoint:
        """Take what comes first, and what follows it, up to a checkpoint or a group's size."""
        first = self._queue.popleft()
        if isinstance(first, Checkpoint):
            return first
        lsn, changes = first
        if self._queue and len(changes) < GROUP:
            changes = list(changes)
            while self._queue and len(changes) < GROUP and not isinstance(following := self._queue[0], Checkpoint):
                lsn = following[0]
                changes += following[1]
                self._queue.popleft()
        return lsn, changes

    def _sync(self) -> bool:
        with self._syncing:
            self._syncing.wait_for(lambda: self._written > self._durable or self._stopping)
            stopping = self._stopping
        with self._lock:
            written = self._written
        self._journal.sync()
        self._durable = written
        self.wake()
        return not stopping
