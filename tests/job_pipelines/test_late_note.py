"""A scan that is asked for is noted in the control schema; however late that note is written, it is not left behind."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from cdc import app
from tests.job_pipelines.scene import Scene, Twin


def test_a_scan_that_is_faster_than_the_note_of_it(database18):
    with database18.connect() as db, Scene(database18.url) as scene:
        db.execute("CREATE TABLE docs (id int PRIMARY KEY, title text); INSERT INTO docs VALUES (1, 'one')")
        name = scene.job("title", "vec", Twin(8))
        scene.start()
        scene.backfilled(name)
        scene.sync()
        noted = threading.Event()
        registry: Any = scene.engine.fleet._registry
        note = registry.need_reconcile

        async def late(reason, id=None):
            await asyncio.sleep(0.5)  # as on a busy machine
            await note(reason, id)
            noted.set()

        registry.need_reconcile = late
        app.reconcile(scene.settings, name, dry_run=False, progress=lambda *_: None)
        assert noted.wait(10)
        scene.sync()
        assert db.execute("SELECT scan_reason FROM walvec.progress").fetchall() == [(None,)]
