"""From dirty keys to settled embeddings, over stand-ins: what fails costs the right rows, and nothing is forgotten."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager

import pytest

from cdc.errors import PipelineFault, Unavailable
from cdc.flow.counts import SourceCount
from cdc.flow.dirty import Budget, Claim, DirtyKeys, Kind
from cdc.flow.disposition import Failure
from cdc.flow.ledger import Commit
from cdc.flow.snapshots import Snapshot
from cdc.ports import EmbedFailed, Model, Observer, Target
from cdc.prepare.text import source_hash
from cdc.rows import Key
from cdc.services import delivery, writer
from cdc.services.delivery import Delivery, ModelAway
from cdc.services.desk import Desk
from cdc.services.gate import ModelGate, Priority
from cdc.services.scan import Progress, Scan
from cdc.services.writer import Writer
from cdc.testing.twins import MemoryTarget, ScriptedModel, Tally


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    for module in (delivery, writer):
        monkeypatch.setattr(module, "backoff_s", lambda *_, **__: 0.0)


class Bench:
    """A desk with works on it, and everything that delivers them."""

    def __init__(self, model: ScriptedModel, rows: dict[Key, bytes] | None = None, attempts: int = 3) -> None:
        self.target, self.model, self.tally = MemoryTarget(dict(rows or {})), model, Tally()
        lock = threading.Lock()
        self.desk = Desk("twin", lock, DirtyKeys(Budget(1 << 20, 1 << 20)), SourceCount(), self.target.fingerprint)
        self.gate = ModelGate(model, 2, self.tally)
        self.writer = Writer(self.desk, self.target, self.tally, None, lambda: None)
        self.delivery = Delivery(self.desk, self.target, self.gate, self.writer, self.tally, attempts)
        self.commit = Commit(100, xid=7)

    def mark(self, kind: Kind = Kind.INSERT, /, **rows: str | None) -> None:
        for key, text in rows.items():
            raw = None if text is None else text.encode()
            if raw is not None:
                self.target.rows[key.encode()] = raw
            self.desk.dirty.mark(key.encode(), kind, raw, self.commit)

    async def deliver(self) -> None:
        for _ in range(20):
            works = self.desk.dirty.take(100, 1 << 20) or self.desk.dirty.take_found(100, 1 << 20)
            if not works:
                return
            await self.delivery.deliver(works, Priority.LIVE)
        raise AssertionError("it never comes to rest")

    @property
    def embedded(self) -> set[bytes]:
        return set(self.target.embeddings)  # type: ignore[arg-type]


@asynccontextmanager
async def bench(model: ScriptedModel | None = None, **options):
    it = Bench(model or ScriptedModel(), **options)
    running = asyncio.create_task(it.writer.run())
    try:
        yield it
    finally:
        await it.gate.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def failing(failure: Failure, when=lambda texts: True) -> ScriptedModel:
    return ScriptedModel(fails=lambda texts: EmbedFailed(failure, "why", "It failed.") if when(texts) else None)


def test_the_twins_are_what_the_ports_say():
    promised: tuple[Target, Observer, Model] = (MemoryTarget(), Tally(), ScriptedModel())
    assert len(promised) == 3


async def test_rows_are_embedded_each_with_its_own_vector_and_their_commit_settles():
    async with bench() as it:
        it.mark(**{"1": "aa", "2": "b", "3": "aa", "4": "   ", "5": None})
        await it.deliver()
        assert it.embedded == {b"1", b"2", b"3"}
        assert it.target.vectors == {b"1": [2, 2, 0, 1], b"2": [1, 0, 1, 1], b"3": [2, 2, 0, 1]}
        assert it.commit.outstanding == 0 and it.desk.dirty.rows == 0


async def test_what_the_model_counted_stands_in_the_place_of_what_was_guessed():
    heard = []
    for counted in (None, 0, 10):
        model = ScriptedModel()
        model.counted = counted
        async with bench(model) as it:
            it.tally.embedded = lambda pipeline, rows, tokens: heard.append((rows, tokens))
            it.mark(**{"1": "aa", "2": "b", "3": "aa", "4": "cccc"})
            await it.deliver()
    assert heard == [(4, 9), (4, 0), (4, 10)]  # a guess is one per byte and row; the same text is counted once


async def test_a_row_that_was_seen_gone_does_not_come_back_with_an_older_text():
    """Its embedding is removed ahead of the stream, which then brings a text from before the row was deleted."""
    async with bench() as it:
        it.target.embeddings[b"1"] = (b"a newer text", 200)
        it.desk.dirty.mark(b"1", Kind.REREAD, None, it.commit)
        await it.deliver()
        assert it.embedded == set()
        for kind in (Kind.INSERT, Kind.UPDATE):
            it.desk.dirty.mark(b"1", kind, b"an older text", it.commit)
            await it.deliver()
            assert it.embedded == set(), f"an {kind.name} from before the row was gone brought it back"
        later = Commit(it.desk.replay_until + 1, xid=8)
        it.target.rows[b"1"] = b"the row's next life"
        it.desk.dirty.mark(b"1", Kind.INSERT, b"the row's next life", later)
        await it.deliver()
        assert it.embedded == {b"1"}


async def test_the_same_text_is_embedded_once_per_window():
    async with bench() as it:
        for n in range(50):
            it.mark(**{str(n): "same"})
        await it.deliver()
        assert it.model.batches == [["same"]] and len(it.embedded) == 50


async def test_a_refused_row_is_found_by_halving_and_buried_after_one_try_alone():
    async with bench(failing(Failure.REFUSED, lambda texts: "bad" in texts)) as it:
        it.target.embeddings[b"3"] = (b"of another text", 1)
        it.mark(**{"1": "a", "2": "b", "3": "bad", "4": "c"})
        await it.deliver()
        assert it.embedded == {b"1", b"2", b"4"}  # the old embedding of row 3 is of another text: it goes
        assert list(it.target.letters) == [b"3"]
        assert it.model.batches.count(["bad"]) == 1
        assert it.commit.outstanding == 0
        assert "bad" not in it.target.letters[b"3"].message


async def test_a_row_that_was_set_aside_waits_for_another_text_or_a_scan():
    async with bench(failing(Failure.REFUSED, lambda texts: "bad" in texts)) as it:
        it.mark(**{"3": "bad", "4": "good"})
        await it.deliver()
        asked = it.model.batches.count(["bad"])
        for kind in (Kind.INSERT, Kind.UPDATE):
            it.mark(kind, **{"3": "bad", "5": "bad"})  # row 5 has its first try
            await it.deliver()
        it.desk.dirty.mark(b"3", Kind.REREAD, None, it.commit)
        await it.deliver()
        assert it.model.batches.count(["bad"]) == asked + 1
        assert set(it.target.letters) == {b"3", b"5"} and it.commit.outstanding == 0
        it.desk.dirty.found(b"3", b"bad", Claim())
        await it.deliver()
        assert it.model.batches.count(["bad"]) == asked + 2
        it.mark(Kind.UPDATE, **{"3": "mended"})
        await it.deliver()
        assert b"3" in it.embedded


async def test_a_model_that_is_away_never_costs_a_row_anything():
    async with bench(failing(Failure.UNAVAILABLE)) as it:
        it.mark(**{"1": "a", "2": "b"})
        for _ in range(20):
            with pytest.raises(ModelAway):
                await it.deliver()
        assert not it.target.letters and it.commit.outstanding == 2
        assert not it.gate.is_up
        it.model.fails = lambda texts: None
        await asyncio.wait_for(it.gate.ready(), 10)
        await it.deliver()
        assert it.embedded == {b"1", b"2"} and it.commit.outstanding == 0


async def test_a_broken_model_is_tried_max_attempts_times_before_a_row_is_buried():
    async with bench(failing(Failure.FAILED, lambda texts: "a" in texts), attempts=5) as it:
        it.mark(**{"1": "a"})
        await it.deliver()
        assert it.model.batches.count(["a"]) == 5
        assert it.target.letters[b"1"].attempts == 5


@pytest.mark.parametrize("failure", [Failure.FAILED, Failure.REFUSED, Failure.SILENT])
async def test_a_model_that_fails_on_everything_is_down_whatever_it_calls_the_failure(failure):
    async with bench(failing(failure)) as it:
        it.mark(**{"1": "a", "2": "b"})
        for _ in range(10):
            with pytest.raises(ModelAway):
                await it.deliver()
        assert not it.target.letters and it.commit.outstanding == 2
        assert not it.gate.is_up


async def test_wrong_credentials_stop_and_bury_nothing():
    async with bench(failing(Failure.MISCONFIGURED)) as it:
        it.mark(**{"1": "a"})
        with pytest.raises(ModelAway) as stopped:
            await it.deliver()
        assert stopped.value.needs_person and not it.target.letters and it.commit.outstanding == 1


async def test_a_value_that_the_database_refuses_is_found_by_halving():
    async with bench() as it:
        it.target.refuses = {b"bad"}
        it.mark(**{"1": "a", "2": "b", "3": "bad", "4": "bad", "5": "c"})
        await it.deliver()
        assert it.embedded == {b"1", b"2", b"5"} and set(it.target.letters) == {b"3", b"4"}
        assert it.target.vectors == {b"1": [1, 1, 0, 1], b"2": [1, 0, 1, 1], b"5": [1, 0, 0, 1]}


async def test_an_update_that_left_the_text_alone_costs_no_request():
    async with bench() as it:
        it.mark(**{"1": "a"})
        await it.deliver()
        it.mark(Kind.UPDATE, **{"1": "a"})
        await it.deliver()
        assert len(it.model.batches) == 1 and it.tally.heard["skipped"] == 1 and it.commit.outstanding == 0


async def test_a_write_that_meets_a_newer_version_reads_the_row_again():
    async with bench() as it:
        it.mark(**{"1": "older"})
        it.target.rows[b"1"] = b"newest"
        it.target.embeddings[b"1"] = (b"in between", 500)
        await it.deliver()
        assert it.target.reads == [[b"1"]]
        assert it.target.embeddings[b"1"] == (it.target.digest(b"1"), 1_000)
        assert it.commit.outstanding == 0


async def test_a_row_that_changes_between_reading_and_writing_is_read_again():
    async with bench(rows={b"1": b"first"}) as it:
        changes = iter([b"second"])

        def change() -> None:
            it.target.rows[b"1"] = next(changes, it.target.rows[b"1"])

        it.target.before_write = change
        it.mark(Kind.REREAD, **{"1": None})
        await it.deliver()
        assert len(it.target.reads) == 2 and it.target.embeddings[b"1"][0] == it.target.digest(b"1")


async def test_nothing_is_read_before_its_commit_is_visible():
    hidden = Snapshot(7, 8, frozenset({7}))
    async with bench(rows={b"1": b"new"}) as it:
        it.target.snapshots = [hidden, hidden, Snapshot(8, 8, frozenset())]
        it.mark(Kind.REREAD, **{"1": None})
        works = it.desk.dirty.take(1, 10)
        task = asyncio.create_task(it.delivery.deliver(works, Priority.LIVE))
        while it.target.snapshots:
            assert not it.target.reads
            await asyncio.sleep(0)
        await task
        assert it.target.reads == [[b"1"]]


async def test_cancellation_forgets_nothing():
    async with bench() as it:
        for n in range(10):
            it.mark(**{str(n): f"text {n}"})
        it.model.open.clear()
        works = it.desk.dirty.take(100, 1 << 20)
        task = asyncio.create_task(it.delivery.deliver(works, Priority.LIVE))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert it.desk.dirty.stream_rows == 10 and it.commit.outstanding == 10
        it.model.open.set()
        await it.deliver()
        assert len(it.embedded) == 10 and it.commit.outstanding == 0


async def test_cancelled_at_the_very_moment_of_its_write_a_work_is_counted_once():
    async with bench() as it:
        it.mark(**{"1": "a"})
        works = it.desk.dirty.take(1, 10)
        task = asyncio.create_task(it.delivery.deliver(works, Priority.LIVE))
        it.writer._settled = task.cancel
        await asyncio.gather(task, return_exceptions=True)
        assert it.embedded == {b"1"} and it.commit.outstanding == 0 and it.desk.dirty.rows == 0


async def test_a_writer_that_has_ended_takes_nothing_more():
    it = Bench(ScriptedModel())
    running = asyncio.create_task(it.writer.run())
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    it.mark(Kind.INSERT, **{"1": "a"})
    with pytest.raises(Unavailable):
        await asyncio.wait_for(it.delivery.deliver(it.desk.dirty.take(1, 10), Priority.LIVE), 5)
    assert it.commit.outstanding == 1 and it.desk.dirty.stream_rows == 1


async def test_a_database_that_is_away_is_waited_for_and_a_fault_is_told():
    async with bench() as it:
        it.target.failures = [Unavailable("Away."), Unavailable("Away.")]
        it.mark(**{"1": "a"})
        await it.deliver()
        assert it.embedded == {b"1"}
        it.target.failures = [PipelineFault("The destination is gone.")]
        it.mark(**{"2": "b"})
        with pytest.raises(PipelineFault):
            await it.deliver()
        assert it.commit.outstanding == 1 and it.desk.dirty.stream_rows == 1


async def test_live_rows_go_before_what_a_scan_found():
    order: list[str] = []
    model = ScriptedModel()
    gate = ModelGate(model, 1, Tally())
    model.open.clear()

    async def ask(name: str, priority: Priority) -> None:
        await gate.embed("twin", [name], priority)
        order.append(name)

    first = asyncio.create_task(ask("first", Priority.SCAN))
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(ask(f"scan {n}", Priority.SCAN)) for n in range(2)]
    waiting.append(asyncio.create_task(ask("live", Priority.LIVE)))
    await asyncio.sleep(0)
    waiting[0].cancel()  # who gives up gives its place up too
    model.open.set()
    await asyncio.gather(first, *waiting, return_exceptions=True)
    assert order == ["first", "live", "scan 1"]


async def test_a_scan_walks_rows_then_orphans_and_its_cursor_passes_only_what_is_done():
    rows = {b"%03d" % n: b"text %d" % n for n in range(300)}
    async with bench(rows=rows) as it:
        it.target.embeddings = {b"gone": (b"x", 1), b"000": (it.target.digest(b"000") or b"", 1)}
        moved, wake = asyncio.Event(), asyncio.Event()
        it.writer._settled = moved.set
        scan = Scan(it.desk, it.target, Progress("first backfill"), moved, wake, it.writer.between)
        task = asyncio.create_task(scan.run(lambda: False))
        while not task.done():
            assert scan.progress.phase == "orphans" or scan.progress.cursor is None or len(it.embedded) > 1
            await it.deliver()
            await asyncio.sleep(0)
        await task
        assert it.embedded == set(rows)
        assert it.target.saved_scans[-1][0] is None and it.target.counted.rows == 300
        assert it.desk.count.counted.rows == 300


async def test_a_scan_asked_for_while_one_runs_comes_after_it():
    async with bench(rows={b"1": b"a"}) as it:
        moved, wake = asyncio.Event(), asyncio.Event()
        it.writer._settled = moved.set
        progress = Progress("first")
        scan = Scan(it.desk, it.target, progress, moved, wake, it.writer.between)

        def again() -> bool:
            progress.reason, progress.phase, progress.cursor = "second", "rows", None
            return True

        task = asyncio.create_task(scan.run(again))
        while not task.done():
            await it.deliver()
            await asyncio.sleep(0)
        assert it.target.saved_scans[-1] == ("second", "rows", None)


async def test_a_found_row_of_an_earlier_life_is_removed_only_while_the_source_has_none():
    async with bench() as it:
        it.target.embeddings[b"1"] = (b"x", 1)
        it.desk.dirty.found(b"1", None, Claim(900))
        await it.deliver()
        assert it.embedded == set()


async def test_a_row_that_was_written_while_its_page_was_read_is_not_embedded_again():
    """In place, the write of a pipeline beside this one brings every row through the stream, a scan's rows too."""
    async with bench(rows={b"1": b"a", b"2": b"b"}) as it:
        it.target.in_place = True
        it.target.embeddings[b"1"] = (source_hash(it.target.fingerprint, b"a"), 50)
        for key, text in it.target.rows.items():
            it.desk.dirty.found(key, text, Claim(60))
        await it.deliver()
        assert it.model.batches == [["b"]] and it.embedded == {b"1", b"2"}
        assert it.tally.heard["skipped"] == 1 and it.desk.dirty.rows == 0


async def scanned(it: Bench) -> None:
    """Walk the source once; what is found is delivered."""
    moved, wake = asyncio.Event(), asyncio.Event()
    scan = Scan(it.desk, it.target, Progress("asked for"), moved, wake, it.writer.between)
    await scan.run(lambda: False)


async def test_a_text_from_before_a_change_without_event_does_not_go_over_what_a_scan_found_to_agree():
    """A column is dropped and made again, say: the row's text is another, and no event overtakes the older one."""
    async with bench(rows={b"1": b"now"}) as it:
        it.target.embeddings = {b"1": (it.target.digest(b"1") or b"", 90)}
        await scanned(it)
        it.desk.dirty.mark(b"1", Kind.UPDATE, b"as it was", it.commit)  # of position 100; the scan was at 1,000
        await it.deliver()
        assert it.target.embeddings[b"1"][0] == it.target.digest(b"1")
        assert it.commit.outstanding == 0


async def test_nor_does_one_that_is_at_the_model_while_the_scan_looks():
    async with bench(rows={b"1": b"now"}) as it:
        it.target.embeddings = {b"1": (it.target.digest(b"1") or b"", 90)}
        it.model.open.clear()
        it.desk.dirty.mark(b"1", Kind.UPDATE, b"as it was", it.commit)
        delivering = asyncio.create_task(it.deliver())
        while not it.model.batches:
            await asyncio.sleep(0)
        await scanned(it)
        it.model.open.set()
        await delivering
        assert it.target.embeddings[b"1"][0] == it.target.digest(b"1")
        assert it.commit.outstanding == 0


async def test_a_scan_looks_at_nothing_before_a_write_that_is_under_way_has_ended():
    async with bench(rows={b"1": b"now"}) as it:
        it.mark(**{"1": "now"})
        order = []
        it.target.before_write = lambda: order.append("write")
        read = it.target.scan
        ended = asyncio.Event()
        write = it.target.write

        async def slow(*args):
            written = await write(*args)
            await ended.wait()
            order.append("written")
            return written

        async def seen(*args):
            order.append("page")
            return await read(*args)

        it.target.write, it.target.scan = slow, seen
        delivering = asyncio.create_task(it.deliver())
        while "write" not in order:
            await asyncio.sleep(0)
        scanning = asyncio.create_task(scanned(it))
        for _ in range(20):
            await asyncio.sleep(0)
        ended.set()
        await asyncio.gather(delivering, scanning)
        assert order[:3] == ["write", "written", "page"]
