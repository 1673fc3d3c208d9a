"""`walvec run` and the tables of jobs in its own control schema: nothing is set up, a row is enough."""

import json
import time
import urllib.request
from typing import Any

import pytest

from cdc.testing.consumer import Consumer
from tests.jobs.conftest import eventually

INSERT = """
INSERT INTO walvec.embedding_generation_jobs ("table", src_column, dst_column, embedding_model, runtime)
VALUES ('notes', 'body', 'v', %s, %s)
"""


@pytest.fixture
def running(database18) -> Any:
    with database18.connect() as db:
        for table in ("articles", "notes"):
            db.execute(f"CREATE TABLE {table} (id serial PRIMARY KEY, body text)")
            db.execute(f"INSERT INTO {table} (body) SELECT 'text ' || i FROM generate_series(1, 20) i")
        db.execute("CREATE PUBLICATION walvec FOR TABLE articles")
        settings = {"WALVEC_RUNTIME": "hash", "WALVEC_MODEL": "hash-16", "WALVEC_HTTP": "127.0.0.1:0"}
        with Consumer(database18.url, **settings) as consumer:
            consumer.sync()
            yield db, consumer, f"http://{consumer.wait_for('http_listening')['address']}"
            code = consumer.process.poll() if consumer.process.poll() is not None else consumer.stop()
            assert code == 0, consumer.log[-3000:]


def test_a_row_in_the_control_schema_is_run_beside_the_publication(running):
    db, consumer, url = running

    def one(query: str) -> Any:
        return db.execute(query).fetchone()[0]

    assert one("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == 1  # no job, no more
    began = time.monotonic()
    db.execute(INSERT, ["hash-8", "hash"])
    eventually(
        lambda: one("SELECT init_started_at FROM walvec.embedding_generation_jobs") is not None, 10, "a job begun"
    )
    print(f"begun {time.monotonic() - began:.3f} s after the INSERT")
    eventually(lambda: one("SELECT count(*) FROM notes WHERE v IS NULL") == 0, 15, "a job done")
    db.execute("UPDATE notes SET body = 'changed' WHERE id = 1")
    db.execute("UPDATE articles SET body = 'changed' WHERE id = 1")
    db.execute("INSERT INTO notes (body) VALUES ('new')")
    assert one("SELECT walvec.wait('20 s')")
    assert one("SELECT count(*) FROM notes WHERE v IS NULL") == 0
    assert one("SELECT count(*) FROM articles_embeddings") == 20
    consumer.sync()
    shown = json.load(urllib.request.urlopen(f"{url}/status"))
    names = [row["knowledge_base"] for row in shown]
    assert names[0] == "public.articles" and len(names) == 2 and names[1].endswith("/public.notes.v")
    metrics = urllib.request.urlopen(f"{url}/metrics").read().decode()
    assert 'walvec_jobs{kind="embedding_generation",state="enabled"} 1.0' in metrics
    assert 'walvec_source_records{pipeline="public.articles"} 20.0' in metrics
    assert any("/public.notes.v" in line and " 21.0" in line for line in metrics.splitlines())


def test_a_job_that_cannot_run_leaves_the_publication_alone(running):
    db, consumer, url = running
    db.execute(INSERT, ["no-such-model", "ort"])
    reason = "SELECT init_failure_reason FROM walvec.embedding_generation_jobs"
    eventually(lambda: db.execute(reason).fetchone()[0] is not None, 15, "a reason")
    db.execute("UPDATE articles SET body = 'changed' WHERE id = 1")
    consumer.sync()
    health = json.load(urllib.request.urlopen(f"{url}/healthz"))
    assert health["status"] == "warn", health
    assert urllib.request.urlopen(f"{url}/readyz").status == 200


def test_status_shows_jobs_and_drop_takes_what_they_use(running):
    db, consumer, _ = running
    db.execute(INSERT, ["hash-8", "hash"])
    done = "SELECT init_finished_at FROM walvec.embedding_generation_jobs"
    eventually(lambda: db.execute(done).fetchone()[0] is not None, 15, "a job done")
    shown = json.loads(consumer.command("status", "--json").stdout)
    assert [(row["knowledge_base"], row["status"]) for row in shown] == [
        ("public.articles", "ready"),
        ("public.notes.v", "ready"),
    ]
    refused = consumer.command("drop", "--yes")
    assert refused.returncode == 2 and "in use by pid" in refused.stderr
    assert consumer.stop() == 0
    shown = json.loads(consumer.command("status", "--json").stdout)
    assert [(row["knowledge_base"], row["status"]) for row in shown] == [
        ("public.articles", "stopped"),
        ("public.notes.v", "waiting"),
    ]
    said = consumer.command("drop", "--yes").stdout
    assert "walvec_jobs_" in said and said.count("frees") == 2
    left = "SELECT (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()),"
    assert db.execute(f"{left} (SELECT count(*) FROM pg_publication)").fetchone() == (0, 0)


def test_an_index_job_runs_where_the_publication_of_the_consumer_is_missing(database18, tmp_path):
    with database18.connect() as db:
        db.execute("CREATE TABLE points (id int PRIMARY KEY, v real[])")
        db.execute("INSERT INTO points SELECT i, ARRAY[i, 1] FROM generate_series(1, 20) AS i")
        settings = {"WALVEC_RUNTIME": "hash", "WALVEC_MODEL": "hash-16", "WALVEC_INDEX_DIR": str(tmp_path / "indexes")}
        with Consumer(database18.url, **settings) as consumer:
            eventually(lambda: db.execute("SELECT to_regclass('walvec.external_index_jobs')").fetchone()[0], 20)
            db.execute(
                'INSERT INTO walvec.external_index_jobs ("table", "column", operator, m, efc, ef)'
                " VALUES ('points', 'v', 'dist_l2sq_ops', 8, 64, 64)"
            )
            asked = "SELECT finished_at FROM walvec.external_index_jobs"
            eventually(lambda: db.execute(asked).fetchone()[0], 20, consumer.log)
            db.execute("UPDATE walvec.external_index_jobs SET canceled_at = now()")
            slots = "SELECT FROM pg_replication_slots WHERE database = current_database() AND slot_name ~ 'index'"
            eventually(lambda: not db.execute(slots).fetchall(), 20, consumer.log)
