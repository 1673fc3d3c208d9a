"""What the tests of Lantern's own daemon assert, each as a test of this one, on PostgreSQL 18 with pgvector.

Vectors are compared with what the definition of the runtime ``hash`` gives for the text that stands beside them. Of
the tests of Lantern's indexing server those that are about its socket protocol (a bad header, a message cut short,
its TLS) have no counterpart: there is no such server here, for an external index is built from the table itself over
an ordinary connection. A file of an index that is damaged or comes from elsewhere is refused in ``tests/index``.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from inference.testing_api import Answer, FakeApi
from tests.acceptance.conftest import Running
from tests.acceptance.scene import BOOKS, converged, eventually, vector_of, wrong

# -- the life of a job ----------------------------------------------------------------------------------------------


def test_initial_rows_are_embedded(world: Running) -> None:
    table = world.texts(5)
    id = world.job(table)
    row = world.done(id)
    assert not wrong(world.db, table)
    assert row["init_progress"] == 100
    assert row["init_started_at"] <= row["init_finished_at"]
    assert (row["init_failed_at"], row["init_failure_reason"]) == (None, None)


def test_a_table_without_rows_is_finished_at_once(world: Running) -> None:
    row = world.done(world.job(world.texts()))
    assert row["init_progress"] == 100


def test_a_row_inserted_after_the_start(world: Running) -> None:
    table = world.texts(5)
    world.done(world.job(table))
    world.add(table, "inserted")
    converged(world.db, table)
    assert world.db.execute(f"SELECT count(v) FROM {table}").fetchone() == (6,)


def test_an_update_of_one_row(world: Running) -> None:
    table = world.texts(5)
    world.done(world.job(table))
    before = dict(world.db.execute(f"SELECT id, xmin::text FROM {table}").fetchall())
    world.db.execute(f"UPDATE {table} SET body = 'updated' WHERE id = 3")
    converged(world.db, table)
    after = dict(world.db.execute(f"SELECT id, xmin::text FROM {table}").fetchall())
    assert {id for id in before if before[id] != after[id]} == {3}, "the other rows are not written again"


def test_a_job_inserted_as_canceled_rests_until_it_is_resumed(world: Running) -> None:
    table, other = world.texts(5), world.texts(1)
    id = world.job(table, canceled_at="now")
    world.done(world.job(other))  # it came later: by now the first one would have begun
    assert world.row(id)["init_started_at"] is None
    assert wrong(world.db, table) == [f"{table} has no column v yet"]
    world.resume(id)
    assert world.done(id)["init_failed_at"] is None
    assert not wrong(world.db, table)


def test_a_job_that_is_canceled_while_it_waits_for_its_table(world: Running) -> None:
    """What was under way for it comes to its end first, so that it does not come to life behind the cancellation."""
    table = world.texts(2)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with world.target.connect() as session, session.transaction():
        session.execute(f"LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE")
        id = world.job(table)
        eventually(lambda: world.db.execute(waiting).fetchone() == (1,))
        world.cancel(id)
        refused = world.job(table, dst_column="body")  # it came later: by now the cancellation was seen
        world.until(refused, "init_failed_at")
    name = f"public.embedding_generation_jobs/{id}"
    eventually(lambda: any(e["event"] == "job_canceled" and e["job"] == name for e in world.daemon_now.events))
    eventually(lambda: world.db.execute(waiting).fetchone() == (0,))
    attached = "SELECT FROM walvec.pipelines WHERE name = %s AND attached"
    assert not world.db.execute(attached, [f"public.{table}.v"]).fetchall()


def test_a_job_that_is_finished_already_listens(world: Running) -> None:
    """As after a change of daemons: the row says that all is done. What stands is kept, what comes is embedded."""
    table = world.texts(5, more=", v real[]")
    for key, text in world.db.execute(f"SELECT id, body FROM {table}").fetchall():
        world.db.execute(f"UPDATE {table} SET v = %s WHERE id = %s", [vector_of(text).tolist(), key])
    finished = "2024-05-06T07:08:09"
    id = world.job(table, init_started_at=finished, init_finished_at=finished, init_progress=100)
    world.add(table, "new")
    converged(world.db, table)
    assert world.row(id)["init_finished_at"] == finished, "what the row says already is not said anew"


def test_several_jobs_on_several_columns_and_tables(world: Running) -> None:
    one = world.texts(5, more=", title text")
    two = world.texts(7)
    world.db.execute(f"UPDATE {one} SET title = 'title ' || id")
    jobs = [
        world.job(one),
        world.job(one, src_column="title", dst_column="title_v", embedding_model="hash-16"),
        world.job(one, dst_column="again", embedding_model="hash-4"),
        world.job(two),
    ]
    for id in jobs:
        world.done(id)
    world.db.execute(f"UPDATE {one} SET title = 'new ' || id WHERE id > 2")
    world.add(one, "more")
    world.add(two, "more", "and more")
    converged(world.db, one)
    converged(world.db, one, source="title", target="title_v", dimension=16)
    converged(world.db, one, target="again", dimension=4)
    converged(world.db, two)


def test_a_job_with_an_unknown_model_does_not_hold_up_the_other(world: Running) -> None:
    table = world.texts(5)
    bad = world.job(table, runtime="ort", embedding_model="nobody/has-this-model", dst_column="bad")
    good = world.job(table)
    world.done(good)
    row = world.until(bad, "init_failed_at")
    assert "has-this-model" in row["init_failure_reason"]
    assert row["init_finished_at"] is None
    assert not wrong(world.db, table)


def test_a_model_that_breaks_later_costs_the_rows_that_stand_nothing(world: Running, api: FakeApi) -> None:
    table = world.texts(4)
    id = world.api_job(api, table)
    world.done(id)
    api.always = Answer(401, {"error": {"message": "this key was revoked"}})
    world.add(table, "one", "two", "three")
    query = "SELECT rows FROM walvec.embedding_usage_info WHERE job_id = %s AND failed"
    failed = eventually(lambda: world.jobs.execute(query, [id]).fetchall(), why=lambda: world.log[-2000:])
    assert failed[0] == (3,)
    assert world.db.execute(f"SELECT count(v) FROM {table} WHERE id <= 4").fetchone() == (4,)
    assert "refuses the key" in world.until(id, "init_failed_at")["init_failure_reason"]
    api.always = None
    converged(world.db, table)
    eventually(lambda: world.row(id)["init_failed_at"] is None)
    assert not world.letters()


def test_two_thousand_initial_rows_and_five_hundred_meanwhile(world: Running, api: FakeApi) -> None:
    api.delay_s = 0.02
    table = world.texts(2000)
    id = world.api_job(api, table)
    eventually(lambda: api.requests)
    for n in range(0, 500, 50):
        world.add(table, *(f"meanwhile {n + i}" for i in range(50)))
    assert world.row(id)["init_finished_at"] is None, "the initial rows were done too soon to show anything"
    world.done(id)
    converged(world.db, table)
    assert world.db.execute(f"SELECT count(v) FROM {table}").fetchone() == (2500,)
    asked = [text for request in api.asked for text in request if text != "walvec"]
    assert len(asked) == len(set(asked)), "no text is paid for twice"


def test_what_is_embedded_can_be_searched(world: Running) -> None:
    table = world.texts(20)
    world.done(world.job(table))
    for ef in ({}, {"ef": 100}):
        found = world.search(f"public.{table}.v", vector_of("text 7"), k=1, **ef)
        assert (found[0]["key"], found[0]["content"]) == ({"id": 7}, "text 7")


# -- labels ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(shared: Running) -> Iterator[str]:
    """A second daemon, with a label of its own; the label."""
    http, label = shared.http, f"l{secrets.token_hex(3)}"
    with shared.daemon("--label", label) as daemon:
        shared.http = http
        daemon.wait_for("job_feed_streaming")
        yield label
        assert daemon.stop() == 0


def test_a_job_with_another_label_is_left_alone(world: Running, labelled: str) -> None:
    table = world.texts(3)
    theirs = world.job(table, label="somebody-else")
    for label in (None, labelled):
        world.done(world.job(world.texts(1), label=label))  # both daemons have looked since
    assert world.row(theirs)["init_started_at"] is None
    assert wrong(world.db, table) == [f"{table} has no column v yet"]


def test_a_job_with_the_daemons_label_is_run(world: Running, labelled: str) -> None:
    table = world.texts(3)
    world.done(world.job(table, label=labelled))
    slot = "SELECT p.slot FROM walvec.pipelines p WHERE p.name = %s"
    (held,) = world.db.execute(slot, [f"public.{table}.v"]).fetchone()
    assert labelled in held
    world.add(table, "later")
    converged(world.db, table)


def test_a_label_that_is_changed_brings_the_job(world: Running, labelled: str) -> None:
    table = world.texts(3)
    id = world.job(table, label="not-yet")
    world.done(world.job(world.texts(1)))
    assert world.row(id)["init_started_at"] is None
    world.set(id, label=labelled)
    world.done(id)
    assert not wrong(world.db, table)


def test_a_label_that_is_changed_away_takes_the_job(world: Running, labelled: str) -> None:
    table = world.texts(3)
    id = world.job(table, label=labelled)
    world.done(id)
    world.set(id, label="nobody")
    attached = "SELECT attached FROM walvec.pipelines WHERE name = %s"
    eventually(lambda: world.db.execute(attached, [f"public.{table}.v"]).fetchone() == (False,))
    world.add(table, "not for us")
    world.done(world.job(world.texts(1), label=labelled))
    assert len(wrong(world.db, table)) == 1
    world.set(id, label=None)  # without a label it is the other daemon's, from one that is stopped to one that runs
    converged(world.db, table)
    assert world.row(id)["init_failed_at"] is None


# -- keys -----------------------------------------------------------------------------------------------------------

KEYS = {
    "text": ("key text PRIMARY KEY DEFAULT gen_random_uuid()::text || ':1:''\"\\,{}é'", "key"),
    "uuid": ("id uuid PRIMARY KEY DEFAULT gen_random_uuid()", "id"),
    "bigint": ("number bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY", "number"),
    "composite": ("place text DEFAULT 'a:b', n serial, PRIMARY KEY (place, n)", "place, n"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_any_kind(world: Running, kind: str) -> None:
    declared, columns = KEYS[kind]
    table = world.texts(5, key=declared)
    world.done(world.job(table, pk=columns))
    assert not wrong(world.db, table)
    world.add(table, "new")
    first = f"({columns}) IN (SELECT {columns} FROM {table} WHERE body = 'text 1')"
    world.db.execute(f"UPDATE {table} SET body = 'changed' WHERE {first}")
    world.db.execute(f"DELETE FROM {table} WHERE body = 'text 2'")
    converged(world.db, table)


# -- usage, completions ---------------------------------------------------------------------------------------------


def test_usage_sums(world: Running, api: FakeApi) -> None:
    """Eight rows of four tokens, as the API counts them: five at the start, three later."""
    table = world.texts()
    world.add(table, *(f"abc{n}" for n in range(5)))
    id = world.api_job(api, table)
    world.done(id)
    world.add(table, *(f"xyz{n}" for n in range(3)))
    converged(world.db, table)
    query = "SELECT sum(rows)::int, sum(tokens)::int, bool_or(failed) FROM walvec.embedding_usage_info"

    def sums() -> object:
        return world.jobs.execute(f"{query} WHERE job_id = %s", [id]).fetchone()

    eventually(lambda: sums() == (8, 32, False), why=lambda: str(sums()))


def test_a_completion_into_a_column_of_numbers(world: Running, api: FakeApi) -> None:
    """An answer that is no number is set aside with the answer, and the rows beside it are written."""
    api.answers = lambda text: text if text.isdigit() else "I would rather not say."
    table = world.texts(more=", n int")
    world.add(table, "11", "22", "thirty-three", "44", None)
    id = world.api_job(
        api, table, job_type="completion", column_type="INT", dst_column="n", embedding_model="gpt-4o",
        params={"system_prompt": "Answer with the number."},
    )  # fmt: skip
    world.done(id)

    def rows() -> list[object]:
        return [n for (n,) in world.db.execute(f"SELECT n FROM {table} ORDER BY id").fetchall()]

    eventually(lambda: rows() == [11, 22, None, 44, None], why=lambda: str(rows()))
    said = "SELECT row_id, value FROM walvec.embedding_failure_info WHERE job_id = %s"
    eventually(lambda: world.jobs.execute(said, [id]).fetchall() == [("3", "I would rather not say.")])
    world.db.execute(f"UPDATE {table} SET body = '33' WHERE id = 3")
    eventually(lambda: rows() == [11, 22, 33, 44, None], why=lambda: str(rows()))
    assert ("system", "Answer with the number.") in api.requests[-1].said


# -- indexes --------------------------------------------------------------------------------------------------------

SEED = 20_240_607


def vectors(world: Running, rows: int, type: str, cast: str) -> tuple[str, np.ndarray]:
    """Make a table of random vectors; return its name and them. ``cast`` turns ``real[]`` into the column's type."""
    rng = np.random.default_rng(SEED)
    values = rng.standard_normal((rows, 16)).astype(np.float32)
    table = world.texts(more=f", e {type}")
    with world.db.cursor() as cursor:
        cursor.executemany(f"INSERT INTO {table} (e) VALUES ({cast})", [(value.tolist(),) for value in values])
    return table, values


@pytest.mark.parametrize(
    ("type", "operator", "within"),
    [
        ("real[]", "dist_l2sq_ops", 1e-4),
        ("vector(16)", "dist_vec_cos_ops", 1e-4),
        ("halfvec(16)", "halfvec_l2_ops", 2e-2),
    ],
)
def test_an_external_index(world: Running, type: str, operator: str, within: float) -> None:
    """Built, searched, and kept in step; halfvec is what takes the place of the index server's scalar quantisation."""
    table, values = vectors(world, 300, type, "%s::real[]" + ("" if type == "real[]" else f"::{type}"))
    id = world.index_job(table, "e", operator)
    world.until(id, "finished_at", book=BOOKS[1])
    name, asked = f"public.{table}.e", values[7] + 0.01

    def expected() -> np.ndarray:
        if "cos" in operator:
            lengths = np.linalg.norm(values, axis=1) * np.linalg.norm(asked)
            return np.asarray(1 - values @ asked / lengths)
        squares = ((values - asked) ** 2).sum(axis=1)
        return np.asarray(squares if "l2sq" in operator else np.sqrt(squares))

    found = world.search(name, asked, k=3, ef=200)
    order = np.argsort(expected())[:3]
    assert [hit["key"]["id"] for hit in found] == [int(i) + 1 for i in order]
    assert [hit["distance"] for hit in found] == pytest.approx(expected()[order].tolist(), abs=within)
    world.db.execute(f"DELETE FROM {table} WHERE id = 8")
    world.db.execute(f"INSERT INTO {table} (e) SELECT e FROM {table} WHERE id = %s", [int(order[1]) + 1])
    eventually(lambda: {hit["key"]["id"] for hit in world.search(name, asked, k=3, ef=200)} >= {int(order[1]) + 1, 301})
    assert 8 not in [hit["key"]["id"] for hit in world.search(name, asked, k=300, ef=400)]


@pytest.mark.parametrize("type", ["int[]", "bit(16)"])
def test_an_external_index_of_bits(world: Running, type: str) -> None:
    rng = np.random.default_rng(SEED)
    bits = rng.integers(0, 2, (200, 16))
    table = world.texts(more=f", e {type}")
    with world.db.cursor() as cursor:
        shown = [("".join(map(str, row)) if type == "bit(16)" else row.tolist(),) for row in bits]
        cursor.executemany(f"INSERT INTO {table} (e) VALUES (%s::{type})", shown)
    id = world.index_job(table, "e", "dist_hamming_ops" if type == "int[]" else "bit_hamming_ops")
    world.until(id, "finished_at", book=BOOKS[1])
    distances = (bits != bits[4]).sum(axis=1)
    found = world.search(f"public.{table}.e", bits[4], k=5, ef=200)
    assert [hit["distance"] for hit in found] == sorted(distances.tolist())[:5]
    assert all(distances[hit["key"]["id"] - 1] == hit["distance"] for hit in found)


def test_an_external_index_job_builds_the_index_in_the_database_too(world: Running) -> None:
    table, _ = vectors(world, 100, "vector(16)", "%s::real[]::vector")
    id = world.index_job(table, "e", "vector_cosine_ops", index="my_index", m=8, efc=40)
    row = world.until(id, "finished_at", book=BOOKS[1])
    assert (row["progress"], row["failed_at"]) == (100, None)
    (definition,) = world.db.execute("SELECT indexdef FROM pg_indexes WHERE indexname = 'my_index'").fetchone()
    for part in ("USING hnsw (e vector_cosine_ops)", "m='8'", "ef_construction='40'"):
        assert part in definition


def test_autotune_with_create_index(world: Running) -> None:
    table, _ = vectors(world, 1500, "vector(16)", "%s::real[]::vector")
    id = world.insert(
        BOOKS[2],
        {
            "db_connection": world.target.url, "schema": "public", "table": table, "column": "e",
            "metric_kind": "l2sq", "target_recall": 90, "k": 10, "create_index": True,
        },
    )  # fmt: skip
    row = world.until(id, "finished_at", 60, BOOKS[2])
    assert (row["progress"], row["failed_at"], row["failure_reason"]) == (100, None, None)
    query = "SELECT recall, latency, m, ef, efc, best FROM walvec.autotune_results WHERE experiment_id = %s"
    trials = world.jobs.execute(query, [id]).fetchall()
    best = [trial for trial in trials if trial[5]]
    assert len(best) == 1
    assert best[0][0] >= 90
    made = world.db.execute("SELECT indexdef FROM pg_indexes WHERE tablename = %s AND indexdef ~ 'hnsw'", [table])
    definitions = [definition for (definition,) in made.fetchall()]
    assert len(definitions) == 1
    assert f"m='{best[0][2]}'" in definitions[0]
    assert "vector_l2_ops" in definitions[0]


# -- all at once ----------------------------------------------------------------------------------------------------


def test_random_changes_end_as_the_oracle_says(world: Running) -> None:
    """Two writers, two jobs on one table: inserts, updates, deletes, NULLs and truncations as they fall."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    table = world.texts(50)
    for id in (world.job(table), world.job(table, dst_column="w", embedding_model="hash-12")):
        world.done(id)

    def write(part: int) -> None:
        rng = np.random.default_rng([seed, part])
        with world.target.connect() as db:
            for n in range(150):
                text = [f"{part} {n}", "", None, "x"][rng.choice(4, p=[0.85, 0.05, 0.05, 0.05])]
                key, dice = int(rng.integers(1, 80)), rng.random()
                if dice < 0.3:
                    db.execute(f"INSERT INTO {table} (body) VALUES (%s)", [text])
                elif dice < 0.9:
                    db.execute(f"UPDATE {table} SET body = %s WHERE id = %s", [text, key])
                elif dice < 0.99:
                    db.execute(f"DELETE FROM {table} WHERE id = %s", [key])
                else:
                    db.execute(f"TRUNCATE {table}")

    writers = [threading.Thread(target=write, args=[part]) for part in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    converged(world.db, table)
    converged(world.db, table, target="w", dimension=12)
