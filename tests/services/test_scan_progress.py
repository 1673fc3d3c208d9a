"""How far a walk says it has come: row by row, though its place is kept page by page."""

import asyncio
from threading import RLock
from types import SimpleNamespace
from typing import Any

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
    scan = Scan(desk, target, Progress(total=100), moved, asyncio.Event())
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
