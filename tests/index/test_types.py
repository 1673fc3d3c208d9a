"""Every vector type and operator: the index finds what an exact search finds, at the operator's distance."""

from __future__ import annotations

import numpy as np
import pytest

from cdc.errors import ConfigError
from cdc.jobs import OPERATORS
from tests.index.conftest import Scene, wait

RNG = np.random.default_rng(13)

CASES = [
    ("vector(16)", "vector_l2_ops", "<->"),
    ("vector(16)", "dist_vec_cos_ops", "<=>"),
    ("vector", "vector_ip_ops", "<#>"),
    ("halfvec(16)", "halfvec_cosine_ops", "<=>"),
    ("halfvec(16)", "halfvec_l2_ops", "<->"),
    ("bit(16)", "bit_hamming_ops", "<~>"),
    ("real[]", "dist_cos_ops", "cos"),
    ("real[]", "dist_l2sq_ops", "l2sq"),
    ("double precision[]", "dist_l2sq_ops", "l2sq"),
    ("integer[]", "dist_hamming_ops", "hamming"),
]


@pytest.mark.parametrize(("type", "operator", "sql"), CASES)
def test_what_is_found_and_how_far_it_is(scene18: Scene, type: str, operator: str, sql: str) -> None:
    db = scene18.db
    numbers = "ARRAY(SELECT (random() - 0.5)::real FROM generate_series(1, 16 + i * 0))"
    value = {"bit(16)": "(random() * 65535)::int::bit(16)", "integer[]": "ARRAY[(random() * 1e9)::int, i]"}.get(
        type, f"{numbers}::{type}"
    )
    db.execute("SELECT setseed(0.25)")
    db.execute(f"CREATE TABLE t (id int PRIMARY KEY, v {type})")
    db.execute(f"INSERT INTO t SELECT i, {value} FROM generate_series(1, 400) AS i")
    loop, job = scene18.runner(), scene18.job(metric=OPERATORS[operator], ef=200)
    loop.ready(job)
    db.execute(f"INSERT INTO t SELECT i, {value} FROM generate_series(401, 420) AS i")
    asked = db.execute("SELECT v::text FROM t WHERE id = 410").fetchone()[0]
    literal = f"'{asked}'::{type}"
    distance = {
        "cos": "(SELECT 1 - sum(a*b::float8) / sqrt(sum(a*a::float8)) / sqrt(sum(b*b::float8)) "
        "FROM unnest(v, {q}) AS x(a, b))",
        "l2sq": "(SELECT sum((a-b)::float8^2) FROM unnest(v, {q}) AS x(a, b))",
        "hamming": "(SELECT sum(bit_count((a # b)::bit(32))) FROM unnest(v, {q}) AS x(a, b))",
    }.get(sql, "v OPERATOR(public." + sql + ") {q}")
    exact = db.execute(f"SELECT id, ({distance.format(q=literal)})::float8 AS d FROM t ORDER BY d").fetchall()
    vector = (
        [int(bit) for bit in asked] if type == "bit(16)" else [float(x) for x in asked.strip("[]{}").split(",")]
    )  # fmt: skip
    wait(lambda: loop.runner.search("public.t.v", vector, 1)[0]["distance"] == pytest.approx(exact[0][1], abs=1e-3))
    found = loop.runner.search("public.t.v", vector, 10)
    far = dict(exact)
    assert [hit["distance"] for hit in found] == pytest.approx([far[hit["key"]["id"]] for hit in found], abs=2e-3)
    assert sum(hit["distance"] <= exact[9][1] + 2e-3 for hit in found) >= 8  # of the ten nearest, ties and all


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
def test_a_partitioned_table_is_one_index(scene: Scene, identity: str) -> None:
    scene.db.execute("DROP TABLE t")
    scene.db.execute("CREATE TABLE t (id int PRIMARY KEY, v real[]) PARTITION BY RANGE (id)")
    scene.db.execute("CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (100)")
    scene.db.execute("CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (100) TO (10000)")
    for table in ("t", "t1", "t2"):
        scene.db.execute(f"ALTER TABLE {table} REPLICA IDENTITY {identity}")
    scene.fill(RNG.normal(size=(150, 8)).astype(np.float32))
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    scene.same(loop, job)
    scene.db.execute("UPDATE t SET id = id + 200 WHERE id < 20")
    scene.db.execute("UPDATE t SET v = v[2:8] || v[1:1] WHERE id % 2 = 0")
    scene.db.execute("DELETE FROM t WHERE id % 9 = 0")
    scene.same(loop, job)
    scene.db.execute("TRUNCATE t1")
    scene.same(loop, job)


def test_a_large_vector_that_an_update_does_not_touch_stays(scene: Scene) -> None:
    scene.db.execute("ALTER TABLE t ADD COLUMN note int, ALTER COLUMN v SET STORAGE EXTERNAL")
    scene.dimension = 1500
    scene.fill(RNG.normal(size=(20, 1500)).astype(np.float32))
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    scene.db.execute("UPDATE t SET note = 1")
    scene.db.execute("UPDATE t SET id = id + 100 WHERE id > 10")
    scene.same(loop, job)


def test_an_array_that_does_not_begin_with_1_is_a_vector_too(scene: Scene) -> None:
    scene.db.execute("INSERT INTO t VALUES (1, '[0:2]={4,5,6}'), (2, '{1,2,3}')")
    scene.dimension = 3
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    scene.db.execute("UPDATE t SET v[0] = 9 WHERE id = 1")
    scene.db.execute("INSERT INTO t VALUES (3, '[-1:1]={7,8,9}')")
    scene.same(loop, job)
    assert len(loop.runner.search("public.t.v", np.ones(3), 9)) == 3


def test_an_empty_table_waits_for_its_first_vector(scene: Scene) -> None:
    loop, job = scene.runner(), scene.job()
    loop.ready(job)
    assert loop.runner.search("public.t.v", [1.0, 2.0], 5) == []
    scene.fill(RNG.normal(size=(5, 8)).astype(np.float32))
    scene.same(loop, job)
    assert len(loop.runner.search("public.t.v", np.ones(8), 100, ef=1)) == 5


def test_what_does_not_fit_is_refused_in_a_sentence(scene: Scene) -> None:
    scene.fill(np.ones((5, 8), np.float32))
    loop, job = scene.runner(), scene.job(metric="cosine")
    with pytest.raises(Exception, match=r'no index "public\.t\.v" that is built'):
        loop.runner.search("public.t.v", np.ones(8), 3)
    loop.ready(job)
    for vector, said in (
        ([1.0], "of 8 dimensions; the one given has 1"),
        ([float("nan")] * 8, "finite"),
        ([0.0] * 8, "no"),
    ):
        with pytest.raises(Exception, match=said):
            loop.runner.search("public.t.v", vector, 3)
    other = scene.job(id=8)
    loop.ready(other)
    with pytest.raises(Exception, match="Name the job"):
        loop.runner.search("public.t.v", np.ones(8), 3)
    assert len(loop.runner.search("public.external_index_jobs/8", np.ones(8), 3)) == 3


@pytest.mark.parametrize(
    ("type", "value", "asked", "said"),
    [
        ("bit(8)", "B'10000000'", [5, 0, 0, 0, 0, 0, 0, 0], "a 0 or a 1"),
        ("bit(8)", "B'10000000'", [0.5, 0, 0, 0, 0, 0, 0, 0], "a 0 or a 1"),
        ("integer[]", "ARRAY[1, 2]", [0.7, 1], "whole numbers"),
        ("integer[]", "ARRAY[1, 2]", [1, 1e12], "whole numbers"),
        ("integer[]", "ARRAY[1, 2]", [1, 2**31], "whole numbers"),
        ("integer[]", "ARRAY[1, 2]", [1, -(2**31) - 1], "whole numbers"),
    ],
)
def test_a_query_that_the_column_could_not_hold_is_refused(
    scene18: Scene, type: str, value: str, asked: list[float], said: str
) -> None:
    scene18.db.execute(f"CREATE TABLE t (id int PRIMARY KEY, v {type})")
    scene18.db.execute(f"INSERT INTO t VALUES (1, {value})")
    loop, job = scene18.runner(), scene18.job(metric="hamming")
    loop.ready(job)
    with pytest.raises(ConfigError, match=said):
        loop.runner.search("public.t.v", asked, 1)
    most = [1] * 8 if type == "bit(8)" else [2**31 - 1, -(2**31)]
    assert loop.runner.search("public.t.v", most, 1)[0]["key"] == {"id": 1}
