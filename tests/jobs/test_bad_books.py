"""What is wrong with one table of jobs, one row or one row of the registry: it is said, and it stops nothing else."""

import json

import pytest

from cdc.testing.daemon import Daemon
from tests.jobs.conftest import eventually
from tests.jobs.test_controls import OWN_JOB, done
from tests.jobs.test_databases import ask


def test_a_table_of_jobs_whose_id_is_no_number_is_refused_with_exit_status_2(jobs):
    jobs.db.execute("ALTER TABLE embedding_generation_jobs DROP id, ADD id uuid PRIMARY KEY")
    with jobs.daemon() as daemon:
        assert daemon.process.wait(20) == 2
        assert "Traceback" not in daemon.log
        assert 'The column "id" of public.embedding_generation_jobs' in daemon.log
        assert "is of type uuid" in daemon.log


def test_an_id_of_a_domain_over_a_number_is_one(jobs):
    jobs.texts("articles", 1)
    jobs.db.execute("CREATE DOMAIN job_id AS bigint; ALTER TABLE embedding_generation_jobs ALTER id TYPE job_id")
    with jobs.daemon() as daemon:
        jobs.until(jobs.add(), "init_finished_at")
        assert daemon.stop() == 0


def test_rows_without_an_id_are_left_out_and_the_others_go_on(jobs):
    jobs.texts("articles", 1)
    jobs.db.execute("ALTER TABLE embedding_generation_jobs DROP CONSTRAINT embedding_generation_jobs_pkey")
    jobs.db.execute("ALTER TABLE embedding_generation_jobs ALTER id DROP NOT NULL")
    with jobs.daemon() as daemon:
        jobs.until(jobs.add(), "init_finished_at")
        jobs.db.execute(
            'INSERT INTO embedding_generation_jobs (id, db_connection, schema, "table", runtime, src_column, '
            "dst_column, embedding_model) VALUES (NULL, '', 'public', 'articles', 'hash', 'body', 'x', 'hash-8')"
        )
        assert daemon.wait_for("job_rows_skipped")["rows"] == 1
        jobs.until(jobs.add(dst_column="w"), "init_finished_at")
        assert daemon.stop() == 0
        assert sum(event["event"] == "job_rows_skipped" for event in daemon.events) == 1


def test_an_id_that_becomes_no_number_while_the_daemon_runs_stops_no_job_that_runs(jobs):
    jobs.texts("articles", 1)
    with jobs.daemon() as daemon:
        jobs.until(jobs.add(), "init_finished_at")
        jobs.db.execute("ALTER TABLE embedding_generation_jobs ALTER id DROP DEFAULT, ALTER id TYPE text")
        jobs.db.execute("UPDATE embedding_generation_jobs SET updated_at = now()")
        assert 'The column "id"' in daemon.wait_for("jobs_unreadable")["message"]
        jobs.db.execute("INSERT INTO articles (body) VALUES ('new')")
        eventually(lambda: jobs.missing() == 0, why=daemon.log[-3000:])
        jobs.db.execute("ALTER TABLE embedding_generation_jobs ALTER id TYPE int USING id::int")
        jobs.until(jobs.add(id=2, dst_column="w"), "init_finished_at")
        assert daemon.stop() == 0


def test_of_two_target_databases_one_with_a_bad_table_is_told_and_tried_again(database18, other18):
    with database18.connect() as here, other18.connect() as there:
        here.execute("CREATE TABLE t (id serial PRIMARY KEY, body text); INSERT INTO t (body) VALUES ('a')")
        there.execute("CREATE TABLE t (id serial PRIMARY KEY, body text); INSERT INTO t (body) VALUES ('a')")
        arguments = ("--target-db", database18.url, other18.url, "--embeddings", "--schema", "books")
        for db in (here, there):
            db.execute("CREATE SCHEMA books")
        here.execute(f"CREATE TABLE books.embedding_generation_jobs ({COLUMNS})")
        there.execute(f"CREATE TABLE books.embedding_generation_jobs ({COLUMNS.replace('serial', 'uuid')})")
        with Daemon("", *arguments) as daemon:
            refused = daemon.wait_for("database_refused")
            assert "is of type uuid" in refused["message"]
            here.execute(OWN_JOB.replace("walvec.", "books."))
            missing = "SELECT count(*) FROM t WHERE v IS NULL"
            eventually(lambda: has_v(here) and here.execute(missing).fetchone() == (0,), why=daemon.log)
            there.execute("ALTER TABLE books.embedding_generation_jobs DROP id, ADD id serial PRIMARY KEY")
            there.execute(OWN_JOB.replace("walvec.", "books."))
            eventually(lambda: has_v(there) and there.execute(missing).fetchone() == (0,), why=daemon.log)
            assert daemon.stop() == 0


COLUMNS = (
    'id serial PRIMARY KEY, "table" text, src_column text, dst_column text, embedding_model text, runtime text, '
    "init_started_at timestamptz, init_finished_at timestamptz, init_failed_at timestamptz, init_failure_reason text"
)


def has_v(db):
    query = "SELECT FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'v'"
    return db.execute(query).fetchone() is not None


@pytest.mark.parametrize("gone", [0, 1])
def test_a_database_that_is_listed_twice_is_served_until_both_rows_are_gone(database18, other18, gone):
    spellings = [other18.url, other18.url.replace("postgresql://", "postgres://")]
    assert spellings[0] != spellings[1]
    with database18.connect() as db, other18.connect() as there:
        there.execute("CREATE TABLE t (id serial PRIMARY KEY, body text); INSERT INTO t (body) VALUES ('a')")
        db.execute("CREATE TABLE daemon_databases (db_uri text PRIMARY KEY)")
        db.execute("INSERT INTO daemon_databases VALUES (%s), (%s)", spellings)
        with Daemon("", "--master-db", database18.url) as daemon:
            daemon.wait_for("database_listed_twice")
            there.execute(OWN_JOB)
            eventually(lambda: done(there), why=daemon.log[-3000:])
            db.execute("DELETE FROM daemon_databases WHERE db_uri = %s", [spellings[gone]])
            daemon.wait_for("database_removed")
            there.execute("INSERT INTO t (body) VALUES ('new')")
            missing = "SELECT count(*) FROM t WHERE v IS NULL"
            eventually(lambda: there.execute(missing).fetchone() == (0,), why=daemon.log[-3000:])
            failed = "SELECT count(init_failed_at) FROM walvec.embedding_generation_jobs"
            assert there.execute(failed).fetchone() == (0,)
            there.execute("UPDATE t SET body = 'newer'")  # it is followed still, by whoever has taken over
            db.execute("DELETE FROM daemon_databases")
            slots = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database() AND NOT temporary"
            eventually(lambda: not there.execute(slots).fetchall(), why=daemon.log[-3000:])
            assert daemon.stop() == 0


def test_a_daemon_whose_second_spelling_waits_stops_at_once(database18):
    other = database18.url.replace("postgresql://", "postgres://")
    with Daemon("", "--target-db", database18.url, other) as daemon:
        daemon.wait_for("database_listed_twice")
        assert daemon.stop() == 0


def test_a_row_of_the_registry_that_is_no_address_is_told_of_until_it_is_gone(database18):
    with database18.connect() as db:
        db.execute("CREATE TABLE daemon_databases (db_uri text PRIMARY KEY)")
        with Daemon("", "--master-db", database18.url, WALVEC_HTTP="127.0.0.1:0") as daemon:
            port = daemon.wait_for("http_listening")["address"].rpartition(":")[2]

            def told():
                checks = json.loads(ask(port, "/healthz")[1])["checks"]
                return sum(check["name"] == "database a database of the registry" for check in checks)

            db.execute("INSERT INTO daemon_databases VALUES ('rubbish'), ('more rubbish')")
            message = daemon.wait_for("database_refused")["message"]
            assert "db_uri" in message
            assert "db_connection" not in message
            eventually(lambda: told() == 2)
            db.execute("DELETE FROM daemon_databases WHERE db_uri = 'rubbish'")
            eventually(lambda: told() == 1)
            db.execute("DELETE FROM daemon_databases")
            eventually(lambda: told() == 0)
            assert daemon.stop() == 0
