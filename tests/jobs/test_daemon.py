"""The daemon over Lantern's tables: its documented statements, and the life of a job."""

import json
import re
import secrets
import time
from datetime import datetime

import pytest

from cdc.testing.cluster import Cluster
from cdc.testing.daemon import Daemon
from inference.testing_api import Answer, FakeApi
from tests.jobs.conftest import AUTOTUNE_TABLE, EMBEDDING_TABLE, INDEX_TABLE, Jobs, eventually
from tests.jobs.test_models_daemon import served


def test_lanterns_documented_statements_work_unchanged(database18):
    with database18.connect() as db:
        for statement in (EMBEDDING_TABLE, INDEX_TABLE, AUTOTUNE_TABLE):
            db.execute(statement)
        db.execute("CREATE TABLE articles (id serial PRIMARY KEY, title text)")
        db.execute("INSERT INTO articles (title) VALUES ('Zip archives'), ('Sorting numbers'), (NULL), ('')")
        arguments = "--embedding-table embedding_generation_jobs --external-index-table external_index_jobs"
        arguments += " --autotune-table index_autotune_jobs"
        with Daemon(database18.url, *arguments.split()) as daemon:
            daemon.wait_for("job_feed_streaming")
            db.execute(
                'INSERT INTO embedding_generation_jobs (db_connection, schema, "table", src_column, dst_column, '
                "embedding_model, runtime) VALUES (%s, 'public', 'articles', 'title', 'title_embedding', "
                "'microsoft/all-MiniLM-L12-v2', 'ort')",
                [database18.url],
            )
            eventually(
                lambda: db.execute("SELECT init_finished_at FROM embedding_generation_jobs").fetchone()[0],
                40,
            )
            assert db.execute(
                "SELECT init_started_at <= init_finished_at, init_progress, init_failed_at"
                " FROM embedding_generation_jobs"
            ).fetchone() == (True, 100, None)
            db.execute("INSERT INTO articles (title) VALUES ('My articles title')")
            eventually(
                lambda: not db.execute("SELECT FROM articles WHERE title <> '' AND title_embedding IS NULL").fetchall()
            )
            assert db.execute("SELECT count(*) FROM articles WHERE title_embedding IS NOT NULL").fetchone() == (3,)
            assert daemon.stop() == 0


def test_a_job_is_picked_up_when_it_commits_canceled_and_resumed_with_changed_rows(jobs):
    jobs.texts("articles", 5)
    with jobs.daemon() as daemon:
        daemon.wait_for("job_feed_streaming")
        id = jobs.add()
        row = jobs.until(id, "init_finished_at")
        assert row["init_progress"] == 100
        assert row["init_started_at"] is not None
        assert jobs.missing() == 0
        jobs.set(id, canceled_at="now")
        daemon.wait_for("job_engine_released")
        assert not jobs.db.execute("SELECT FROM pg_replication_slots WHERE slot_name LIKE 'walvec_jobs%'").fetchall()
        before = dict(jobs.db.execute("SELECT id, v::text FROM articles").fetchall())
        jobs.db.execute("UPDATE articles SET body = 'changed' WHERE id = 2")
        jobs.db.execute("INSERT INTO articles (body) VALUES ('new')")
        assert jobs.row(id)["init_failed_at"] is None
        jobs.set(id, canceled_at=None)
        eventually(lambda: jobs.missing() == 0, why=daemon.log[-3000:])
        eventually(lambda: vectors(jobs, 2) != before[2], why="the changed row")
        assert vectors(jobs, 3) == before[3]
        assert daemon.stop() == 0


def test_pick_up_takes_milliseconds_not_a_poll(jobs):
    jobs.texts("articles", 1)
    with jobs.daemon() as daemon:
        daemon.wait_for("job_feed_streaming")
        jobs.until(jobs.add(), "init_finished_at")  # engine and slot are there now
        took = []
        for n in range(9):
            id = jobs.add("articles", runtime="nowhere", dst_column=f"w{n}")
            row = jobs.until(id, "init_failed_at")
            took.append(parsed(row["init_failed_at"]) - parsed(row["created_at"]))
        print(f"from commit to the first word in the row: {sorted(took)[4] * 1000:.1f} ms (median of 9)")
        assert sorted(took)[4] < 0.25, took


def parsed(stamp):
    return datetime.fromisoformat(stamp).timestamp()


def vectors(jobs, id):
    return jobs.db.execute("SELECT v::text FROM articles WHERE id = %s", [id]).fetchone()[0]


def test_edits_reconcile_to_the_new_spec(jobs):
    jobs.texts("articles", 3)
    jobs.db.execute("ALTER TABLE articles ADD title text; UPDATE articles SET title = 'title ' || id")
    with jobs.daemon() as daemon:
        id = jobs.add()
        jobs.until(id, "init_finished_at")
        first = vectors(jobs, 1)
        jobs.set(id, src_column="title")
        second = eventually(lambda: (v := vectors(jobs, 1)) != first and v, why=daemon.log[-3000:])
        jobs.set(id, embedding_model="hash-8", runtime_params='{"document_prefix": "x: "}')
        eventually(lambda: vectors(jobs, 1) != second, why=daemon.log[-3000:])
        jobs.set(id, dst_column="w")
        eventually(lambda: has_column(jobs, "w") and jobs.missing(column="w") == 0, why=daemon.log[-3000:])
        attached = jobs.db.execute("SELECT name FROM walvec.pipelines WHERE attached").fetchall()
        assert attached == [("public.articles.w",)]


def has_column(jobs, name, table="articles"):
    return bool(
        jobs.db.execute(
            "SELECT FROM pg_attribute WHERE attrelid = %s::regclass AND attname = %s", [table, name]
        ).fetchall()
    )


def test_one_failing_job_never_stops_another_and_each_says_why(jobs):
    jobs.texts("articles", 3)
    jobs.db.execute("CREATE TABLE bare (body text)")
    with jobs.daemon() as daemon:
        wrong_password = re.sub(r":[^:@/]+@", ":wrong-secret@", jobs.database.url)
        bad = {
            jobs.add(embedding_model="no-such-model", runtime="ort"): "no-such-model",
            jobs.add(runtime="abacus", dst_column="v1"): "abacus",
            jobs.add("nowhere"): "no table public.nowhere",
            jobs.add("bare"): "key",
            jobs.add(src_column="nothing", dst_column="v2"): "nothing",
            jobs.add(db_connection=wrong_password, dst_column="v3"): "password",
            jobs.add(dst_column="body"): "body",
            jobs.add(db_connection="env:NOT_SET_ANYWHERE", dst_column="v5"): "NOT_SET_ANYWHERE",
        }
        good = jobs.add(dst_column="good")
        jobs.until(good, "init_finished_at")
        for id, word in bad.items():
            row = jobs.until(id, "init_failed_at")
            assert word in row["init_failure_reason"], row["init_failure_reason"]
            assert row["init_finished_at"] is None
            assert row["updated_at"] >= row["created_at"]
        later = jobs.add(dst_column="good")
        assert f"/{good} " in jobs.until(later, "init_failed_at")["init_failure_reason"]
        jobs.db.execute("INSERT INTO articles (body) VALUES ('still')")
        eventually(lambda: jobs.missing(column="good") == 0)
        # mended by an edit: at once, and the failure is struck out
        first = next(iter(bad))
        jobs.set(first, embedding_model="hash-8", runtime="hash", dst_column="mended")
        row = jobs.until(first, "init_finished_at", 5)
        assert (row["init_failed_at"], row["init_failure_reason"]) == (None, None)
        # the holder of the column goes: the later job takes over
        jobs.set(good, canceled_at="now")
        jobs.until(later, "init_finished_at")
        assert daemon.stop() == 0
        shown = daemon.log + str([jobs.row(id) for id in bad if jobs.row(id)["db_connection"] != wrong_password])
        assert "wrong-secret" not in daemon.log
        assert "wrong-secret" not in shown.replace(wrong_password, "")


def test_failed_jobs_are_tried_again_with_backoff(jobs):
    with jobs.daemon() as daemon:
        id = jobs.add("later")
        jobs.until(id, "init_failed_at")
        jobs.texts("later", 2)
        row = jobs.until(id, "init_finished_at", 10)
        assert row["init_failed_at"] is None
        assert daemon.stop() == 0
        tries = [e["attempt"] for e in daemon.events if e["event"] == "job_failed"]
        assert tries == sorted(tries)


def test_labels_pin_jobs_to_daemons_and_move_them(jobs):
    jobs.texts("articles", 2)
    with jobs.daemon() as plain, jobs.daemon("--label", "gpu") as gpu:
        plain.wait_for("job_feed_streaming")
        gpu.wait_for("job_feed_streaming")
        pinned = jobs.add(label="gpu")
        free = jobs.add(dst_column="w", label="")
        nobody = jobs.add(dst_column="x", label="other")
        jobs.until(pinned, "init_finished_at")
        jobs.until(free, "init_finished_at")
        oid = jobs.db.execute("SELECT oid FROM pg_database WHERE datname = current_database()").fetchone()[0]
        named = sorted(re.sub("_[0-9a-f]{8}_", "_*_", slot) for slot in slots(jobs))
        assert named == [f"walvec_jobs_*_{oid}", f"walvec_jobs_gpu_*_{oid}"]
        gpus = {slot for slot in slots(jobs) if "_gpu_" in slot}
        assert jobs.row(nobody)["init_started_at"] is None
        jobs.set(free, label="gpu")
        eventually(lambda: slots(jobs) == gpus, why=plain.log[-3000:])
        jobs.db.execute("INSERT INTO articles (body) VALUES ('moved')")
        eventually(lambda: jobs.missing(column="w") == 0, why=gpu.log[-3000:])
        jobs.set(nobody, label=None)
        jobs.until(nobody, "init_finished_at")
        assert (plain.stop(), gpu.stop()) == (0, 0)


def slots(jobs):
    rows = jobs.db.execute(
        "SELECT slot_name FROM pg_replication_slots WHERE database = current_database() AND NOT temporary"
    )
    return {row[0] for row in rows.fetchall()}


def test_two_daemons_share_jobs_and_one_takes_over_from_the_other(jobs):
    jobs.texts("articles", 200)
    with jobs.daemon() as one, jobs.daemon() as two:
        id = jobs.add()
        jobs.until(id, "init_finished_at")
        holder, other = (one, two) if any(e["event"] == "slot_streaming" for e in one.events) else (two, one)
        holder.kill()
        jobs.db.execute("INSERT INTO articles (body) VALUES ('after')")
        jobs.db.execute("UPDATE articles SET body = 'changed' WHERE id = 1")
        eventually(lambda: jobs.missing() == 0, 40, other.log[-3000:])
        assert jobs.row(id)["init_failed_at"] is None
        jobs.set(id, canceled_at="now")
        eventually(lambda: slots(jobs) == set(), 30, other.log[-3000:])
        assert other.stop() == 0


def test_jobs_canceled_or_deleted_while_no_daemon_ran_are_cleared_away(jobs):
    jobs.texts("articles", 2)
    with jobs.daemon() as daemon:
        canceled, deleted, kept = jobs.add(), jobs.add(dst_column="w"), jobs.add(dst_column="x")
        for id in (canceled, deleted, kept):
            jobs.until(id, "init_finished_at")
        assert daemon.stop() == 0
    jobs.set(canceled, canceled_at="now")
    jobs.db.execute("DELETE FROM embedding_generation_jobs WHERE id = %s", [deleted])
    jobs.db.execute("UPDATE articles SET body = 'changed' WHERE id = 1")
    with jobs.daemon() as daemon:
        eventually(
            lambda: (
                jobs.db.execute("SELECT name FROM walvec.pipelines WHERE attached").fetchall()
                == [("public.articles.x",)]
            )
        )
        jobs.db.execute("DELETE FROM embedding_generation_jobs")
        eventually(lambda: slots(jobs) == set(), why=daemon.log[-3000:])


def test_usage_is_written_down(jobs):
    jobs.db.execute(
        "ALTER TABLE embedding_generation_jobs ADD failed_requests bigint DEFAULT 0, ADD failed_rows bigint DEFAULT 0;"
        "CREATE TABLE told (job int, rows int, tokens bigint);"
        "CREATE FUNCTION increment_embedding_usage_and_tokens(int, int, bigint) RETURNS void LANGUAGE sql"
        " AS 'INSERT INTO public.told VALUES ($1, $2, $3)'"
    )
    jobs.texts("articles", 8)
    with jobs.daemon():
        id = jobs.add()
        jobs.until(id, "init_finished_at")
        ask = (
            "SELECT sum(rows)::int, sum(tokens) > 0, bool_or(failed) FROM walvec.embedding_usage_info WHERE job_id = %s"
        )
        eventually(lambda: jobs.db.execute(ask, [id]).fetchone() == (8, True, False))
        assert jobs.db.execute("SELECT job, sum(rows)::int FROM told GROUP BY job").fetchall() == [(id, 8)]


def test_a_missing_table_of_jobs_is_an_error_with_exit_status_2(database18):
    with Daemon(database18.url, "--embedding-table", "no_such_table") as daemon:
        assert daemon.process.wait(20) == 2
        assert "public.no_such_table" in daemon.log
        assert "Traceback" not in daemon.log


@pytest.mark.parametrize(
    ("arguments", "word"),
    [((), "--uri"), (("--embedding-table", "t", "--target-db", "x"), "--target-db"), (("--log-level", "loud"), "loud")],
)
def test_a_command_line_that_makes_no_sense_is_refused(database18, arguments, word):
    with Daemon(database18.url, *arguments) as daemon:
        assert daemon.process.wait(20) == 2
        assert word in daemon.log


def test_a_table_that_is_dropped_and_made_anew_is_served_again(jobs):
    jobs.texts("articles", 1)
    with jobs.daemon() as daemon:
        daemon.wait_for("job_feed_streaming")
        jobs.db.execute("DROP TABLE embedding_generation_jobs")
        time.sleep(0.1)
        jobs.db.execute(EMBEDDING_TABLE)
        eventually(lambda: has_default(jobs), why=daemon.log[-3000:])
        jobs.until(jobs.add(database_id="y"), "init_finished_at")


def has_default(jobs):
    return jobs.db.execute(
        "SELECT atthasdef FROM pg_attribute WHERE attrelid = 'embedding_generation_jobs'::regclass"
        " AND attname = 'database_id'"
    ).fetchone()[0]


def test_a_model_that_breaks_later_counts_failures_and_keeps_what_is_there(jobs):
    jobs.db.execute(
        "ALTER TABLE embedding_generation_jobs ADD failed_requests bigint, ADD failed_rows bigint DEFAULT 0"
    )
    jobs.texts("articles", 4)
    api = FakeApi(dimension=8)
    with served(api), jobs.daemon() as daemon:
        id = jobs.add(runtime="openai", embedding_model="m", runtime_params=json.dumps({"base_url": api.url}))
        jobs.until(id, "init_finished_at")
        before = vectors(jobs, 1)
        api.script.extend([Answer(500, {"error": "broken"})] * 100_000)
        jobs.db.execute("INSERT INTO articles (body) SELECT 'later ' || i FROM generate_series(1, 3) AS i")
        failed = "SELECT sum(rows)::int FROM walvec.embedding_usage_info WHERE job_id = %s AND failed"
        assert eventually(lambda: jobs.db.execute(failed, [id]).fetchone()[0], why=daemon.log[-3000:]) >= 3
        eventually(lambda: jobs.row(id)["failed_rows"] >= 3)
        assert jobs.row(id)["failed_requests"] >= 1
        assert vectors(jobs, 1) == before
        api.script.clear()
        eventually(lambda: jobs.missing() == 0, why=daemon.log[-3000:])


def test_an_edit_to_an_unknown_model_stops_the_job_and_says_so(jobs):
    jobs.texts("articles", 1)
    with jobs.daemon() as daemon:
        id = jobs.add()
        jobs.until(id, "init_finished_at")
        before = vectors(jobs, 1)
        jobs.set(id, embedding_model="no-such-model", runtime="ort")
        row = jobs.until(id, "init_failed_at")
        assert "no-such-model" in row["init_failure_reason"]
        daemon.wait_for("pipeline_failed")
        jobs.db.execute("INSERT INTO articles (body) VALUES ('new')")
        time.sleep(0.5)  # long enough for a model that still ran
        assert jobs.missing() == 1
        assert vectors(jobs, 1) == before
        jobs.set(id, embedding_model="hash-8", runtime="hash")
        eventually(lambda: jobs.missing() == 0)
        eventually(lambda: jobs.row(id)["init_failed_at"] is None)


def test_progress_rises_and_everything_that_comes_meanwhile_is_embedded(jobs):
    jobs.texts("articles", 15_000)
    with jobs.daemon(WALVEC_BATCH_ROWS="50", WALVEC_INFLIGHT="1") as daemon:
        id = jobs.add()
        seen = set()

        def over():
            row = jobs.row(id)
            seen.add(row["init_progress"])
            return row["init_finished_at"]

        jobs.until(id, "init_started_at")
        jobs.db.execute("INSERT INTO articles (body) SELECT 'meanwhile ' || i FROM generate_series(1, 500) AS i")
        eventually(over, 40, daemon.log[-3000:])
        assert jobs.row(id)["init_progress"] == 100
        assert len(seen - {0, 100}) >= 2, seen
        eventually(lambda: jobs.missing() == 0)


def test_the_control_database_may_restart(pg18):
    with Cluster.create("18") as cluster:
        control = cluster.start().create_database("control")
        target = pg18.create_database(f"t_{secrets.token_hex(6)}")
        with target.connect() as db:
            db.execute("CREATE TABLE articles (id int PRIMARY KEY, body text)")
            db.execute("INSERT INTO articles VALUES (1, 'text')")
            with control.connect() as book:
                jobs = Jobs(control, book)
                daemon = jobs.daemon()
                with daemon:
                    first = jobs.add(db_connection=target.url)
                    jobs.until(first, "init_finished_at")
                    cluster.restart()
                    db.execute("INSERT INTO articles VALUES (2, 'meanwhile')")
                    with control.connect() as again:
                        jobs.db = again
                        second = jobs.add(db_connection=target.url, dst_column="w")
                        jobs.until(second, "init_finished_at", 30)
                        assert db.execute("SELECT count(v), count(w) FROM articles").fetchone() == (2, 2)
                        jobs.set(first, canceled_at="now")
                        jobs.set(second, canceled_at="now")
                        daemon.wait_for("job_engine_released", 20)
                        assert daemon.stop() == 0
        target.drop()


def test_answers_that_the_column_does_not_take_are_kept_with_their_rows(jobs):
    jobs.db.execute("ALTER TABLE embedding_generation_jobs ADD job_type text, ADD column_type text")
    jobs.db.execute("CREATE TABLE articles (a text, b int, body text, n int, PRIMARY KEY (a, b))")
    jobs.db.execute("INSERT INTO articles VALUES ('x:y', 1, 'five', NULL), ('ä', 2, 'many', NULL)")
    api = FakeApi()
    said = {"five": "5", "many": "I cannot count that"}
    api.answers = lambda text: said.get(text, "7")
    with served(api), jobs.daemon() as daemon:
        id = jobs.add(
            dst_column="n",
            runtime="openai",
            runtime_params=json.dumps({"base_url": api.url}),
            embedding_model="gpt-4o",
            job_type="completion",
            column_type="int",
        )
        jobs.until(id, "init_finished_at")
        ask = "SELECT job_id, row_id, value FROM walvec.embedding_failure_info"
        assert eventually(lambda: jobs.db.execute(ask).fetchall()) == [(id, '["ä", "2"]', "I cannot count that")]
        assert jobs.db.execute("SELECT n FROM articles ORDER BY b").fetchall() == [(5,), (None,)]
        assert "cannot count" not in daemon.log
