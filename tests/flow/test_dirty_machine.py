"""Random histories against a naive model: whatever is fed, taken, finished, spilled or lost, the target follows.

The model has a source (rows that change by commits), a target, and a durable queue; what is under test decides what is
worked on and how far the log may be acknowledged. A crash may come anywhere: then everything after the acknowledged
position is fed again, and it must come to the same end.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cdc.flow.dirty import Budget, Claim, DirtyKeys, Kind, Work
from cdc.flow.ledger import Commit, Ledger
from cdc.rows import Key

ALL_KEYS: list[Key] = [b"1", b"2", (b"a", b"1")]
KEYS = st.sampled_from(ALL_KEYS)
TEXTS = st.sampled_from([b"", b"a", b"bb", b"a dozen bytes"])
RARELY = st.integers(0, 7).map(lambda n: n == 5)
MAX_TEXT = 24


@dataclass
class Change:
    """One change of a commit: the key (None: truncate), the text after it (None: deleted), and what the tuple tells."""

    key: Key | None
    text: bytes | None
    told: bool
    fresh: bool


@dataclass
class Transaction:
    lsn: int
    end: int
    changes: list[Change] = field(default_factory=list)


class DirtyMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.source: dict[Key, bytes] = {}
        self.target: dict[Key, tuple[bytes, int]] = {}
        self.queue: dict[Key, int] = {}
        self.history: list[Transaction] = []
        self.position = 100
        self.written = 0
        self.durably_acknowledged = 0
        self.epochs: list[tuple[Budget, DirtyKeys, list[Commit | Claim]]] = []
        self.connect()

    # -- the world --------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        self.budget = Budget(MAX_TEXT, 1_000)
        self.dirty = DirtyKeys(self.budget)
        self.ledger = Ledger()
        self.receipts: list[Commit | Claim] = []
        self.working: list[tuple[Work, bytes | None]] = []
        self.leased: set[Key] = set()  # given out of the queue, and not again before the next connection
        self.unseen: set[Key] = set()  # leased while a write was under way, which then does not find them in the queue
        self.replay_until = self.written
        self.fed = next((i for i, t in enumerate(self.history) if t.end > self.durably_acknowledged), len(self.history))
        self.last_acknowledged = 0

    def advance(self) -> int:
        self.position += 10
        return self.position

    @rule(changes=st.lists(st.tuples(KEYS, st.none() | TEXTS, st.booleans()), min_size=1, max_size=3), cut=RARELY)
    def commit(self, changes: list[tuple[Key, bytes | None, bool]], cut: bool) -> None:
        """The source changes; the stream will tell of it later."""
        transaction = Transaction(self.advance(), self.position + 5)
        if cut:
            transaction.changes.append(Change(None, None, True, False))
            self.source.clear()
        for key, text, told in changes:
            if text is None and key not in self.source:
                continue
            transaction.changes.append(Change(key, text, told, key not in self.source))
            if text is None:
                del self.source[key]
            else:
                self.source[key] = text
        self.history.append(transaction)

    @precondition(lambda self: self.fed < len(self.history))
    @rule()
    def feed(self) -> None:
        """The stream tells of the next transaction."""
        self.tell(len(self.history[self.fed].changes))
        self.ledger.end(self.history[self.fed].end)
        self.fed += 1

    @precondition(lambda self: self.fed < len(self.history))
    @rule(steps=st.integers(0, 4), sure=RARELY)
    def break_off(self, steps: int, sure: bool) -> None:
        """The connection ends in the middle of a transaction."""
        if sure:
            self.tell(steps)
            self.connect()

    def tell(self, changes: int) -> None:
        transaction = self.history[self.fed]
        before = self.ledger.acknowledged
        commit = self.ledger.begin(transaction.lsn, 0, 1)
        self.receipts.append(commit)
        for change in transaction.changes[:changes]:
            self.apply(change, commit)
            self.ledger.keepalive(transaction.end + 1_000)  # inside a transaction it promises nothing
            assert self.ledger.acknowledged <= max(before, transaction.lsn - 1)

    def apply(self, change: Change, commit: Commit) -> None:
        if change.key is None:
            self.dirty.truncate(commit)
            return
        if change.text is None:
            kind, text = Kind.DELETE, None
        elif change.told:
            kind, text = Kind.INSERT if change.fresh else Kind.UPDATE, change.text
        else:
            kind, text = Kind.REREAD, None
        if commit.lsn <= self.replay_until:
            kind, text = Kind.REREAD, None
        self.dirty.mark(change.key, kind, text, commit)

    @precondition(lambda self: self.fed == len(self.history))
    @rule()
    def keepalive(self) -> None:
        self.ledger.keepalive(self.advance())

    @rule(sure=RARELY)
    def crash(self, sure: bool) -> None:
        """The process dies; memory is gone, and the stream starts again where it was acknowledged."""
        if sure:
            self.connect()

    @rule()
    def acknowledge(self) -> None:
        self.durably_acknowledged = max(self.durably_acknowledged, self.ledger.acknowledged)

    # -- the worker -------------------------------------------------------------------------------------------------

    @rule(rows=st.integers(1, 4), size=st.integers(1, 20), found=st.booleans())
    def take(self, rows: int, size: int, found: bool) -> None:
        busy = {work.key for work, _ in self.working}
        works = self.dirty.take_found(rows, size) if found else self.dirty.take(rows, size)
        assert len(works) <= rows
        taken = [work.key for work in works]
        assert len(set(taken)) == len(taken) and not busy & set(taken), "a key is in flight twice"
        for work in works:
            reads = work.kind is Kind.REREAD or (work.kind is Kind.FOUND and work.text is None)
            text = self.source.get(work.key) if reads else work.text
            if reads:
                work.lsn = max(work.lsn, self.position)
            self.working.append((work, text))

    @precondition(lambda self: self.working)
    @rule(index=st.integers(0, 50))
    def finish(self, index: int) -> None:
        """A work's write-back is done, or refused."""
        work, text = self.working.pop(index % len(self.working))
        unseen = work.key in self.unseen
        self.unseen.discard(work.key)
        guarded = work.kind >= Kind.REREAD
        stands = self.target.get(work.key)
        newer = stands is not None and stands[1] > work.lsn
        if (guarded and self.source.get(work.key) != text) or (newer and stands is not None and stands[0] != text):
            self.dirty.requeue(work, Kind.REREAD)
            return
        if text is None:
            self.target.pop(work.key, None)
        elif not newer:
            self.target[work.key] = (text, work.lsn)
        if self.queue.get(work.key, 1 << 60) <= work.lsn and not unseen:
            del self.queue[work.key]
            self.leased.discard(work.key)
        self.written = max(self.written, work.lsn)
        self.dirty.settle(work)
        self.dirty.requeue(work)  # cancelled at the very moment of its write

    @precondition(lambda self: self.working)
    @rule(index=st.integers(0, 50), again=st.booleans())
    def give_back(self, index: int, again: bool) -> None:
        """The model is away: the work goes back as it is; who was cancelled meanwhile may say so twice."""
        work, _ = self.working.pop(index % len(self.working))
        self.unseen.discard(work.key)
        self.dirty.requeue(work)
        if again:
            self.dirty.requeue(work)
            self.dirty.settle(work)

    @precondition(lambda self: self.dirty.truncation is not None and not self.working)
    @rule()
    def empty(self) -> None:
        commit = self.dirty.truncation
        assert commit is not None
        self.target = {key: value for key, value in self.target.items() if value[1] > commit.lsn}
        self.queue = {key: lsn for key, lsn in self.queue.items() if lsn > commit.lsn}
        self.leased &= set(self.queue)
        self.written = max(self.written, commit.lsn)
        self.dirty.truncated(commit)

    @rule(rows=st.integers(1, 4), fails=st.booleans())
    def spill(self, rows: int, fails: bool) -> None:
        works = self.dirty.spill(rows)
        for work in works:
            if fails:
                self.dirty.requeue(work)
            else:
                self.queue[work.key] = max(self.queue.get(work.key, 0), work.lsn)
                self.leased.discard(work.key)
                self.written = max(self.written, work.lsn)
                self.dirty.settle(work)

    @rule()
    def load(self) -> None:
        busy = {work.key for work, _ in self.working}
        for key, lsn in list(self.queue.items()):
            if key in self.leased:
                continue
            self.leased.add(key)
            if key in busy:
                self.unseen.add(key)
            claim = Claim(lsn)
            self.receipts.append(claim)
            self.dirty.load(key, claim)

    @rule(keys=st.sets(KEYS), with_text=st.booleans())
    def scan(self, keys: set[Key], with_text: bool) -> None:
        claim = Claim(self.position)
        self.receipts.append(claim)
        for key in keys:
            now = self.source.get(key)
            if now != self.target.get(key, (None, 0))[0]:
                self.dirty.found(key, now if with_text else None, claim)

    # -- what must always hold --------------------------------------------------------------------------------------

    @invariant()
    def acknowledged_never_decreases_nor_passes_work(self) -> None:
        acknowledged = self.ledger.acknowledged
        assert acknowledged >= self.last_acknowledged
        self.last_acknowledged = acknowledged
        for receipt in self.receipts:
            if isinstance(receipt, Commit) and (receipt.outstanding or not receipt.closed):
                assert acknowledged < receipt.end

    @invariant()
    def claims_are_counted(self) -> None:
        """What is outstanding is what is pending, in flight, or a truncation: nothing is counted twice or lost."""
        due = self.dirty.truncation is not None
        pending = self.dirty.stream_rows + self.dirty.found_rows
        assert sum(receipt.outstanding for receipt in self.receipts) == pending + len(self.working) + due
        assert all(receipt.outstanding >= 0 for receipt in self.receipts)

    @invariant()
    def budget_is_exact(self) -> None:
        assert self.budget.rows == self.dirty.stream_rows + self.dirty.found_rows
        assert self.budget.text_bytes >= 0
        if not self.budget.rows:
            assert self.budget.text_bytes == 0
        assert self.dirty.inflight_rows == len(self.working)
        assert self.dirty.rows <= len(ALL_KEYS)

    def teardown(self) -> None:
        """When everything has come to rest, the destination is the source, and nothing is owed."""
        for connections in range(3):
            if connections:
                self.connect()
            for _ in range(200):
                while self.fed < len(self.history):
                    self.feed()
                while self.working:
                    self.finish(0)
                if self.dirty.truncation is not None:
                    self.empty()
                self.take(4, 20, False)
                if not self.working:
                    self.take(4, 20, True)
                if not self.working and self.dirty.truncation is None:
                    if not self.queue:
                        break
                    self.load()
            assert {key: text for key, (text, _) in self.target.items()} == self.source
            assert not self.queue
            assert (self.budget.rows, self.budget.text_bytes, self.dirty.rows) == (0, 0, 0)
            assert all(receipt.outstanding == 0 for receipt in self.receipts)
            if self.history:
                assert self.ledger.acknowledged >= self.history[-1].end or self.fed == len(self.history)


TestDirtyKeys = DirtyMachine.TestCase
TestDirtyKeys.settings = settings(max_examples=500, stateful_step_count=40)
