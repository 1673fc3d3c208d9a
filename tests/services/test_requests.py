"""Manual runs: one that was asked for while a scan was at work is answered by the next scan, never by that one."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from cdc.flow.counts import SourceCount
from cdc.flow.dirty import Budget, DirtyKeys
from cdc.ports import Request, Wanted
from cdc.services.desk import Desk
from cdc.services.fleet import Fleet
from cdc.services.gate import ModelGate
from cdc.services.intake import Intake
from cdc.services.member import Member
from cdc.services.pipeline import Pipeline, Tuning
from cdc.services.scan import Progress
from cdc.services.tasks import end
from cdc.testing.twins import MemoryTarget, ScriptedModel, Tally

ID = 7


class Books(MemoryTarget):
    """A target, and the control schema's requests beside it; ``said`` is what was noted, in order."""

    def __init__(self) -> None:
        super().__init__({b"1": b"text"})
        self.said: list[str] = []
        self.asked: list[int] = []
        self.started: set[int] = set()
        self.finished: set[int] = set()
        self.slow = asyncio.Event()  # set: a note waits for nothing
        self.slow.set()

    async def save_scan(
        self, reason: str | None, phase: str, cursor: tuple[str, ...] | None, done: int, total: int
    ) -> None:
        await asyncio.sleep(0)
        if reason is None:
            self.said.append("a scan ends")
            await self.slow.wait()
        elif cursor is None and phase == "rows":
            self.said.append("a scan begins")
        await super().save_scan(reason, phase, cursor, done, total)

    async def need_reconcile(self, reason: str, id: int | None = None) -> None:
        await asyncio.sleep(0)

    async def start_requests(self, requests: list[int]) -> None:
        await asyncio.sleep(0)
        self.said.append("a request is taken up")
        self.started |= set(requests)

    async def finish_requests(self, id: int) -> None:
        if self.started - self.finished:
            self.said.append("requests are finished")
        self.finished |= self.started


@pytest.fixture
async def fleet():
    books = Books()
    lock = threading.Lock()
    budget = Budget(1 << 20, 1 << 20)
    intake = Intake(lock, budget, Tally(), lambda: None, lambda: None)
    nothing: Any = SimpleNamespace()
    registry: Any = books
    tuning = Tuning(8, 0.0, 3)
    it = Fleet(registry, intake, nothing, Tally(), None, tuning, lambda: None, lambda: None)
    member = Member(Wanted("twin", "live", "digest", "storage"))
    gate = ModelGate(ScriptedModel(), 2, Tally())
    desk = Desk("twin", lock, DirtyKeys(budget), SourceCount(), books.fingerprint)

    async def barrier() -> None:
        await asyncio.sleep(0)

    member.followed = SimpleNamespace(id=ID, target=books)  # type: ignore[assignment]
    member.pipeline = Pipeline(
        desk, books, gate, Tally(), None, tuning, Progress("first backfill"),
        barrier=barrier, settled=lambda: None, backfilled=lambda: it._backfilled(member),
    )  # fmt: skip
    it._index = lambda member: None  # type: ignore[method-assign]
    it.members["twin"] = member
    running = asyncio.create_task(member.pipeline.run())
    try:
        yield it, books
    finally:
        await end([running])
        await gate.close()


async def until(happened) -> None:
    for _ in range(1000):
        if happened():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it never happens")


async def test_a_request_is_finished_by_the_scan_that_it_was_told(fleet):
    it, books = fleet
    await until(lambda: books.said[-1:] == ["a scan ends"])
    await it.answer([Request(1, ID), Request(2, ID)])
    await until(lambda: books.finished == {1, 2})
    assert books.said == [
        "a scan begins", "a scan ends",
        "a request is taken up", "a scan begins", "a scan ends", "requests are finished",
    ]  # fmt: skip


async def test_the_end_of_an_earlier_scan_finishes_no_request(fleet):
    """It is asked for in the moment when that scan's end is being noted: what it asks about may just have changed."""
    it, books = fleet
    books.slow.clear()
    await until(lambda: books.said[-1:] == ["a scan ends"])
    asking = asyncio.create_task(it.answer([Request(1, ID)]))
    await until(lambda: books.started == {1})
    books.slow.set()
    books.said.clear()
    await asking
    await until(lambda: books.finished == {1})
    assert books.said == ["a scan begins", "a scan ends", "requests are finished"]
