"""A job that is edited, ended or taken up again: its index answers throughout, and starts where it ended."""

from __future__ import annotations

import numpy as np
import pytest

from cdc.errors import UnknownPipeline
from cdc.services.external_index import IndexTuning
from tests.index.conftest import Loop, Scene, wait
from tests.index.test_following import vectors


def stopped(loop: Loop, number: int = -1) -> None:
    loop.runs[number].cancel()
    wait(lambda: not loop.runner._running)


def test_an_edit_of_ef_or_the_name_goes_on_with_the_same_index(scene: Scene) -> None:
    scene.fill(vectors(50))
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    index = loop.runner._served[job.id].index
    stopped(loop)
    assert loop.runner.search("public.t.v", np.ones(8), 1)  # between the two runs
    scene.fill(vectors(5), 1001)
    edited = scene.job(ef=65, name="by_v")
    loop.ready(edited)
    assert loop.runner._served[job.id].index is index
    assert loop.runner._served[job.id].spec.ef == 65
    assert "by_v" in loop.runner.names()
    scene.same(loop, edited)


def test_an_edit_of_m_is_built_while_the_old_index_answers(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.fill(vectors(50))
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    old = loop.runner._served[job.id]
    stopped(loop)
    edited = scene.job(m=12)
    with scene.database.connect() as blocker:
        blocker.autocommit = False
        blocker.execute("INSERT INTO t VALUES (900, NULL)")  # the new slot waits for its end
        loop.start(edited)
        wait(lambda: loop.runner.standing(job.id).is_building)
        assert loop.runner.search("public.t.v", np.ones(8), 1)
        assert loop.runner._served[job.id] is old
        blocker.commit()
    wait(lambda: loop.runner._served[job.id] is not old)
    assert loop.runner._served[job.id].spec.m == 12
    scene.same(loop, edited)


def test_an_index_whose_job_does_not_go_on_is_let_go(scene: Scene) -> None:
    scene.fill(vectors(5))
    loop, job = scene.runner(IndexTuning(check_s=0.2, idle_s=0.2, rest_s=0.2)), scene.job()
    loop.ready(job)
    stopped(loop)
    wait(lambda: loop.runner.names() == [])
    with pytest.raises(UnknownPipeline):
        loop.runner.search("public.t.v", np.ones(8), 1)


def test_what_another_followed_meanwhile_is_read_again(scene: Scene) -> None:
    scene.fill(vectors(20))
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    stopped(loop)
    other = scene.runner()
    other.ready(job)
    scene.fill(vectors(5), 1001)
    scene.same(other, job)
    stopped(other)
    wait(lambda: other.runner.standing(job.id).waiting == 0)
    loop.ready(job)
    scene.same(loop, job)


def test_a_clean_end_saves_what_the_journal_has(scene: Scene) -> None:
    scene.fill(vectors(50))
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    scene.fill(vectors(40), 1001)
    scene.same(loop, job)
    served = loop.runner._served[job.id]
    loop.runner.stop()
    stopped(loop)
    wait(lambda: served.is_closed)
    assert served.manifest.rows == 90
    again = scene.runner()
    assert not again.ready(job).percents
    scene.same(again, job)
