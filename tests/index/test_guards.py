"""What can go wrong with an index and its files: crashes, damage, strangers' files, decay, limits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdc.errors import ConfigError, Unavailable
from cdc.postgres.external_index import PostgresIndexSource
from cdc.services import external_index, index_build, index_files, index_journal, index_served, keyed_index
from cdc.services.external_index import IndexTuning
from inference.vector_index import VectorIndex
from tests.index.conftest import Scene, text, wait

RNG = np.random.default_rng(12)

CHILD = """
import sys, time
from tests.index.conftest import Loop
from cdc.jobs import *
from cdc.rows import Table
from pathlib import Path
url, root = sys.argv[1:]
job = Job(JobId("control", Table("public", "external_index_jobs"), 7), JobKind.EXTERNAL_INDEX, url, "here/test",
          Table("public", "t"), IndexSpec("v", "l2", 8, 64, 64))
loop = Loop(Path(root))
loop.ready(job)
print("ready", flush=True)
while True:
    time.sleep(1)
"""


def vectors(rows: int, dimension: int = 8) -> np.ndarray:
    return RNG.normal(size=(rows, dimension)).astype(np.float32)


def folder(scene: Scene) -> Path:
    return next(path for path in scene.root.iterdir() if path.is_dir())


def closed(scene: Scene, rows: int = 60, after: int = 10) -> None:
    """Leave an index behind, with ``after`` rows in its journal alone."""
    scene.fill(vectors(rows))
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    scene.fill(vectors(after), 1001)
    scene.same(loop, job)
    lsn = scene.lsn()
    wait(lambda: loop.runner._served[job.id].follower.acknowledged() >= lsn)
    loop.stop()
    scene.loops.remove(loop)


def built_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run the job again, and see to it that the index is right; return whether it was built anew."""
    builds: list[int] = []

    def counted(*args: Any) -> index_served.Served:
        builds.append(1)
        return index_build.build(*args)

    monkeypatch.setattr(external_index, "build", counted)
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    scene.same(loop, job)
    return bool(builds)


def test_kill_9_at_any_moment_loses_nothing_and_builds_nothing_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.fill(vectors(200))
    for round in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, scene.database.url, str(scene.root)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        while child.stdout.readline().strip() != "ready":
            assert child.poll() is None
        for i in range(15):
            scene.fill(vectors(3), 1000 + round * 100 + i * 3)
            scene.db.execute("DELETE FROM t WHERE id = %s", [round * 20 + i + 1])
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
    scene.db.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
    wait(lambda: not scene.db.execute("SELECT 1 FROM pg_replication_slots WHERE active").fetchall())
    assert not built_again(scene, monkeypatch)


def test_a_journal_cut_short_by_a_crash_is_read_up_to_there(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    closed(scene)
    last = max(folder(scene).glob("journal-*"))
    with last.open("ab") as file:
        file.write(b"\x40\0\0\0half a record")
    assert not built_again(scene, monkeypatch)
    assert not last.read_bytes().endswith(b"half a record")


def test_a_journal_that_lost_what_was_acknowledged_is_noticed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    closed(scene)
    last = max(folder(scene).glob("journal-*"))
    os.truncate(last, 40 + 16)  # the header, and the head of the first record
    assert built_again(scene, monkeypatch)


@pytest.mark.parametrize("what", ["graph", "keys", "manifest", "signature", "journal", "missing"])
def test_what_was_changed_is_refused_and_built_anew(
    scene: Scene, what: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    closed(scene)
    path = folder(scene)
    if what in ("graph", "keys"):
        file = next(path.glob(f"{what}-*"))
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif what == "missing":
        next(path.glob("graph-*")).unlink()
    elif what == "journal":
        journal = min(path.glob("journal-*"))
        data = bytearray(journal.read_bytes())
        data[20] ^= 1
        journal.write_bytes(data)
    else:
        envelope = json.loads((path / "manifest.json").read_text())
        if what == "manifest":
            envelope["manifest"] = envelope["manifest"].replace('"rows": 60', '"rows": 61')
        else:
            envelope["signature"] = "0" * 64
        (path / "manifest.json").write_text(json.dumps(envelope))
    assert built_again(scene, monkeypatch)
    assert "external_index_refused" in capfd.readouterr().out


def test_files_of_another_machine_are_refused(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    closed(scene)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(scene.root, elsewhere)
    (elsewhere / "key").unlink()  # the key is what does not travel with an index
    scene.root = elsewhere
    assert built_again(scene, monkeypatch)
    assert "not signed with this folder's key" in capfd.readouterr().out


def test_a_folder_that_others_may_write_to_is_refused(scene: Scene) -> None:
    scene.fill(vectors(5))
    scene.root.mkdir()
    scene.root.chmod(0o777)
    _, run = scene.runner().start(scene.job())
    with pytest.raises(ConfigError, match="others may write there"):
        run.result(10)
    assert scene.slots() == []


def test_an_index_of_other_parameters_is_built_anew(scene: Scene) -> None:
    closed(scene)
    loop, job = scene.runner(), scene.job(m=12)
    loop.ready(job)
    scene.same(loop, job)
    assert len(list(folder(scene).glob("graph-*"))) == 1


def test_a_decayed_index_is_made_fresh_while_it_serves_and_follows(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyed_index, "REBUILD_LEAST", 100)
    scene.fill(vectors(400))
    loop, job = scene.runner(IndexTuning(rebuild_share=0.2, check_s=0.05, idle_s=0.2)), scene.job()
    loop.ready(job)
    served = loop.runner._served[job.id]
    stop, answers = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            answers.append(len(loop.runner.search("public.t.v", np.ones(8), 10)))

    asking = threading.Thread(target=ask)
    asking.start()
    first = served.index.now[0]
    deadline = time.monotonic() + 20
    i = 0
    while served.index.now[0] is first:
        i += 1
        scene.db.execute("UPDATE t SET v = %s::real[] WHERE id %% 10 = %s", [text(vectors(1)[0]), i % 10])
        scene.fill(vectors(1), 1000 + i)
        assert time.monotonic() < deadline
    stop.set()
    asking.join()
    assert set(answers) == {10}
    scene.same(loop, job)
    wait(lambda: served.index.deleted < 0.2 * served.index.count + 100)
    loop.stop()
    scene.loops.remove(loop)
    assert not built_again(scene, monkeypatch)


def test_a_build_that_is_cancelled_leaves_nothing_behind(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.fill(vectors(100))
    begun, go = threading.Event(), threading.Event()
    whole = keyed_index.KeyedIndex.load

    def slow(self: keyed_index.KeyedIndex, *args: object) -> None:
        begun.set()
        go.wait(20)
        whole(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(keyed_index.KeyedIndex, "load", slow)
    monkeypatch.setattr(PostgresIndexSource, "interrupt", lambda self: go.set())  # it has been told to stop by then
    loop, job = scene.runner(), scene.job()
    _, run = loop.start(job)
    assert begun.wait(20)
    assert len(scene.slots()) == 1
    run.cancel()
    with pytest.raises(CancelledError):
        run.result(20)
    wait(lambda: scene.slots() == [])
    wait(lambda: not list(folder(scene).iterdir()))
    wait(lambda: scene.db.execute("SELECT count(*) FROM pg_publication").fetchone() == (0,))
    wait(
        lambda: not scene.db.execute("SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'walvec%'").fetchall()
    )


def test_cancelling_ends_the_wait_for_a_transaction_that_the_slot_waits_for(scene: Scene) -> None:
    scene.fill(vectors(10))
    with scene.database.connect() as other:
        other.autocommit = False
        other.execute("INSERT INTO t VALUES (999, '{1,1,1,1,1,1,1,1}')")
        loop, job = scene.runner(), scene.job()
        _, run = loop.start(job)
        wait(lambda: bool(scene.slots()))
        run.cancel()
        wait(lambda: scene.slots() == [], timeout=10)


def test_an_index_that_does_not_fit_is_refused_before_a_slot_is_made(scene: Scene) -> None:
    scene.fill(vectors(500))
    scene.db.execute("ANALYZE t")
    _, run = scene.runner(memory=100_000).start(scene.job())
    with pytest.raises(ConfigError, match=r"An index of .* vectors of 8 dimensions with m 8 takes about"):
        run.result(20)
    assert scene.slots() == []


def test_a_table_that_outgrows_its_estimate_is_refused_too(scene: Scene) -> None:
    scene.fill(vectors(500))
    scene.db.execute("UPDATE pg_class SET reltuples = 10 WHERE relname = 't'")
    _, run = scene.runner(memory=100_000).start(scene.job())
    with pytest.raises(ConfigError, match="WALVEC_INDEX_MEMORY"):
        run.result(20)
    wait(lambda: scene.slots() == [])


def test_an_index_that_outgrows_the_limit_while_it_follows_fails_with_the_same_sentence(scene: Scene) -> None:
    scene.fill(vectors(10))
    loop, job = scene.runner(memory=400_000), scene.job()
    loop.ready(job)
    scene.fill(vectors(1500), 100)  # these fit
    scene.same(loop, job)
    scene.fill(vectors(1500), 5000)
    with pytest.raises(ConfigError, match=r"takes about .* and .* may be used. Raise WALVEC_INDEX_MEMORY"):
        loop.runs[0].result(20)
    wait(lambda: scene.slots() == [])  # the server keeps no WAL for an index that cannot be
    _, again = loop.start(job)
    with pytest.raises(ConfigError, match="WALVEC_INDEX_MEMORY"):
        again.result(20)


def test_rows_left_out_while_following_are_told_once_in_a_while(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    scene.fill(vectors(10))
    scene.db.execute("INSERT INTO t VALUES (90, '{NaN}')")
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    served = loop.runner._served[job.id]
    scene.db.execute("INSERT INTO t VALUES (100, '{NaN,0,0,0,0,0,0,0}'), (101, '{1,2}'), (102, NULL)")
    said = ""

    def told() -> bool:
        nonlocal said
        said += capfd.readouterr().out
        return said.count("external_index_skipped") == 2

    wait(told)
    first = served.skipped_told
    scene.db.execute("INSERT INTO t VALUES (110, '{1,2}')")
    wait(lambda: served.index.skipped == 4)
    time.sleep(0.6)
    assert served.skipped_told == first
    monkeypatch.setattr(index_served, "SKIPPED_S", 0.1)
    wait(lambda: served.skipped_told == 4)


def test_discard_removes_slot_publication_and_files(scene: Scene) -> None:
    closed(scene)
    loop = scene.runner()
    loop.call(loop.runner.discard(scene.job()))
    assert scene.slots() == []
    assert [path.name for path in scene.root.iterdir()] == ["key"]


def test_a_full_disk_keeps_the_old_state_and_the_journal(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.fill(vectors(50))
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    served = loop.runner._served[job.id]
    scene.fill(vectors(5), 1001)
    scene.same(loop, job)
    with monkeypatch.context() as patched:
        patched.setattr(index_files, "_sha256", _full)  # after they are written
        served.follower.checkpoint()
        scene.fill(vectors(5), 2001)
        scene.same(loop, job)
    assert served.manifest.segment == 1
    assert {path.name for path in served.folder.path.iterdir() if path.name[0] in "gk"} == {
        "graph-00000001", "keys-00000001.npz"
    }  # fmt: skip
    loop.stop()
    scene.loops.remove(loop)
    assert not built_again(scene, monkeypatch)


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device", "/disk/file")


def test_where_no_checkpoint_can_be_begun_the_journal_goes_on(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    scene.fill(vectors(50))
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    served = loop.runner._served[job.id]
    with monkeypatch.context() as patched:
        patched.setattr(index_journal, "sync_folder", _full)
        served.follower.checkpoint()
    out = capfd.readouterr().out
    assert "external_index_unsaved" in out and "journal-00000002: No space left on device. Make room" in out
    scene.fill(vectors(5), 1001)
    scene.same(loop, job)
    assert [path.name for path in served.folder.path.glob("journal-*")] == ["journal-00000001"]
    served.follower.checkpoint()
    wait(lambda: served.manifest.segment == 2)
    loop.stop()
    scene.loops.remove(loop)
    assert not built_again(scene, monkeypatch)


def test_a_journal_that_cannot_be_written_is_a_sentence_and_the_index_answers_on(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.fill(vectors(50))
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    with monkeypatch.context() as patched:
        patched.setattr(index_journal, "_write", _full)
        scene.fill(vectors(5), 1001)
        with pytest.raises(Unavailable, match=r"journal-00000001: No space left on device\. Make room on the disk"):
            loop.runs[0].result(20)
        assert len(loop.runner.search("public.t.v", np.ones(8), 100)) == 50
    assert not loop.ready(job).percents
    scene.same(loop, job)


@pytest.mark.parametrize("what", ["sync_folder", "_sha256", "journal", "save"])
def test_a_build_that_finds_the_disk_full_fails_with_a_sentence(
    scene: Scene, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.fill(vectors(50))
    index_build.folder_of(scene.root, scene.job())  # the folder itself can be made
    if what == "save":
        monkeypatch.setattr(VectorIndex, "save", _full)
    elif what == "journal":
        monkeypatch.setattr(index_journal, "_write", _full)
    else:
        monkeypatch.setattr(index_files, what, _full)
    loop = scene.runner()
    _, run = loop.start(scene.job())
    with pytest.raises(ConfigError, match=r"No space left on device\. Make room on the disk, or set WALVEC_INDEX_DIR"):
        run.result(20)
    assert scene.slots() == []
    assert not any(path.is_dir() for path in scene.root.iterdir())


def test_files_that_cannot_be_written_at_the_start_are_waited_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed(scene)
    with monkeypatch.context() as patched:
        patched.setattr(index_journal, "_write", _full)
        _, run = scene.runner().start(scene.job())
        with pytest.raises(Unavailable, match="No space left on device"):
            run.result(20)
    assert not built_again(scene, monkeypatch)


def test_the_server_away_and_back_the_index_answers_throughout(scene: Scene) -> None:
    scene.fill(vectors(50))
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    scene.db.close()
    scene.database.cluster.stop("immediate")
    with pytest.raises(Unavailable):
        loop.runs[0].result(20)
    assert len(loop.runner.search("public.t.v", np.ones(8), 5)) == 5
    scene.database.cluster.start()
    with scene.database.connect() as scene.db:
        scene.fill(vectors(5), 1001)
        assert not loop.ready(job).percents
        scene.same(loop, job)
