"""External index and autotune jobs through the daemon: claimed by one, searched by HTTP, canceled, tried again."""

import json
import time

import pytest

from cdc.testing.daemon import Daemon
from tests.jobs.conftest import AUTOTUNE_TABLE, EMBEDDING_TABLE, INDEX_TABLE, eventually
from tests.jobs.test_databases import ask

TABLES = "--embedding-table embedding_generation_jobs --external-index-table external_index_jobs"
TABLES += " --autotune-table index_autotune_jobs"


@pytest.fixture
def db(database18):
    with database18.connect() as connection:
        for statement in (EMBEDDING_TABLE, INDEX_TABLE, AUTOTUNE_TABLE):
            connection.execute(statement)
        connection.execute("CREATE TABLE points (id int PRIMARY KEY, body text, v real[])")
        connection.execute(
            "INSERT INTO points SELECT i, 'point ' || i, ARRAY[i, i * i % 97, i * 7 % 13, 1]::real[]"
            " FROM generate_series(1, 500) AS i"
        )
        yield connection


def daemon(database, tmp_path, name="one", **environment):
    return Daemon(database.url, *TABLES.split(), WALVEC_INDEX_DIR=str(tmp_path / name), **environment)


def add_index(db, database, **columns):
    values = {
        "database_id": "", "db_connection": database.url, "schema": "public", "table": "points", "column": "v",
        "operator": "dist_l2sq_ops", "efc": 64, "ef": 64, "m": 8, **columns,
    }  # fmt: skip
    return insert(db, "external_index_jobs", values)


def add_autotune(db, database, **columns):
    values = {
        "database_id": "", "db_connection": database.url, "schema": "public", "table": "points", "column": "v",
        "metric_kind": "l2sq", "target_recall": 90, "k": 5, "create_index": False, **columns,
    }  # fmt: skip
    return insert(db, "index_autotune_jobs", values)


def insert(db, table, values):
    names = ", ".join(f'"{name}"' for name in values)
    marks = ", ".join(["%s"] * len(values))
    return db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks}) RETURNING id", list(values.values())).fetchone()[
        0
    ]


def row(db, table, id):
    return db.execute(f"SELECT to_jsonb(t) FROM {table} AS t WHERE id = %s", [id]).fetchone()[0]


def finished(db, table, id, log, timeout_s=60.0):
    def over():
        found = row(db, table, id)
        assert found["failed_at"] is None, found["failure_reason"]
        return found["finished_at"] and found

    return eventually(over, timeout_s, log()[-3000:])


def test_an_external_index_is_built_by_one_of_two_daemons_and_searched(db, database18, tmp_path):
    with daemon(database18, tmp_path, WALVEC_HTTP="127.0.0.1:0") as one:
        port = one.wait_for("http_listening")["address"].rpartition(":")[2]
        one.wait_for("job_feed_streaming")
        id = add_index(db, database18)
        with daemon(database18, tmp_path, "two") as two:
            found = finished(db, "external_index_jobs", id, lambda: one.log)
            assert found["progress"] == 100
            assert not [e for e in two.events if e["event"] == "job_failed"]
            asked = {"pipeline": "public.points.v", "vector": [7, 49, 10, 1], "k": 2}
            code, answer = eventually(lambda: (a := ask(port, "/v1/search", asked)) and a[0] == 200 and a, 20, one.log)
            assert json.loads(answer)["results"][0]["key"] == {"id": 7}, answer
            db.execute("INSERT INTO points VALUES (501, 'new', ARRAY[1000, 1000, 1000, 1])")
            asked["vector"] = [1000, 1000, 1000, 1]
            eventually(lambda: '"id":501' in ask(port, "/v1/search", asked)[1].replace(" ", ""), 20, one.log)
            assert code == 200
            one.kill()  # the other takes the job over
            two.wait_for("job_started")
        db.execute("UPDATE external_index_jobs SET canceled_at = now()")
        with daemon(database18, tmp_path) as again:
            ask_slots = "SELECT FROM pg_replication_slots WHERE database = current_database() AND NOT temporary"
            eventually(lambda: not db.execute(ask_slots).fetchall(), 20, again.log)


def test_autotune_fills_the_results_table_and_is_done_once(db, database18, tmp_path):
    with daemon(database18, tmp_path) as one, daemon(database18, tmp_path, "two") as two:
        id = add_autotune(db, database18)
        found = finished(db, "index_autotune_jobs", id, lambda: one.log + two.log, 90)
        assert found["started_at"] is not None
        assert found["progress"] == 100
        rows = db.execute(
            "SELECT count(*) > 0, count(*) FILTER (WHERE best), max(recall) > 50 FROM walvec.autotune_results"
            " WHERE experiment_id = %s",
            [id],
        ).fetchone()
        assert rows == (True, 1, True)

        def ends():
            return sum(e["event"] == "job_finished" for e in one.events + two.events)

        eventually(ends)
        time.sleep(0.5)
        assert ends() == 1
        db.execute("UPDATE index_autotune_jobs SET finished_at = NULL, k = 6 WHERE id = %s", [id])  # once more
        finished(db, "index_autotune_jobs", id, lambda: one.log + two.log, 90)
        kept = "SELECT min(k), max(k), count(*) FILTER (WHERE best) FROM walvec.autotune_results"
        assert db.execute(kept).fetchone() == (6, 6, 1), "the rows of the earlier run have gone"
        broken = add_autotune(db, database18, column="body")
        eventually(lambda: row(db, "index_autotune_jobs", broken)["failed_at"])
        db.execute("UPDATE index_autotune_jobs SET canceled_at = now() WHERE id = %s", [broken])
        assert (one.stop(), two.stop()) == (0, 0)


def test_a_finished_autotune_job_that_is_edited_is_done_again(db, database18, tmp_path):
    """Also by a daemon that found it finished; once for each edit, by one of two daemons."""

    def winners():
        """The newest run's winner: a run takes the rows of the one before away."""
        return [id for (id,) in db.execute("SELECT id FROM walvec.autotune_results WHERE best").fetchall()]

    with daemon(database18, tmp_path) as one, daemon(database18, tmp_path, "two") as two:
        id = add_autotune(db, database18)
        first = finished(db, "index_autotune_jobs", id, lambda: one.log + two.log, 90)
        (won,) = winners()
        db.execute("UPDATE index_autotune_jobs SET target_recall = 80")
        again = eventually(
            lambda: (r := row(db, "index_autotune_jobs", id))["finished_at"] not in (None, first["finished_at"]) and r,
            60, one.log + two.log,
        )  # fmt: skip
        assert again["started_at"] > first["finished_at"] and again["progress"] == 100
        assert (one.stop(), two.stop()) == (0, 0)
        (won_again,) = winners()
        assert won_again != won
    with daemon(database18, tmp_path) as later:
        later.wait_for("job_feed_streaming")
        other = add_index(db, database18, column="nope")
        eventually(lambda: row(db, "external_index_jobs", other)["failed_at"], 20, later.log)  # it has looked
        assert winners() == [won_again]
        db.execute("UPDATE index_autotune_jobs SET k = 3")
        eventually(lambda: len(winners()) == 1 and winners() != [won_again], 60, later.log)


def test_only_the_kinds_whose_tables_are_given_are_run(db, database18):
    id = add_index(db, database18)
    with Daemon(database18.url, "--embedding-table", "embedding_generation_jobs") as one:
        one.wait_for("job_feed_streaming")
        assert row(db, "external_index_jobs", id)["started_at"] is None
        assert one.stop() == 0


def test_an_index_name_that_is_taken_is_said_in_the_row_of_a_job_that_goes_on(db, database18, tmp_path):
    db.execute("CREATE EXTENSION vector")
    db.execute("CREATE TABLE spots (id int PRIMARY KEY, v vector(4), w vector(4))")
    db.execute("INSERT INTO spots SELECT i, ARRAY[i, 1, 2, 3]::real[]::vector FROM generate_series(1, 50) AS i")
    db.execute("CREATE INDEX taken ON spots USING hnsw (w vector_l2_ops)")
    id = add_index(db, database18, table="spots", operator="vector_l2_ops", index="taken")
    with daemon(database18, tmp_path, WALVEC_HTTP="127.0.0.1:0") as one:
        port = one.wait_for("http_listening")["address"].rpartition(":")[2]
        eventually(lambda: row(db, "external_index_jobs", id)["failed_at"])
        found = row(db, "external_index_jobs", id)
        assert "public.taken is another index" in found["failure_reason"]
        assert found["finished_at"] is not None
        db.execute("UPDATE spots SET v = '[900,1,2,3]' WHERE id = 7")

        def followed():
            code, answer = ask(port, "/v1/search", {"pipeline": "public.spots.v", "vector": [900, 1, 2, 3], "k": 1})
            return code == 200 and json.loads(answer)["results"][0]["key"] == {"id": 7}

        eventually(followed)
        assert sum(event["event"] == "job_started" for event in one.events) == 1
        db.execute("DROP TABLE spots")
        eventually(lambda: "There is no table" in row(db, "external_index_jobs", id)["failure_reason"])
        slots = "SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'walvec_index%'"
        slots += " AND database = current_database()"
        eventually(lambda: not db.execute(slots).fetchall())
