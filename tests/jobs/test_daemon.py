"""The daemon over Lantern's tables: its documented statements, and the life of a job."""

import re
import time
from datetime import datetime

import pytest

from cdc.testing.daemon import Daemon
from tests.jobs.conftest import AUTOTUNE_TABLE, EMBEDDING_TABLE, INDEX_TABLE, eventually


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
                "SELECT init_started_at <= init_finished_at, init_progress, init_failed_at FROM embedding_generation_jobs"
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
        assert slots(jobs) == {f"walvec_jobs_{oid}", f"walvec_jobs_gpu_{oid}"}
        assert jobs.row(nobody)["init_started_at"] is None
        jobs.set(free, label="gpu")
        eventually(lambda: slots(jobs) == {f"walvec_jobs_gpu_{oid}"}, why=plain.log[-3000:])
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
