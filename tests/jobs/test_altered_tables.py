"""Tables of jobs that are altered while they are served, and what the daemon's role may do with them."""

import re

import psycopg
import pytest
from psycopg import sql

from cdc.config import Settings
from cdc.errors import ConfigError
from cdc.jobs import JobId, JobKind
from cdc.ports.books import BookName
from cdc.postgres.job_books import PostgresBooks
from cdc.postgres.job_usage import Extras
from cdc.rows import Table
from cdc.testing.daemon import Daemon
from tests.jobs.conftest import eventually

TABLE = Table("public", "embedding_generation_jobs")
MINIMAL = """
CREATE TABLE jobs (id serial PRIMARY KEY, db_connection text, "table" text, src_column text, dst_column text,
                   embedding_model text, runtime text)
"""


def books_of(database, url=""):
    return PostgresBooks(
        Settings(database_url=url or database.url), "here", [BookName(JobKind.EMBEDDING, TABLE)], Extras()
    )


async def test_a_column_that_is_dropped_between_two_looks_is_left_out(jobs):
    books = books_of(jobs.database)
    id = jobs.add()
    try:
        await books.read()
        report = books.report(JobId("here", TABLE, id), JobKind.EMBEDDING)
        jobs.db.execute("ALTER TABLE embedding_generation_jobs DROP COLUMN init_progress")
        await report.finished()
        await report.progress(7)
        assert jobs.row(id)["init_finished_at"] is not None
        jobs.db.execute("ALTER TABLE embedding_generation_jobs ADD init_progress int")
        await books.read()
        jobs.set(id, init_finished_at=None)
        await report.finished()
        assert jobs.row(id)["init_progress"] == 100
    finally:
        await books.close()


async def test_a_reason_to_wait_is_written_into_rows_that_never_began(jobs):
    books = books_of(jobs.database)
    id = jobs.add()
    try:
        await books.read()
        report = books.report(JobId("here", TABLE, id), JobKind.EMBEDDING)
        await report.waits("Away.")
        assert (jobs.row(id)["init_failure_reason"], jobs.row(id)["init_failed_at"]) == ("Away.", None)
        await report.started()
        assert jobs.row(id)["init_failure_reason"] is None
        await report.waits("Away.")
        assert jobs.row(id)["init_failure_reason"] is None
    finally:
        await books.close()


def test_columns_that_are_added_and_dropped_are_noticed_while_the_daemon_runs(database18):
    with database18.connect() as db:
        db.execute(MINIMAL)
        db.execute("CREATE TABLE articles (id serial PRIMARY KEY, body text)")
        db.execute("INSERT INTO articles (body) VALUES ('text')")

        def add(column):
            db.execute(
                'INSERT INTO jobs (db_connection, "table", src_column, dst_column, embedding_model, runtime)'
                " VALUES (%s, 'articles', 'body', %s, 'hash-8', 'hash')",
                [database18.url, column],
            )

        def told(column, of="init_finished_at"):
            query = sql.SQL("SELECT {} FROM jobs WHERE dst_column = %s").format(sql.Identifier(of))
            return db.execute(query, [column]).fetchone()[0]

        with Daemon(database18.url, "--embedding-table", "jobs") as daemon:
            daemon.wait_for("job_feed_streaming")
            add("v")
            eventually(lambda: db.execute("SELECT to_jsonb(a) ->> 'v' FROM articles AS a").fetchone()[0])
            db.execute(
                "ALTER TABLE jobs ADD init_finished_at timestamptz, ADD init_progress int, ADD init_failed_at date"
            )
            add("w")
            eventually(lambda: told("w"), why=daemon.log[-3000:])
            assert told("w", "init_progress") == 100
            db.execute("ALTER TABLE jobs DROP COLUMN init_progress")
            add("x")
            eventually(lambda: told("x"), why=daemon.log[-3000:])
            assert told("x", "init_failed_at") is None
            assert daemon.stop() == 0


@pytest.fixture
def reader(jobs):
    name = f"reader_{jobs.database.name}"
    jobs.db.execute(f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD 'hunter2'; ALTER ROLE {name} NOSUPERUSER REPLICATION")
    yield name
    jobs.db.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_a_role_that_may_not_say_how_jobs_fare_is_told_so_at_the_start(jobs, reader):
    url = jobs.database.dsn(user=reader, password="hunter2")
    jobs.db.execute(f"GRANT SELECT ON embedding_generation_jobs TO {reader}")
    with Daemon(url, "--embedding-table", "embedding_generation_jobs") as daemon:
        assert daemon.process.wait(20) == 2
        assert f"GRANT UPDATE ON public.embedding_generation_jobs TO {reader};" in daemon.log
        assert "init_started_at" in daemon.log
    jobs.db.execute(f"GRANT UPDATE (init_started_at) ON embedding_generation_jobs TO {reader}")
    with pytest.raises(ConfigError) as caught:
        await opened(jobs, url)
    assert "init_started_at" not in str(caught.value) and "init_failed_at" in str(caught.value)
    jobs.db.execute(f"REVOKE SELECT ON embedding_generation_jobs FROM {reader}")
    with pytest.raises(ConfigError, match="GRANT SELECT, UPDATE ON"):
        await opened(jobs, url)
    jobs.db.execute(f"GRANT SELECT, UPDATE ON embedding_generation_jobs TO {reader}")
    await opened(jobs, url)


async def opened(jobs, url):
    books = books_of(jobs.database, url)
    try:
        await books.open()
    finally:
        await books.close()


def test_a_table_with_jobs_is_altered_once_it_has_left_their_publication_and_comes_back(jobs):
    jobs.texts("articles", 3)
    with jobs.daemon() as daemon:
        id = jobs.add()
        jobs.until(id, "init_finished_at")
        with pytest.raises(psycopg.Error, match="publication"):
            jobs.db.execute("ALTER TABLE articles ALTER id TYPE bigint")
        published = "SELECT pubname FROM pg_publication_tables WHERE tablename = 'articles'"
        (publication,) = jobs.db.execute(published).fetchone()
        with jobs.db.transaction():
            jobs.db.execute(f"ALTER PUBLICATION {publication} DROP TABLE articles")
            jobs.db.execute("ALTER TABLE articles ALTER id TYPE bigint, ADD subtitle text")
            jobs.db.execute("INSERT INTO articles (body) VALUES ('meanwhile')")
        says = eventually(lambda: (row := jobs.row(id))["init_failed_at"] and row["init_failure_reason"])
        says = eventually(lambda: "_hashes" in (said := jobs.row(id)["init_failure_reason"] or "") and said, why=says)
        jobs.db.execute(
            re.search(r"ALTER TABLE walvec\.\S+ ALTER COLUMN id TYPE bigint;", says)[0]
        )  # the key's other copy
        jobs.db.execute("INSERT INTO articles (body) VALUES ('afterwards')")
        eventually(lambda: jobs.missing() == 0, 30, daemon.log[-3000:])
        eventually(lambda: jobs.row(id)["init_failed_at"] is None)
        assert jobs.db.execute(published).fetchall() == [(publication,)]
        assert daemon.stop() == 0
