"""Databases with tables of jobs of their own, several targets, one HTTP server for all, and what a server withholds."""

import json
import secrets
import time
import urllib.error
import urllib.request

import psycopg

from cdc.testing.cluster import Cluster
from cdc.testing.daemon import Daemon
from tests.jobs.conftest import Jobs, eventually

JOB = (
    'INSERT INTO walvec.embedding_generation_jobs ("table", src_column, dst_column, embedding_model, runtime) '
    "VALUES ('articles', 'body', 'v', 'hash-8', 'hash') RETURNING id"
)


def fill(database):
    with database.connect() as db:
        db.execute("CREATE TABLE articles (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), body text)")
        db.execute("INSERT INTO articles (body) SELECT 'text ' || i FROM generate_series(1, 3) AS i")


def done(db, column="init_finished_at"):
    return db.execute(f"SELECT count(*) FROM walvec.embedding_generation_jobs WHERE {column} IS NULL").fetchone() == (
        0,
    )


def test_target_databases_hold_their_own_jobs_and_one_that_fails_stops_no_other(database18, other18):
    for database in (database18, other18):
        fill(database)
    nowhere = database18.url.replace(database18.name, "no_such_database")
    with Daemon("", "--target-db", database18.url, other18.url, nowhere, "--embeddings", "--label", "x") as daemon:
        for database in (database18, other18):
            with database.connect() as db:
                eventually(lambda db=db: table_there(db), why=daemon.log)
                db.execute(JOB.replace('("table"', '(label, "table"').replace("('articles'", "('x', 'articles'"))
                eventually(lambda db=db: done(db), why=daemon.log)
                assert db.execute("SELECT count(*) FROM articles WHERE v IS NULL").fetchone() == (0,)
        assert any(e["event"] == "database_refused" and "no_such_database" in e["message"] for e in daemon.events)
        assert daemon.stop() == 0


def table_there(db):
    return db.execute("SELECT to_regclass('walvec.embedding_generation_jobs')").fetchone()[0]


def test_what_engines_log_names_their_database_and_none_hides_behind_another(database18, other18):
    model = (
        "('articles', 'body', 'v', 'm', 'openai', '{\"base_url\": \"http://127.0.0.1:9\"}')"  # nothing listens there
    )
    job = JOB.replace("runtime)", "runtime, runtime_params)").replace(
        "('articles', 'body', 'v', 'hash-8', 'hash')", model
    )
    for database in (database18, other18):
        fill(database)
    with Daemon("", "--target-db", database18.url, other18.url, "--embeddings") as daemon:
        for database in (database18, other18):
            with database.connect() as db:
                eventually(lambda db=db: table_there(db), why=daemon.log)
                db.execute(job)
        places = {f"127.0.0.1:{database18.cluster.port}/{one.name}" for one in (database18, other18)}
        for event in ("engine_started", "table_added", "slot_streaming", "model_unavailable"):
            said = eventually(
                lambda event=event: len(found := named(daemon, event)) == 2 and found, 10, daemon.log[-3000:]
            )
            assert said == places, event
        assert daemon.stop() == 0
        assert named(daemon, "engine_stopped") == places
        assert not [e for e in daemon.events if e["event"].startswith(("slot_", "pipeline_")) and not e.get("database")]


def named(daemon, event):
    return {e.get("database") for e in daemon.events if e["event"] == event}


def test_the_registry_of_databases_is_followed(database18, other18):
    fill(other18)
    with database18.connect() as db, other18.connect() as target:
        db.execute("CREATE TABLE daemon_databases (db_uri text)")  # no key: changes must be heard all the same
        with Daemon("", "--master-db", database18.url) as daemon:
            daemon.wait_for("job_feed_streaming")
            db.execute("INSERT INTO daemon_databases VALUES (%s)", [other18.url])
            began = time.monotonic()
            daemon.wait_for("database_added")
            assert time.monotonic() - began < 0.9, "heard, not looked for"
            eventually(lambda: table_there(target), why=daemon.log)
            target.execute(JOB)
            eventually(lambda: done(target), why=daemon.log)
            db.execute("DELETE FROM daemon_databases")
            daemon.wait_for("database_removed")
            assert not target.execute(
                "SELECT FROM pg_replication_slots WHERE slot_name LIKE 'walvec_jobs%' AND database = current_database()"
            ).fetchall()
            target.execute("INSERT INTO articles (body) VALUES ('meanwhile')")
            db.execute("INSERT INTO daemon_databases VALUES (%s)", [other18.url])
            eventually(
                lambda: target.execute("SELECT count(*) FROM articles WHERE v IS NULL").fetchone() == (0,),
                why=daemon.log[-4000:],
            )
            assert daemon.stop() == 0


def test_a_missing_registry_is_an_error_with_exit_status_2(database18):
    with Daemon("", "--master-db", database18.url) as daemon:
        assert daemon.process.wait(20) == 2
        assert "daemon_databases" in daemon.log


def ask(port, path, body=None):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", None if body is None else json.dumps(body).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def test_one_server_tells_of_all_databases_and_searches_and_waits(jobs, other18):
    jobs.texts("articles", 3)
    fill(other18)
    with jobs.daemon(WALVEC_HTTP="127.0.0.1:0") as daemon:
        port = daemon.wait_for("http_listening")["address"].rpartition(":")[2]
        here, there = jobs.add(), jobs.add(db_connection=other18.url, dst_column="w")
        broken = jobs.add("nowhere")
        for id in (here, there):
            jobs.until(id, "init_finished_at")
        jobs.until(broken, "init_failed_at")
        place = f"127.0.0.1:{jobs.database.cluster.port}"
        names = {f"{place}/{jobs.database.name}/public.articles.v", f"{place}/{other18.name}/public.articles.w"}

        def shown():
            listed = {p["knowledge_base"]: p["status"] for p in json.loads(ask(port, "/status")[1])}
            return listed if {listed.get(name) for name in names} == {"ready"} else None

        status = eventually(shown)
        assert status[f"{place}/{jobs.database.name}/public.nowhere.v"] == "error"
        assert ask(port, "/readyz")[0] == 200
        assert ask(port, "/healthz")[0] == 200
        _, metrics = ask(port, "/metrics")
        assert 'walvec_jobs{kind="embedding_generation",state="enabled"} 2.0' in metrics
        assert 'walvec_jobs{kind="embedding_generation",state="failed"} 1.0' in metrics
        assert all(f'walvec_rows_embedded_total{{pipeline="{name}"}} 3.0' in metrics for name in names), metrics
        jobs.db.execute("INSERT INTO articles (body) VALUES ('look for me')")
        assert json.loads(ask(port, "/v1/sync", {"timeout_s": 10})[1]) == {"synced": True}
        code, found = ask(port, "/v1/search", {"pipeline": "public.articles.v", "query": "look for me", "k": 1})
        assert code == 200, found
        assert json.loads(found)["results"][0]["key"] == {"id": 4}
        assert ask(port, "/v1/search", {"pipeline": "no.such", "query": "x"})[0] == 404
        password = jobs.database.cluster._password
        assert password not in metrics + json.dumps(status) + daemon.log + found


def test_a_target_that_is_away_is_waited_for_and_not_failed(jobs):
    with Cluster.create("15") as cluster:
        away = cluster.start().create_database("away")
        fill(away)
        cluster.stop()
        jobs.texts("articles", 1)
        with jobs.daemon() as daemon:
            id, near = jobs.add(db_connection=away.url), jobs.add(dst_column="w")
            jobs.until(near, "init_finished_at")
            daemon.wait_for("job_waits")
            assert jobs.row(id)["init_failed_at"] is None
            cluster.start()
            jobs.until(id, "init_finished_at", 20)
            with away.connect() as db:  # PostgreSQL 15 without pgvector
                assert db.execute("SELECT pg_typeof(v)::text, count(*) FROM articles GROUP BY 1").fetchall() == [
                    ("real[]", 3)
                ]
            assert daemon.stop() == 0


def test_where_the_control_database_has_no_logical_wal_the_tables_are_looked_at_and_the_log_says_so(database18):
    fill(database18)
    with Cluster.create("18", settings={"wal_level": "replica"}) as cluster:
        control = cluster.start().create_database("control")
        with control.connect() as db:
            jobs = Jobs(control, db)
            with jobs.daemon() as daemon:
                told = daemon.wait_for("job_feed_missing")
                assert "wal_level" in told["remedy"]
                id = jobs.add(db_connection=database18.url)
                jobs.until(id, "init_finished_at")


def test_a_role_gets_no_further_than_its_own_rights(jobs):
    jobs.texts("articles", 1)
    jobs.texts("private", 1)
    name = f"weak_{secrets.token_hex(4)}"
    jobs.db.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'weak-secret'; GRANT SELECT ON articles TO {name}")
    weak = psycopg.conninfo.make_conninfo(jobs.database.dsn(), user=name, password="weak-secret")
    jobs.db.execute("ALTER TABLE articles ADD v real[]")
    with jobs.daemon() as daemon:
        strong = jobs.add(dst_column="s")
        jobs.until(strong, "init_finished_at")
        reads, writes = jobs.add("private", db_connection=weak), jobs.add(db_connection=weak)
        adds = jobs.add(db_connection=weak, dst_column="fresh")
        row = jobs.until(reads, "init_failed_at")
        assert "may not read public.private" in row["init_failure_reason"]
        assert f'GRANT SELECT ON "public"."private" TO "{name}";' in row["init_failure_reason"]
        row = jobs.until(writes, "init_failed_at")
        assert "may not write column v" in row["init_failure_reason"]
        assert 'ADD "fresh" real[]' in jobs.until(adds, "init_failed_at")["init_failure_reason"]
        assert "weak-secret" not in daemon.log
        assert daemon.stop() == 0
    jobs.db.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_hosts_that_are_not_listed_are_refused(jobs):
    jobs.texts("articles", 1)
    with jobs.daemon(WALVEC_JOB_HOSTS="db.example"):
        row = jobs.until(jobs.add(), "init_failed_at")
        assert "127.0.0.1" in row["init_failure_reason"]
        assert "WALVEC_JOB_HOSTS" in row["init_failure_reason"]


def test_an_old_server_is_control_and_target(database15):
    with database15.connect() as db:
        jobs = Jobs(database15, db)
        jobs.texts("articles", 2, 'key text DEFAULT gen_random_uuid() || ":"'.replace('"', "'"))
        with jobs.daemon() as daemon:
            daemon.wait_for("job_feed_streaming")
            id = jobs.add()
            jobs.until(id, "init_finished_at")
            db.execute("INSERT INTO articles (body) VALUES ('new')")
            eventually(lambda: jobs.missing() == 0)
            assert daemon.stop() == 0


def test_a_control_database_that_is_away_at_the_start_is_waited_for_and_a_wrong_password_is_not(jobs):
    jobs.texts("articles", 1)
    id = jobs.add()
    wrong = jobs.database.url.replace(jobs.database.cluster._password, "wrong-secret")
    with Daemon(wrong, "--embedding-table", "embedding_generation_jobs") as refused:
        assert refused.process.wait(20) == 2
        assert "password" in refused.log
        assert "wrong-secret" not in refused.log
    jobs.db.close()
    jobs.database.cluster.stop()
    try:
        daemon = jobs.daemon()
        with daemon:
            daemon.wait_for("database_unavailable")
            jobs.database.cluster.start()
            with jobs.database.connect() as again:
                jobs.db = again
                jobs.until(id, "init_finished_at")
                assert daemon.stop() == 0
    finally:
        jobs.database.cluster.start()
