"""The write-back itself, on a real destination: versions, guards, and the fence."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from cdc.errors import Fenced
from cdc.flow.counts import Counted
from cdc.flow.dirty import Claim, Kind, Work
from cdc.ports import Write
from tests.sim.world import DIMENSION, EngineThread, hash_of, settings_for


def work(key: bytes, text: str | None, lsn: int) -> Work:
    raw = None if text is None else text.encode()
    return Work(key, Kind.UPDATE, raw, Claim(lsn), 0, lsn, hash_of(text or ""))


@pytest.fixture
def standing(database18, notes18):
    """A consumer at rest; its target, and a way to await on its loop."""
    with EngineThread(settings_for(database18.url)) as engine:
        engine.sync()
        loop = engine._loop
        assert engine.engine is not None and loop is not None
        (pipeline,) = engine.engine.fleet.pipelines

        def write(guarded: bool, upserts=(), removals=()):
            vectors = [np.ones((len(upserts), DIMENSION), np.float32)] if upserts else []
            asked = Write(guarded, upserts=list(upserts), vectors=vectors, removals=list(removals))
            done = pipeline.target.write(asked, Counted(20))
            return asyncio.run_coroutine_threadsafe(done, loop).result(10)

        yield write


def hashes(conn) -> dict[int, bytes]:
    return dict(conn.execute("SELECT id, source_hash FROM notes_embeddings", binary=True).fetchall())


def end_of_log(conn) -> int:
    return int(conn.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()[0])


def test_an_older_version_never_replaces_a_newer_one(notes18, standing):
    before = hashes(notes18)
    old = work(b"1", "of long ago", 1)
    assert standing(False, [old]).refused == (old,)
    assert hashes(notes18) == before
    new = work(b"1", "of now", end_of_log(notes18))
    assert standing(False, [new]).refused == ()
    assert hashes(notes18)[1] == new.hash


def test_an_older_delete_never_removes_a_newer_embedding(notes18, standing):
    gone = work(b"1", None, 1)
    assert standing(False, (), [gone]).refused == (gone,)
    assert 1 in hashes(notes18)
    assert standing(False, (), [work(b"1", None, end_of_log(notes18))]).embeddings == 19
    assert 1 not in hashes(notes18)


def test_a_guarded_write_asks_the_row(notes18, standing):
    before = hashes(notes18)
    stale = work(b"1", "title: another\nbody: text", end_of_log(notes18))
    assert standing(True, [stale]).refused == (stale,)
    kept = work(b"2", None, end_of_log(notes18))
    assert standing(True, (), [kept]).refused == (kept,)
    assert hashes(notes18) == before


def test_who_was_shut_out_writes_nothing_and_counts_nothing(notes18, standing):
    before = hashes(notes18)
    notes18.execute("UPDATE walvec.progress SET epoch = epoch + 1, source_records = 77")
    with pytest.raises(Fenced):
        standing(False, [work(b"1", "late", end_of_log(notes18))], [work(b"2", None, end_of_log(notes18))])
    assert hashes(notes18) == before
    assert notes18.execute("SELECT source_records FROM walvec.progress").fetchone() == (77,)
