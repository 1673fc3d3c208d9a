"""An external index is what its table is: built, followed, reopened."""

from __future__ import annotations

import numpy as np
import pytest

from tests.index.conftest import Scene, text, wait

RNG = np.random.default_rng(11)


def vectors(rows: int, dimension: int = 8) -> np.ndarray:
    return RNG.normal(size=(rows, dimension)).astype(np.float32)


def test_the_built_index_holds_every_row_and_what_changes_is_followed(scene: Scene) -> None:
    scene.fill(vectors(500))
    loop, job = scene.runner(), scene.job()
    report = loop.ready(job)
    assert report.events == ["started", "finished"]
    scene.same(loop, job)
    scene.fill(vectors(20), 1001)
    scene.db.execute("DELETE FROM t WHERE id % 5 = 0")
    scene.db.execute("UPDATE t SET v = %s::real[] WHERE id %% 7 = 0", [text(vectors(1)[0])])
    scene.db.execute("UPDATE t SET v = NULL WHERE id % 11 = 0")
    scene.db.execute("UPDATE t SET id = id + 5000 WHERE id < 50")
    scene.same(loop, job)
    scene.db.execute("TRUNCATE t")
    scene.fill(vectors(30), 1)
    scene.same(loop, job)


def test_an_index_that_was_saved_is_opened_and_caught_up_and_not_built_again(scene: Scene) -> None:
    scene.fill(vectors(300))
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    scene.fill(vectors(10), 1001)
    scene.same(loop, job)  # these are in the journal only
    loop.stop()
    scene.loops.remove(loop)
    scene.fill(vectors(10), 2001)
    scene.db.execute("DELETE FROM t WHERE id <= 20")
    slot = scene.db.execute("SELECT restart_lsn FROM pg_replication_slots").fetchone()
    again = scene.runner()
    report = again.ready(job)
    assert not report.percents  # nothing was built
    assert slot is not None
    scene.same(again, job)


def test_a_checkpoint_takes_the_journal_into_the_base(scene: Scene) -> None:
    scene.fill(vectors(50))
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    served = loop.runner._served[job.id]
    scene.fill(vectors(5), 1001)
    scene.same(loop, job)
    served.follower.checkpoint()
    wait(lambda: served.manifest.segment == 2)
    scene.fill(vectors(5), 2001)
    scene.db.execute("UPDATE t SET v = '{1,1,1,1,1,1,1,1}' WHERE id = 1")
    scene.same(loop, job)
    names = sorted(path.name for path in served.folder.path.iterdir())
    assert names == ["graph-00000002", "journal-00000002", "keys-00000002.npz", "manifest.json"]
    loop.stop()
    scene.loops.remove(loop)
    again = scene.runner()
    assert not again.ready(job).percents
    scene.same(again, job)


@pytest.mark.parametrize("how", ["slot", "publication", "rewrite", "key", "republished"])
def test_where_changes_may_be_missing_the_index_is_built_anew_and_answers_meanwhile(scene: Scene, how: str) -> None:
    scene.fill(vectors(40))
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    slot = scene.slots()[0]
    if how == "slot":
        loop.stop()
        scene.loops.remove(loop)
        scene.db.execute("SELECT pg_drop_replication_slot(%s)", [slot])
        loop = scene.runner()
    elif how == "publication":
        scene.db.execute(f"DROP PUBLICATION {slot}")
    elif how == "republished":
        scene.db.execute(f"ALTER PUBLICATION {slot} DROP TABLE t")
        scene.fill(vectors(3), 500)
        scene.db.execute(f"ALTER PUBLICATION {slot} ADD TABLE t")
    elif how == "rewrite":
        scene.db.execute("ALTER TABLE t ALTER COLUMN v TYPE real[] USING v[1:7] || 3::real")
    else:
        scene.db.execute("ALTER TABLE t ADD COLUMN o int NOT NULL DEFAULT 1")
        scene.db.execute("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id, o)")
    scene.fill(vectors(3), 1001) if how != "key" else None
    if how == "slot":
        loop.ready(job)
    scene.same(loop, job)
    if how == "key":
        wait(lambda: loop.runner.search("public.t.v", np.ones(8), 1)[0]["key"].keys() == {"id", "o"})
    assert scene.slots() == [slot]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ALTER TABLE t DROP COLUMN v CASCADE", "has no column v"),
        ("ALTER TABLE t RENAME COLUMN v TO w", "has no column v"),
        ("DROP TABLE t", "There is no table public.t"),
        ("ALTER TABLE t ALTER COLUMN v TYPE text", "of type text"),
        ("ALTER TABLE t DROP CONSTRAINT t_pkey", "no primary key"),
    ],
)
def test_what_can_not_be_followed_any_more_fails_with_a_sentence(scene: Scene, change: str, said: str) -> None:
    scene.fill(vectors(5))
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    scene.db.execute(change)
    with pytest.raises(Exception, match=said):
        loop.runs[0].result(20)
    assert loop.runner.names() == []


def test_a_vector_that_no_index_can_hold_is_left_out_and_the_others_are_not(scene: Scene) -> None:
    scene.fill(vectors(10))
    scene.db.execute("INSERT INTO t VALUES (100, '{NaN,0,0,0,0,0,0,0}'), (101, '{1,2}'), (102, NULL), (103, '{}')")
    scene.db.execute("INSERT INTO t VALUES (104, '{1,NULL,1,1,1,1,1,1}'), (105, '{0,0,0,0,0,0,0,0}')")
    loop, job = scene.runner(), scene.job(metric="cosine")
    loop.ready(job)
    ids = sorted(hit["key"]["id"] for hit in loop.runner.search("public.t.v", np.ones(8), 100))
    assert ids == list(range(1, 11))
    scene.db.execute("UPDATE t SET v = '{NaN,0,0,0,0,0,0,0}' WHERE id = 1")
    scene.db.execute("UPDATE t SET v = '{1,1}' WHERE id = 2")
    scene.db.execute("UPDATE t SET v = '{0,0,0,0,0,0,0,0}' WHERE id = 3")
    scene.db.execute("UPDATE t SET v = '{0,NULL,0,0,0,0,0,0}' WHERE id = 4")
    scene.db.execute("UPDATE t SET v = '{1,1,1,1,1,1,1,1}' WHERE id = 102")
    wait(
        lambda: (
            sorted(hit["key"]["id"] for hit in loop.runner.search("public.t.v", np.ones(8), 100))
            == [*range(5, 11), 102]
        )
    )


VALUES = {
    "text": "md5(i::text)", "uuid": "md5(i::text)::uuid", "bigint": "-i * 10000000000", "smallint": "256 * i",
    "char(5)": "i::text", "numeric": "i * 1.50", "oid": "4000000000 + i",
}  # fmt: skip


@pytest.mark.parametrize(
    "types", ["text", "uuid", "oid", "bigint, smallint", "uuid, bigint", "char(5), numeric", "text, bigint"]
)
def test_keys_of_any_type(scene: Scene, types: str) -> None:
    kinds = dict(zip("ab", types.split(", "), strict=False))
    cells = ", ".join(kinds)
    picked = ", ".join(f"({VALUES[kind]})::{kind}" for kind in kinds.values())
    columns = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
    scene.db.execute(f"CREATE TABLE keyed ({columns}, v real[], PRIMARY KEY ({cells}))")
    scene.db.execute(f"INSERT INTO keyed SELECT {picked}, ARRAY[i, 1, 1]::real[] FROM generate_series(1, 50) i")
    loop, job = scene.runner(), scene.job(table="keyed")
    loop.ready(job)
    scene.db.execute(f"INSERT INTO keyed SELECT {picked}, ARRAY[i, 1, 1]::real[] FROM generate_series(51, 60) i")
    scene.db.execute("DELETE FROM keyed WHERE v[1] = 7 OR v[1] = 55")
    scene.db.execute("UPDATE keyed SET v[1] = 100 WHERE v[1] = 9")

    def same() -> bool:
        rows = scene.db.execute(f"SELECT v[1], {cells} FROM keyed ORDER BY v[1] LIMIT 100").fetchall()
        found = loop.runner.search("public.keyed.v", np.array([0, 1, 1]), 100)
        return [(hit["distance"], *hit["key"].values()) for hit in found] == [
            (row[0], *(cell if isinstance(cell, int) else str(cell) for cell in row[1:])) for row in rows
        ]

    wait(same)
