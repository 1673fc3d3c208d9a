"""A column whose type tells no width: the index has the width that most rows have, also when that changes."""

from __future__ import annotations

import numpy as np
import pytest

from cdc.external_indexes import HnswIndexes
from cdc.flow.keycodec import KeyCodec
from cdc.jobs import IndexSpec
from cdc.rows import Column
from cdc.services.external_index import IndexTuning
from cdc.services.index_journal import Change
from cdc.services.keyed_index import KeyedIndex
from tests.index.conftest import Loop, Scene, wait

RNG = np.random.default_rng(14)
CODEC = KeyCodec((Column("id", "integer", "int4"),))


def vectors(rows: int, dimension: int) -> np.ndarray:
    return RNG.normal(size=(rows, dimension)).astype(np.float32)


def same(scene: Scene, loop: Loop, dimension: int) -> None:
    job = scene.job()
    wait(lambda: loop.runner._served[job.id].index.dimension == dimension)
    scene.dimension = dimension
    scene.same(loop, job)


def test_after_a_truncation_any_width_will_do(scene: Scene) -> None:
    scene.fill(vectors(50, 3))
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    scene.db.execute("TRUNCATE t")
    scene.fill(vectors(60, 4))
    same(scene, loop, 4)
    scene.db.execute("DELETE FROM t")
    scene.fill(vectors(70, 5))
    same(scene, loop, 5)


@pytest.mark.parametrize("rows", [200, 5000])
def test_when_all_rows_take_another_width_the_index_does(scene: Scene, rows: int) -> None:
    scene.fill(vectors(rows, 3))
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    scene.db.execute("UPDATE t SET v = v || 5::real")
    if rows < 1000:
        same(scene, loop, 4)
    wait(lambda: loop.runner._served[job.id].index.count == rows)
    scene.fill(vectors(50, 4), 100_001)
    wait(lambda: loop.runner._served[job.id].index.count == rows + 50)


def test_a_width_that_changed_before_the_index_was_saved_is_seen_when_it_is_opened(scene: Scene) -> None:
    scene.fill(vectors(30, 3))
    loop, job = scene.runner(IndexTuning(check_s=60, idle_s=0.2)), scene.job()
    loop.ready(job)
    served = loop.runner._served[job.id]
    with scene.db.transaction():
        scene.db.execute("INSERT INTO t SELECT i, '{1,2,3,4}' FROM generate_series(101, 130) i")
        scene.db.execute("UPDATE t SET id = -id")  # and they are still the same misfits
    scene.db.execute("DELETE FROM t WHERE id >= -2")
    wait(lambda: served.index.count == 28)
    served.follower.checkpoint()
    wait(lambda: served.manifest.segment == 2)
    loop.stop()
    scene.loops.remove(loop)
    again = scene.runner()
    again.ready(job)
    wait(lambda: again.runner._served[job.id].index.dimension == 4)
    wait(lambda: again.runner._served[job.id].index.count == 30)


def test_the_first_row_does_not_decide(scene: Scene) -> None:
    scene.fill(vectors(1, 2))
    scene.fill(vectors(200, 3), 1000)
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    served = loop.runner._served[job.id]
    assert (served.index.dimension, served.index.count, served.index.skipped) == (3, 200, 1)


def test_misfits_are_counted_by_row() -> None:
    indexes, spec = HnswIndexes(1, 0), IndexSpec("v", "l2sq", 8, 64, 64)
    index = KeyedIndex(CODEC, lambda width, capacity: indexes.make(spec, width, capacity), None)

    def put(key: int, width: int) -> Change:
        return Change("put", key, np.ones(width, np.float32))

    index.apply([put(key, 3) for key in range(4)])
    index.apply([put(9, 4)])
    index.apply([put(9, 5)] * 9)
    assert (index.count, index.misfits, index.is_outgrown) == (4, 1, False)
    index.apply([Change("rename", 9, other=10), put(10, 3)])
    assert (index.count, index.misfits) == (5, 0)
    index.apply([put(key, 4) for key in range(3)])
    assert index.is_outgrown
    index.apply([Change("drop", 1)])
    assert not index.is_outgrown
    index.apply([Change("clear"), put(1, 6)])
    assert (index.dimension, index.count, index.misfits) == (6, 1, 0)
