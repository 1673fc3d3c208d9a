"""How far a walk says it has come, and from where it would go on."""

import asyncio
from threading import RLock
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

from cdc.flow.dirty import Claim
from cdc.ports import Difference, Page
from cdc.services.scan import Progress, Scan


async def test_rows_of_a_page_that_is_not_done_count():
    claims: list[Claim] = []

    def found(key: object, text: object, claim: Claim) -> None:
        claim.outstanding += 1
        claims.append(claim)

    async def read(after: object, rows: int, text_bytes: int) -> Page:
        differences = tuple(Difference(b"%d" % n, b"t") for n in range(60))
        return Page(100, ("99",), differences, 1) if after is None else Page(0, None, (), 1)

    desk: Any = SimpleNamespace(lock=RLock(), dirty=SimpleNamespace(found=found))
    saved: list[int] = []

    async def save_scan(*state: Any) -> None:
        saved.append(int(state[3]))

    moved = asyncio.Event()
    target: Any = SimpleNamespace(save_scan=save_scan)
    scan = Scan(desk, target, Progress(total=100), moved, asyncio.Event(), AsyncMock())
    walk = asyncio.create_task(scan._walk(read, counts=True))
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(claims) == 60
    assert (scan.done, scan.progress.done) == (40, 0)
    claims[0].outstanding -= 25
    assert scan.done == 65
    claims[0].outstanding = 0
    moved.set()
    await walk
    assert (scan.done, scan.progress.done, saved) == (100, 100, [100])


async def test_a_walk_that_another_is_to_follow_keeps_no_place():
    """Cut off now, it must begin anew: what the next walk was asked for may lie before this one's place."""
    saved: list[tuple[object, ...]] = []

    async def save_scan(*state: object) -> None:
        saved.append(state)

    async def read(after: tuple[str, ...] | None, rows: int, text_bytes: int) -> Page:
        place = 0 if after is None else int(after[0])
        if place == 2:
            scan.asked = "a gap"
        return Page(1, (str(place + 1),), (), 1) if place < 4 else Page(0, None, (), 1)

    progress = Progress("first backfill", total=4)
    desk: Any = SimpleNamespace(lock=RLock())
    target: Any = SimpleNamespace(save_scan=save_scan)
    scan = Scan(desk, target, progress, asyncio.Event(), asyncio.Event(), AsyncMock())
    await scan._walk(read, counts=True)
    assert [(state[0], state[2]) for state in saved] == [
        ("first backfill", ("1",)), ("first backfill", ("2",)), ("a gap", None), ("a gap", None),
    ]  # fmt: skip
