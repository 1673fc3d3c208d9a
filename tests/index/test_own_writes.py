"""The table's own writes come first: no index job makes one fail, and none that failed holds WAL or files."""

from __future__ import annotations

import time

import numpy as np
import pytest

from cdc.errors import PipelineFault
from tests.index.conftest import Scene, wait

RNG = np.random.default_rng(14)


def vectors(rows: int, dimension: int = 8) -> np.ndarray:
    return RNG.normal(size=(rows, dimension)).astype(np.float32)


def publications(scene: Scene) -> list[str]:
    return [row[0] for row in scene.db.execute("SELECT pubname FROM pg_publication").fetchall()]


def test_a_deferrable_key_is_refused_and_the_table_can_be_written(scene: Scene) -> None:
    scene.db.execute("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, v real[])")
    scene.fill(vectors(5))
    _, run = scene.runner().start(scene.job())
    with pytest.raises(PipelineFault, match="deferrable"):
        run.result(20)
    scene.db.execute("UPDATE t SET v = v WHERE id = 1; DELETE FROM t WHERE id = 2")
    assert scene.slots() == publications(scene) == []


def test_a_key_that_is_generated_is_followed_where_it_is_in_the_wal(scene: Scene) -> None:
    scene.db.execute(
        "DROP TABLE t; CREATE TABLE t (n int, v real[], id int PRIMARY KEY GENERATED ALWAYS AS (n) STORED)"
    )
    scene.db.execute("INSERT INTO t SELECT i, array_fill(i::real, '{8}') FROM generate_series(1, 20) AS i")
    loop, job = scene.runner(), scene.job()
    if scene.db.info.server_version < 180000:
        with pytest.raises(PipelineFault, match=r"Key column id of public\.t is generated"):
            loop.ready(job)
    else:
        loop.ready(job)
    scene.db.execute("UPDATE t SET n = n + 100 WHERE n > 15; DELETE FROM t WHERE n < 5")
    if scene.db.info.server_version >= 180000:
        scene.same(loop, job)


def test_a_partition_without_an_identity_is_refused(scene: Scene) -> None:
    scene.db.execute("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v real[]) PARTITION BY RANGE (id)")
    scene.db.execute("CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (100)")
    scene.db.execute("ALTER TABLE t1 REPLICA IDENTITY NOTHING")
    scene.fill(vectors(5))
    _, run = scene.runner().start(scene.job())
    with pytest.raises(PipelineFault, match=r"public\.t1, a partition of public\.t, has no replica identity"):
        run.result(20)
    scene.db.execute("UPDATE t SET v = v; DELETE FROM t WHERE id = 2")


def test_tables_that_inherit_are_neither_published_nor_indexed(scene: Scene) -> None:
    scene.db.execute("CREATE TABLE kid () INHERITS (t)")
    scene.fill(vectors(20))
    scene.db.execute("INSERT INTO kid SELECT 7000 + id, v FROM t WHERE id < 5")
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    scene.db.execute("UPDATE kid SET v = v[2:8] || v[1:1]; DELETE FROM kid WHERE id = 7001")
    scene.db.execute("CREATE TABLE later () INHERITS (t)")
    scene.db.execute("INSERT INTO later VALUES (8000, '{1,1,1,1,1,1,1,1}')")
    scene.db.execute("UPDATE t SET v = v[2:8] || v[1:1]")  # of those that inherit, too
    scene.db.execute("DELETE FROM later")
    scene.db.execute("DROP TABLE kid, later")
    scene.same(loop, job)


@pytest.mark.parametrize("how", ["key", "full", "index"])
def test_no_definition_that_changes_has_writes_refused_while_nobody_looks(scene: Scene, how: str) -> None:
    scene.db.execute("ALTER TABLE t ADD COLUMN n int GENERATED ALWAYS AS IDENTITY, ADD COLUMN note text")
    scene.db.execute("ALTER TABLE t ADD COLUMN twice int GENERATED ALWAYS AS (id * 2) STORED")
    scene.fill(vectors(20))
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    loop.stop()
    scene.loops.remove(loop)
    if how == "key":
        scene.db.execute("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (n)")
    elif how == "full":
        scene.db.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    else:
        scene.db.execute("CREATE UNIQUE INDEX u ON t (n, id)")
        scene.db.execute("ALTER TABLE t REPLICA IDENTITY USING INDEX u")
    scene.db.execute("UPDATE t SET v = v[2:8] || v[1:1]; DELETE FROM t WHERE id % 3 = 0; UPDATE t SET note = 'x'")
    again = scene.runner()
    again.ready(job)
    if how == "full":
        scene.same(again, job)
    else:
        rows = {n for (n,) in scene.db.execute("SELECT n FROM t")}
        wait(lambda: {hit["key"]["n"] for hit in again.runner.search("public.t.v", np.ones(8), 50)} == rows)


@pytest.mark.parametrize("running", [True, False])
def test_a_key_that_changes_under_the_stream_starts_the_index_over(scene: Scene, running: bool) -> None:
    scene.db.execute("ALTER TABLE t ADD COLUMN n int GENERATED ALWAYS AS IDENTITY")
    scene.fill(vectors(20))
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    scene.db.execute("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (n)")
    if not running:  # the check has it before the stream says so
        time.sleep(0.5)
    scene.db.execute("DELETE FROM t WHERE id < 10")
    rows = {n for (n,) in scene.db.execute("SELECT n FROM t")}

    def same() -> bool:
        found = loop.runner.search("public.t.v", np.ones(8), 50)
        return {hit["key"].get("n") for hit in found} == rows

    wait(same)
    assert not loop.runs[0].done()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("DROP TABLE t", "There is no table public.t"),
        ("ALTER TABLE t RENAME TO other", "There is no table public.t"),
        ("ALTER TABLE t RENAME COLUMN v TO w", "has no column v"),
        ("ALTER TABLE t DROP COLUMN v", "has no column v"),
        ("ALTER TABLE t REPLICA IDENTITY NOTHING", "REPLICA IDENTITY NOTHING"),
        ("ALTER TABLE t ALTER COLUMN v TYPE text", "of type text"),
    ],
)
def test_a_job_that_only_a_person_can_mend_keeps_nothing(scene: Scene, change: str, said: str) -> None:
    scene.fill(vectors(5))
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    scene.db.execute(change)
    with pytest.raises(PipelineFault, match=said):
        loop.runs[0].result(20)
    assert scene.slots() == publications(scene) == []
    assert [path.name for path in scene.root.iterdir()] == ["key"]
    if change.endswith("NOTHING"):
        scene.db.execute("UPDATE t SET id = id + 10; ALTER TABLE t REPLICA IDENTITY DEFAULT")
        again = scene.runner()
        again.ready(job)
        scene.same(again, job)


def test_a_fault_met_at_the_start_frees_what_an_earlier_run_left(scene: Scene) -> None:
    scene.fill(vectors(5))
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    loop.stop()
    scene.loops.remove(loop)
    scene.db.execute("DROP TABLE t")
    _, run = scene.runner().start(job)
    with pytest.raises(PipelineFault):
        run.result(20)
    assert scene.slots() == publications(scene) == []


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
def test_a_rewrite_of_the_vectors_is_seen_and_one_of_the_storage_alone_builds_nothing(
    scene: Scene, identity: str
) -> None:
    scene.db.execute(f"ALTER TABLE t REPLICA IDENTITY {identity}")
    scene.fill(vectors(40))
    loop, job = scene.runner(), scene.job()
    report = loop.ready(job)
    first = loop.runner._served[job.id]
    scene.db.execute("VACUUM FULL t")
    time.sleep(0.5)
    scene.db.execute("ALTER TABLE t ALTER COLUMN v SET STATISTICS 10")
    time.sleep(0.5)
    scene.db.execute("TRUNCATE t")
    scene.fill(vectors(30))
    scene.same(loop, job)
    time.sleep(0.5)
    assert loop.runner._served[job.id] is first
    scene.db.execute("ALTER TABLE t ALTER COLUMN v TYPE real[] USING v[1:7] || 3::real")
    scene.same(loop, job)
    assert loop.runner._served[job.id] is not first
    assert not [event for event in report.events if event.startswith("failed")]


@pytest.mark.parametrize("how", ["insert only", "and back", "other table"])
def test_a_publication_that_somebody_changed_starts_the_index_over(scene: Scene, how: str) -> None:
    scene.fill(vectors(40))
    scene.db.execute("CREATE TABLE other (id int PRIMARY KEY, v real[])")
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    name = scene.slots()[0]
    if how == "other table":
        scene.db.execute(f"ALTER PUBLICATION {name} ADD TABLE other")
        scene.db.execute("INSERT INTO other VALUES (9000, '{1,1,1,1,1,1,1,1}')")
        scene.db.execute("UPDATE other SET id = 1; TRUNCATE other")
    else:
        scene.db.execute(f"ALTER PUBLICATION {name} SET (publish = 'insert')")
    scene.db.execute("DELETE FROM t WHERE id > 20")
    if how == "and back":
        scene.db.execute(f"ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate')")
    scene.same(loop, job)
    wait(lambda: scene.db.execute("SELECT tablename FROM pg_publication_tables").fetchall() == [("t",)])
    scene.db.execute("DELETE FROM t WHERE id > 10")
    scene.same(loop, job)


def test_a_new_expression_of_a_generated_column_starts_the_index_over(scene18: Scene) -> None:
    scene18.db.execute("CREATE TABLE t (id int PRIMARY KEY, a real[], v real[] GENERATED ALWAYS AS (a) STORED)")
    scene18.db.execute("INSERT INTO t SELECT i, array_fill(i::real, '{8}') FROM generate_series(1, 20) AS i")
    loop, job = scene18.runner(), scene18.job()
    loop.ready(job)
    scene18.same(loop, job)
    scene18.db.execute("ALTER TABLE t ALTER COLUMN v SET EXPRESSION AS (a[1:7] || 5::real)")
    scene18.same(loop, job)
    scene18.db.execute("INSERT INTO t SELECT i, array_fill(i::real, '{8}') FROM generate_series(21, 30) AS i")
    scene18.same(loop, job)


def test_virtual_columns_are_refused_before_anything_is_set_up(scene18: Scene) -> None:
    scene18.db.execute("CREATE TABLE t (id int PRIMARY KEY, a real[], v real[] GENERATED ALWAYS AS (a) VIRTUAL)")
    _, run = scene18.runner().start(scene18.job())
    with pytest.raises(PipelineFault, match=r"Column v of public\.t is a virtual generated column"):
        run.result(20)
    scene18.db.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    _, run = scene18.runner().start(scene18.job(column="a"))
    with pytest.raises(PipelineFault, match="REPLICA IDENTITY FULL and a virtual generated column"):
        run.result(20)
    assert scene18.slots() == publications(scene18) == []
    scene18.db.execute("INSERT INTO t (id, a) VALUES (1, '{1}'); UPDATE t SET a = '{2}'")
