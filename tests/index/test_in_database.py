"""The index in the database beside the external one: built, replaced, and refused without harm to the other."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from cdc.errors import Unavailable, WalvecError
from cdc.postgres.external_index import PostgresIndexSource
from cdc.services import index_beside
from tests.index.conftest import Loop, Report, Scene, wait

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v vector(8), w vector(8))"


def names(scene: Scene) -> set[str]:
    found = scene.db.execute("SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 't'::regclass")
    return {row[0] for row in found.fetchall()}


def described(scene: Scene, name: str) -> tuple[str, str | None]:
    found = scene.db.execute(
        "SELECT pg_get_indexdef(%(name)s::regclass), obj_description(%(name)s::regclass)", {"name": name}
    )
    row = found.fetchone()
    assert row is not None
    return row[0], row[1]


def filled(scene: Scene, table: str = TABLE) -> None:
    scene.db.execute(table)
    scene.db.execute("INSERT INTO t SELECT i, ARRAY[i,1,1,1,1,1,1,1]::real[]::vector FROM generate_series(1, 50) AS i")


def serves(scene: Scene, loop: Loop, **spec: Any) -> Report:
    """Run a job, and see to it that its external index is served and follows; return what was told."""
    job = scene.job(**spec)
    report = loop.ready(job)
    scene.db.execute("INSERT INTO t (id, v) VALUES (1000, '[9,9,9,9,9,9,9,9]')")
    wait(lambda: loop.runner.search(str(job.id), np.full(8, 9.0), 1)[0]["key"] == {"id": 1000})
    assert not loop.runs[-1].done()
    return report


def test_the_index_in_the_database_is_built_too_and_says_how_to_search_it(scene18: Scene) -> None:
    db = scene18.db
    db.execute("CREATE TABLE t (id int PRIMARY KEY, v vector(8))")
    db.execute("INSERT INTO t SELECT i, ARRAY[i,1,1,1,1,1,1,1]::real[]::vector FROM generate_series(1, 300) AS i")
    rest = f"walvec_{hashlib.sha256(b'public' + bytes(1) + b'half').hexdigest()[:16]}_new"  # of a failed build
    db.execute(f"CREATE INDEX {rest} ON t USING hnsw (v vector_cosine_ops)")
    db.execute(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{rest}'::regclass")
    loop, job = scene18.runner(), scene18.job(metric="cosine", name="half", ef_construction=10)
    loop.ready(job)
    definition, valid, note = db.execute(
        "SELECT pg_get_indexdef(indexrelid), indisvalid, obj_description(indexrelid) FROM pg_index "
        "WHERE indexrelid = 'half'::regclass"
    ).fetchone()
    assert (
        valid and "vector_cosine_ops" in definition and "m='8'" in definition and "ef_construction='16'" in definition
    )
    assert note == "walvec: Search it with SET hnsw.ef_search = 64;"
    assert names(scene18) == {"t_pkey", "half"}
    assert len(loop.runner.search("half", np.ones(8), 3)) == 3
    loop.stop()
    scene18.loops.remove(loop)
    db.execute("DROP TABLE IF EXISTS was; CREATE TABLE was AS SELECT 'half'::regclass::oid AS id")
    scene18.runner().ready(job)  # and once more, which builds nothing
    assert db.execute("SELECT id = 'half'::regclass FROM was").fetchone() == (True,)


@pytest.mark.parametrize(
    ("table", "spec", "said"),
    [
        (TABLE + " PARTITION BY RANGE (id); CREATE TABLE t1 PARTITION OF t DEFAULT", {}, "public.t is partitioned"),
        (TABLE, {"m": 128}, "m of 2 to 100 and ef_construction of 4 to 1000; the job asks for 128 and 256"),
        (TABLE, {"ef_construction": 2000}, "the job asks for 8 and 2000"),
    ],
)
def test_what_pgvector_cannot_build_is_said_and_the_external_index_is_served(
    scene18: Scene, table: str, spec: dict[str, int], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    filled(scene18, table)
    report = serves(scene18, scene18.runner(), name="pti", **spec)
    assert report.events == ["started", "finished"]
    out = capfd.readouterr().out
    assert "No index was built in the database" in out
    assert said in out


def test_a_name_that_something_else_has_is_refused(scene18: Scene) -> None:
    filled(scene18)
    scene18.db.execute("CREATE TABLE taken (n int)")
    report = serves(scene18, scene18.runner(), name="taken")
    wait(lambda: len(report.events) == 3)
    assert report.events[2].startswith(
        "failed: The external index is served, and goes on. No index was built in the database: there is another "
        "relation public.taken already."
    )


@pytest.mark.parametrize("own", ["(w vector_l2_ops)", "(v vector_cosine_ops)", "(v vector_l2_ops) WHERE id > 5"])
def test_another_index_of_the_name_is_left_as_it_is(scene18: Scene, own: str) -> None:
    filled(scene18)
    scene18.db.execute(f"CREATE INDEX mine ON t USING hnsw {own}; COMMENT ON INDEX mine IS 'my own'")
    before = described(scene18, "mine")
    report = serves(scene18, scene18.runner(), name="mine", m=16)
    wait(lambda: len(report.events) == 3)
    assert "No index was built in the database: public.mine is another index: CREATE INDEX mine" in report.events[2]
    assert described(scene18, "mine") == before
    assert names(scene18) == {"t_pkey", "mine"}


def test_a_fitting_index_that_somebody_else_made_does_and_keeps_its_comment(scene18: Scene) -> None:
    filled(scene18)
    scene18.db.execute("CREATE INDEX mine ON t USING hnsw (v vector_l2_ops); COMMENT ON INDEX mine IS 'my own'")
    before = described(scene18, "mine")
    report = serves(scene18, scene18.runner(), name="mine", m=16)
    assert report.events == ["started", "finished"]
    assert described(scene18, "mine") == before


@pytest.mark.parametrize("edit", [{"m": 12}, {"metric": "cosine"}, {"ef_construction": 99}, {"column": "w"}])
def test_an_index_of_ours_that_was_built_for_something_else_is_replaced(scene18: Scene, edit: dict[str, Any]) -> None:
    filled(scene18)
    loop = scene18.runner()
    loop.ready(scene18.job(name="ours"))
    loop.stop()
    scene18.loops.remove(loop)
    before = described(scene18, "ours")
    scene18.runner().ready(scene18.job(name="ours", ef=77, **edit))
    definition, note = described(scene18, "ours")
    assert definition != before[0]
    assert note == "walvec: Search it with SET hnsw.ef_search = 77;"
    assert names(scene18) == {"t_pkey", "ours"}


@pytest.mark.parametrize("fault", [WalvecError("No."), KeyError("row"), Unavailable("Away.")])
def test_no_failure_there_takes_the_external_index_down(
    scene18: Scene, fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(scene18)
    build, faults = PostgresIndexSource.build, [fault]

    async def failing(self: PostgresIndexSource, *args: Any) -> str:
        if faults:
            raise faults.pop()
        return await build(self, *args)

    monkeypatch.setattr(PostgresIndexSource, "build", failing)
    monkeypatch.setattr(index_beside, "_AGAIN_S", 0.1)
    report = serves(scene18, scene18.runner(), name="later")
    if isinstance(fault, Unavailable):
        assert "later" in names(scene18)
    else:
        why = "No." if isinstance(fault, WalvecError) else "An unexpected fault: KeyError."
        wait(lambda: report.events[2:] == [f"failed: The external index is served, and goes on. {why}"])


def test_without_pgvector_only_the_external_index_is_built(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    scene.fill(np.ones((5, 8), np.float32))
    loop = scene.runner()
    loop.ready(scene.job(name="an_index"))
    assert "No index was built in the database: pgvector has none for a _float4 column" in capfd.readouterr().out
