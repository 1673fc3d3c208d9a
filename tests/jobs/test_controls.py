"""Several tables of jobs over one target: none ends another's pipelines, and none is taken for another."""

import secrets

import pytest

from cdc.testing.daemon import Daemon
from tests.jobs.conftest import Jobs, eventually

OWN_JOB = (
    'INSERT INTO walvec.embedding_generation_jobs ("table", src_column, dst_column, embedding_model, runtime) '
    "VALUES ('t', 'body', 'v', 'hash-8', 'hash') RETURNING id"
)


@pytest.fixture
def target18(pg18):
    database = pg18.create_database(f"t_{secrets.token_hex(6)}")
    with database.connect() as db:
        for table in ("t", "t2"):
            db.execute(f"CREATE TABLE {table} (id serial PRIMARY KEY, body text)")
            db.execute(f"INSERT INTO {table} (body) VALUES ('a'), ('b')")
        yield database, db
    database.drop()


@pytest.fixture
def other_jobs(other18):
    with other18.connect() as connection:
        yield Jobs(other18, connection)


def missing(db, table):
    return db.execute(f"SELECT count(*) FROM {table} WHERE v IS NULL").fetchone()[0]


def slots(db):
    query = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database() AND NOT temporary"
    return {row[0] for row in db.execute(query).fetchall()}


def test_daemons_over_two_control_databases_follow_one_target_side_by_side(jobs, other_jobs, target18):
    target, db = target18
    with jobs.daemon() as one, other_jobs.daemon() as two:
        first, second = jobs.add("t", db_connection=target.url), other_jobs.add("t2", db_connection=target.url)
        assert first == second == 1
        jobs.until(first, "init_finished_at")
        other_jobs.until(second, "init_finished_at")
        assert len(slots(db)) == 2
        assert one.stop() == 0  # and started again, it lets the other's pipelines be
        with jobs.daemon() as again:
            again.wait_for("job_engine_started")
            for table in ("t", "t2"):
                db.execute(f"INSERT INTO {table} (body) VALUES ('new')")
                eventually(lambda table=table: missing(db, table) == 0, why=two.log[-3000:] + again.log[-3000:])
            jobs.set(first, canceled_at="now()")
            eventually(lambda: len(slots(db)) == 1, why=again.log[-3000:])
            db.execute("INSERT INTO t2 (body) VALUES ('newer')")
            eventually(lambda: missing(db, "t2") == 0, why=two.log[-3000:])
            assert (again.stop(), two.stop()) == (0, 0)


def test_a_standby_reaches_the_control_database_by_another_name(jobs):
    jobs.texts("articles", 1)
    with jobs.daemon() as one:
        id = jobs.add()
        jobs.until(id, "init_finished_at")
        (slot,) = slots(jobs.db)
        other = jobs.database.url.replace("127.0.0.1", "localhost").replace("postgresql://", "postgres://")
        with Daemon(other, "--embedding-table", "embedding_generation_jobs") as two:
            two.wait_for("slot_standby")
            assert one.stop() == 0
            jobs.db.execute("INSERT INTO articles (body) VALUES ('new')")
            eventually(lambda: jobs.missing() == 0, why=two.log[-3000:])
            assert slots(jobs.db) == {slot}
            assert jobs.row(id)["init_failed_at"] is None
            assert two.stop() == 0


def test_of_two_control_databases_that_would_write_one_column_the_later_is_refused_and_told_of_the_other(
    jobs, other_jobs, target18
):
    target, db = target18
    with jobs.daemon() as one, other_jobs.daemon() as two:
        first = jobs.add("t", db_connection=target.url)
        jobs.until(first, "init_finished_at")
        second = other_jobs.add("t", db_connection=target.url)
        reason = other_jobs.until(second, "init_failed_at")["init_failure_reason"]
        assert f"is written by job public.embedding_generation_jobs/1 of database {jobs.database.name}" in reason
        (slot,) = slots(db)
        assert f"pg_drop_replication_slot('{slot}')" in reason
        db.execute("INSERT INTO t (body) VALUES ('new')")
        eventually(lambda: missing(db, "t") == 0, why=one.log[-3000:])
        assert one.stop() == 0  # for good: what the sentence says mends it
        for statement in reason[reason.index("SELECT pg_drop") :].split(";")[:2]:
            db.execute(statement)
        eventually(lambda: other_jobs.row(second)["init_finished_at"], why=two.log[-3000:])
        assert two.stop() == 0


def test_a_job_of_one_database_is_not_taken_for_that_of_another_with_the_same_id(database18, other18):
    arguments = ("--target-db", database18.url, other18.url, "--embeddings")
    with database18.connect() as here, other18.connect() as there:
        for db in (here, there):
            db.execute("CREATE TABLE t (id serial PRIMARY KEY, body text); INSERT INTO t (body) VALUES ('a')")
        with Daemon("", *arguments) as daemon:
            for db in (here, there):
                there_is = "SELECT to_regclass('walvec.embedding_generation_jobs')"
                eventually(lambda db=db, ask=there_is: db.execute(ask).fetchone()[0], why=daemon.log)
                assert db.execute(OWN_JOB).fetchone() == (1,)
                eventually(lambda db=db: done(db), why=daemon.log[-3000:])
            assert daemon.stop() == 0
        there.execute("DELETE FROM walvec.embedding_generation_jobs")
        there.execute(OWN_JOB)
        with Daemon("", *arguments) as daemon:
            eventually(lambda: done(there), why=daemon.log[-3000:])
            assert not any(event["event"] == "job_failed" for event in daemon.events), daemon.log
            assert daemon.stop() == 0


def done(db):
    query = "SELECT bool_and(init_finished_at IS NOT NULL) FROM walvec.embedding_generation_jobs"
    return db.execute(query).fetchone()[0]
