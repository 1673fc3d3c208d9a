"""External indexes through the daemon: under which names they are searched, and what status, metrics and sync say."""

import json
import time

import psycopg
import pytest

from cdc.testing.daemon import Daemon
from tests.jobs.conftest import EMBEDDING_TABLE, INDEX_TABLE, eventually
from tests.jobs.test_databases import ask
from tests.jobs.test_other_kinds import add_index, finished, row

TABLES = ["--embedding-table", "embedding_generation_jobs", "--external-index-table", "external_index_jobs"]


@pytest.fixture
def db(database18):
    with database18.connect() as connection:
        connection.execute(EMBEDDING_TABLE)
        connection.execute(INDEX_TABLE)
        connection.execute('CREATE TABLE points (id int PRIMARY KEY, v real[], "a/b" real[])')
        connection.execute("INSERT INTO points SELECT i, ARRAY[i, 1], ARRAY[i, 2] FROM generate_series(1, 300) AS i")
        yield connection


@pytest.fixture
def one(db, database18, tmp_path):
    folder = str(tmp_path / "indexes")
    with Daemon(database18.url, *TABLES, WALVEC_HTTP="127.0.0.1:0", WALVEC_INDEX_DIR=folder) as running:
        yield running


def port_of(daemon):
    return daemon.wait_for("http_listening")["address"].rpartition(":")[2]


def search(port, name):
    code, answer = ask(port, "/v1/search", {"pipeline": name, "vector": [7, 1], "k": 1})
    return code, json.loads(answer)


def place(database):
    with psycopg.connect(database.url) as connection:
        return f"{connection.info.host}:{connection.info.port}/{connection.info.dbname}"


def test_every_documented_name_of_an_index_is_searched(db, database18, one):
    port, here = port_of(one), place(database18)
    first = add_index(db, database18)
    second = add_index(db, database18, index="x/y")
    third = add_index(db, database18, column="a/b")
    for id in (first, second, third):
        finished(db, "external_index_jobs", id, lambda: one.log)
    job = "public.external_index_jobs"
    for name in (f"{job}/{first}", f"{here}/{job}/{first}", "x/y", "public.points.a/b", f"{here}/public.points.a/b"):
        code, answer = search(port, name)
        assert code == 200, (name, answer)
        assert answer["results"][0]["key"] == {"id": 7}
    code, answer = search(port, "public.points.v")
    assert code == 400
    assert f"Name the job: {job}/{first}, {job}/{second}." in answer["error"]
    code, answer = search(port, "public.points.nothing")
    assert code == 404
    assert f"{job}/{first}" in answer["error"]


def test_a_table_that_two_databases_have_is_searched_by_its_place(db, database18, one):
    port, here = port_of(one), place(database18)
    other = here.rpartition("/")[0] + "/second_of_" + here.rpartition("/")[2]
    name = other.rpartition("/")[2]
    url = psycopg.conninfo.make_conninfo(database18.url, dbname=name)
    db.execute(f'CREATE DATABASE "{name}"')
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE points (id int PRIMARY KEY, v real[])")
            connection.execute("INSERT INTO points VALUES (70, ARRAY[7, 1])")
        ids = [add_index(db, database18), add_index(db, database18, db_connection=url)]
        for id in ids:
            finished(db, "external_index_jobs", id, lambda: one.log)
        assert search(port, f"{here}/public.points.v")[1]["results"][0]["key"] == {"id": 7}
        assert search(port, f"{other}/public.points.v")[1]["results"][0]["key"] == {"id": 70}
        assert search(port, "public.points.v")[0] == 400
        db.execute("UPDATE external_index_jobs SET canceled_at = now()")
        slots = "SELECT FROM pg_replication_slots WHERE slot_name LIKE 'walvec_index_%%' AND database = %s"
        eventually(lambda: not db.execute(slots, [name]).fetchall(), 20, one.log)
    finally:
        one.stop()
        db.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def status_of(port):
    return {one["knowledge_base"]: one for one in json.loads(ask(port, "/status")[1])}


def test_sync_status_and_metrics_know_of_indexes(db, database18, one):
    port = port_of(one)
    id = add_index(db, database18)
    finished(db, "external_index_jobs", id, lambda: one.log)
    name = f"{place(database18)}/public.points.v:external_index/{id}"
    db.execute("INSERT INTO points (id, v) SELECT i, ARRAY[i, 1] FROM generate_series(1001, 9000) AS i")
    code, answer = ask(port, "/v1/sync", {"timeout_s": 60})
    assert (code, json.loads(answer)) == (200, {"synced": True})
    found = ask(port, "/v1/search", {"pipeline": "public.points.v", "vector": [9000, 1], "k": 1})[1]
    assert json.loads(found)["results"][0]["key"] == {"id": 9000}
    shown = eventually(lambda: (s := status_of(port)[name])["embeddings"] == 8300 and s, 5)
    assert shown["status"] == "ready"
    assert shown["source_records"] == 8300
    assert (shown["unprocessed_rows"], shown["lag_seconds"]) == (0, 0.0)
    metrics = ask(port, "/metrics")[1]
    assert f'walvec_embeddings{{pipeline="{name}"}} 8300.0' in metrics
    assert f'walvec_changes_total{{op="insert",pipeline="{name}"}} 8000.0' in metrics
    assert f'walvec_rows_embedded_total{{pipeline="{name}"}} 8000.0' in metrics
    assert f'walvec_commit_to_visible_seconds_count{{pipeline="{name}"}} 8000.0' in metrics


def test_sync_waits_for_an_index_that_is_being_built(db, database18, one):
    port = port_of(one)
    one.wait_for("job_feed_streaming")
    db.execute("INSERT INTO points (id, v) SELECT i, ARRAY[i % 971, i] FROM generate_series(1001, 20000) AS i")
    id = add_index(db, database18)
    eventually(lambda: row(db, "external_index_jobs", id)["started_at"])
    code, answer = ask(port, "/v1/sync", {"timeout_s": 60})
    assert (code, json.loads(answer)) == (200, {"synced": True})
    assert search(port, "public.points.v")[0] == 200


def test_an_edited_row_leaves_no_search_without_an_answer(db, database18, one):
    port = port_of(one)
    id = add_index(db, database18)
    finished(db, "external_index_jobs", id, lambda: one.log)
    for change in ("ef = 65", "m = 12"):
        db.execute(f"UPDATE external_index_jobs SET {change}")
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            assert search(port, "public.points.v")[0] == 200
        said = {event["event"] for event in one.events}
        assert "external_index_opened" not in said
        assert ("external_index_refused" in said) == (change == "m = 12")  # what was saved is of no use for that
    db.execute("INSERT INTO points VALUES (5000, ARRAY[5000, 1])")
    asked = {"pipeline": "public.points.v", "vector": [5000, 1], "k": 1}
    eventually(lambda: '"id":5000' in ask(port, "/v1/search", asked)[1].replace(" ", ""), 10, one.log)
