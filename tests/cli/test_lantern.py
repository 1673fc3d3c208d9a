"""`walvec create-embeddings`: Lantern's flags, on real databases."""

import asyncio
import json
import os
import subprocess
import sys
from contextlib import AsyncExitStack

import numpy as np
import psycopg
import pytest

from cdc import config
from cdc.errors import ConfigError, Unavailable
from cdc.flow.disposition import Failure
from cdc.ports import EmbedFailed
from cdc.postgres import one_off_plan
from cdc.postgres.one_off import OneOffTable, open_sessions
from cdc.postgres.one_off_plan import Asked
from cdc.rows import Table, key_cells
from cdc.services.gate import ModelGate
from cdc.services.one_off import OneOff
from cdc.telemetry.metrics import Metrics
from cdc.testing.cluster import Cluster
from cdc.testing.twins import DIMENSION, ScriptedModel
from inference.hashing import hash_vectors
from inference.testing_api import FakeApi

BOOKS = ("-m", "hash-8", "--runtime", "hash", "-t", "books", "-c", "title", "--out-column", "vec")


@pytest.fixture
def books(db):
    """A table of 3,000 books; every tenth has no title."""
    db.execute("CREATE TABLE books (id int PRIMARY KEY, title text)")
    db.execute(
        "INSERT INTO books SELECT n, CASE WHEN n % 10 <> 0 THEN 'book ' || n END FROM generate_series(1, 3000) n"
    )
    return db


def vector(text, dimension=8):
    return hash_vectors([text], dimension)[0]


def numbers(value):
    return np.array(json.loads(value) if isinstance(value, str) else value, np.float32)


def test_a_table_is_embedded_with_nothing_made_beside_the_column(walvec, books, database):
    code, out, err = walvec(
        "create-embeddings", "-u", database.url, *BOOKS, "--create-column", "--column-type", "real[]"
    )
    assert (code, err) == (0, ""), err
    assert out.startswith("2,700 rows written to public.books.vec (real[]) by hash-8")
    rows = books.execute("SELECT title, vec FROM books").fetchall()
    assert all((vec is None) == (title is None) for title, vec in rows)
    assert all(np.allclose(vec, vector(title), atol=1e-6) for title, vec in rows if title)
    made = books.execute(
        "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname = 'walvec'), (SELECT count(*) FROM pg_publication),"
        " (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()),"
        " (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal)"
    ).fetchone()
    assert made == (0, 0, 0, 0)


def test_it_needs_no_logical_wal():
    with Cluster.create("18", settings={"wal_level": "minimal", "max_wal_senders": "0"}) as cluster:
        url = cluster.start().url("postgres")
        with psycopg.connect(url, autocommit=True) as db:
            db.execute("CREATE TABLE books (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), title text)")
            db.execute("INSERT INTO books (title) VALUES ('one'), ('two')")
            done = spawn("create-embeddings", "-u", url, *BOOKS, "--create-column")
            assert done.returncode == 0, done.stderr
            assert db.execute("SELECT count(vec) FROM books").fetchone() == (2,)


def spawn(*words, **environ):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WALVEC_")}
    command = [sys.executable, "-m", "cdc.cli", *words]
    return subprocess.run(command, env={**kept, **environ}, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("type", ["vector(8)", "halfvec(8)", "double precision[]"])
def test_columns_of_any_type_that_holds_vectors(walvec, database18, type):
    with database18.connect() as db:
        db.execute("CREATE SCHEMA ext; CREATE EXTENSION vector SCHEMA ext")
        db.execute(f"SET search_path = public, ext; CREATE TABLE books (id bigint PRIMARY KEY, title text, vec {type})")
        db.execute("INSERT INTO books VALUES (1, 'a'), (2, 'b')")
        code, _, err = walvec("create-embeddings", "-u", database18.url, *BOOKS)
        assert code == 0, err
        stored = db.execute("SELECT vec::text FROM books ORDER BY id").fetchall()
    assert np.allclose(numbers(stored[1][0].replace("{", "[").replace("}", "]")), vector("b"), atol=1e-3)


def test_a_column_that_is_made_is_a_vector_where_pgvector_is(walvec, database18):
    with database18.connect() as db:
        db.execute("CREATE EXTENSION vector; CREATE TABLE books (id int PRIMARY KEY, title text)")
        db.execute("INSERT INTO books VALUES (1, 'a')")
        assert walvec("create-embeddings", "-u", database18.url, *BOOKS, "--create-column")[0] == 0
        assert db.execute("SELECT vec::text, pg_typeof(vec)::text FROM books").fetchone()[1] == "vector"


def test_what_is_there_is_left_and_a_second_run_finishes(walvec, books, database):
    books.execute("ALTER TABLE books ADD COLUMN vec real[]")
    books.execute("UPDATE books SET vec = '{7}' WHERE id <= 5")
    command = ("create-embeddings", "-u", database.url, *BOOKS)
    assert walvec(*command, "-l", "100")[1].startswith("100 rows")
    assert books.execute("SELECT count(vec), min(vec) FROM books WHERE id <= 5").fetchone() == (5, [7.0])
    assert books.execute("SELECT count(*) FROM books WHERE vec IS NOT NULL").fetchone() == (105,)
    assert walvec(*command)[1].startswith("2,595 rows")
    assert walvec(*command)[1].startswith("0 rows")
    assert walvec(*command, "--all", "-f", "id = 1")[1].startswith("1 rows")
    assert len(books.execute("SELECT vec FROM books WHERE id = 1").fetchone()[0]) == 8


def test_a_filter_is_sql_and_sees_the_users_schemas(walvec, books, database):
    books.execute("CREATE FUNCTION odd(int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1 % 2 = 1'")
    command = ("create-embeddings", "-u", database.url, *BOOKS, "--create-column")
    assert walvec(*command, "-f", "odd(id) AND title LIKE '%9%' -- braces {too}")[0] == 0
    expected = books.execute(
        "SELECT array_agg(id ORDER BY id) FROM books WHERE odd(id) AND title LIKE '%9%'"
    ).fetchone()
    assert books.execute("SELECT array_agg(id ORDER BY id) FROM books WHERE vec IS NOT NULL").fetchone() == expected
    code, _, err = walvec(*command, "-f", "nosuch > 1")
    assert code == 2 and "--filter" in err and "nosuch" in err and err.count("\n") == 1


def test_another_table_and_a_key_of_two_columns(walvec, db, database):
    db.execute('CREATE TABLE src (a int, "B c" text, title text, PRIMARY KEY (a, "B c"))')
    db.execute('CREATE TABLE dst (a int, "B c" text, vec real[], PRIMARY KEY ("B c", a))')
    db.execute("INSERT INTO src VALUES (1, 'x:y', 'one'), (1, '\"{,', 'two'), (2, '', 'three'), (3, 'z', 'nowhere')")
    db.execute('INSERT INTO dst SELECT a, "B c" FROM src WHERE a < 3')
    words = (
        "-m",
        "hash-8",
        "--runtime",
        "hash",
        "-t",
        "src",
        "-c",
        "title",
        "--out-table",
        "dst",
        "--out-column",
        "vec",
    )
    code, out, err = walvec("create-embeddings", "-u", database.url, *words)
    assert code == 0 and out.startswith("3 rows"), err
    found = db.execute('SELECT title, vec FROM src JOIN dst USING (a, "B c")').fetchall()
    assert len(found) == 3 and all(np.allclose(vec, vector(title), atol=1e-6) for title, vec in found)


def test_results_into_a_file(walvec, books, database, tmp_path):
    words = ("-m", "hash-8", "--runtime", "hash", "-t", "books", "-c", "title", "-o", str(tmp_path / "out.csv"))
    code, _, err = walvec("create-embeddings", "-u", database.url, *words, "-l", "3", "--pk", "id")
    assert code == 0, err
    header, *lines = (tmp_path / "out.csv").read_text().splitlines()
    assert header == "id,title" and len(lines) == 3
    key, _, value = lines[1].partition(",")
    assert key == "2"
    assert np.allclose(numbers(value.strip('"').replace("{", "[").replace("}", "]")), vector("book 2"), atol=1e-6)
    assert books.execute("SELECT count(*) FROM pg_attribute WHERE attname = 'vec'").fetchone() == (0,)


async def test_answers_are_cast_and_those_that_are_none_are_kept(database18):
    with database18.connect() as db:
        db.execute("CREATE TABLE books (id text PRIMARY KEY, title text)")
        db.execute("INSERT INTO books SELECT 'b:' || n, n::text FROM generate_series(1, 30) n")
        async with FakeApi(answers=lambda text: "no number" if text in ("7", "23") else text * 2) as api:
            done = await asyncio.to_thread(
                spawn, "create-embeddings", "-u", database18.url, "-m", "gpt-4o-mini", "-t", "books", "-c", "title",
                "--out-column", "twice", "--job-type", "completion", "--column-type", "INT", "--create-column",
                "--create-cast-fn", "--check-column-type", "--stream", "--failed-rows-table", "failed", "--job-id", "9",
                "--runtime-params", json.dumps({"base_url": api.url, "system_prompt": "Twice."}),
            )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert "2 rows were refused; they are in public.failed" in done.stderr
        assert db.execute("SELECT count(*), sum(twice) FROM books WHERE twice IS NOT NULL").fetchone()[0] == 28
        assert db.execute("SELECT job_id, row_id, value FROM failed ORDER BY row_id").fetchall() == [
            (9, "b:23", "no number"),
            (9, "b:7", "no number"),
        ]


async def test_one_text_that_the_model_refuses_costs_no_other(database18):
    with database18.connect() as db:
        db.execute("CREATE TABLE books (id int PRIMARY KEY, title text)")
        db.execute("INSERT INTO books SELECT n, 'book ' || n FROM generate_series(1, 50) n")
        async with FakeApi(dimension=8, refuses=lambda text: text == "book 13") as api:
            done = await asyncio.to_thread(
                spawn, "create-embeddings", "-u", database18.url, "-m", "m", "--runtime", "openai", "-t", "books",
                "-c", "title", "--out-column", "vec", "--create-column", "--failed-rows-table", "failed",
                "--runtime-params", json.dumps({"base_url": api.url}),
            )  # fmt: skip
        assert done.returncode == 1 and "1 rows were refused" in done.stderr, done.stderr
        assert db.execute("SELECT array_agg(id) FROM books WHERE vec IS NULL").fetchone() == ([13],)
        assert db.execute("SELECT row_id FROM failed").fetchall() == [("13",)]
        assert "book 13" not in done.stdout + done.stderr


async def test_a_row_that_changes_at_the_model_gets_the_vector_of_its_new_text(database):
    """The guard of the write, and the second reading: whoever drops either finds the old text's vector."""
    with database.connect() as db:
        db.execute("CREATE TABLE books (id int PRIMARY KEY, title text, vec real[])")
        db.execute("INSERT INTO books SELECT n, 'a' FROM generate_series(1, 6) n")

        def meanwhile(texts):
            if len(model.batches) == 1:
                db.execute("UPDATE books SET title = 'bbb' WHERE id = 2")
                db.execute("UPDATE books SET title = NULL WHERE id = 3")
                db.execute("DELETE FROM books WHERE id = 4")

        model = ScriptedModel(fails=meanwhile)
        outcome = await embed(database, model)
        assert outcome.written == 4 and not outcome.refused
        rows = dict(db.execute("SELECT id, vec FROM books").fetchall())
    assert rows == {1: [1, 1, 0, 1], 2: [3, 0, 3, 1], 3: None, 5: [1, 1, 0, 1], 6: [1, 1, 0, 1]}


async def embed(database, model, **options):
    settings = config.load({"WALVEC_DATABASE_URL": database.dsn()})
    asked = Asked(Table("public", "books"), "title", Table("public", "books"), "vec")
    async with AsyncExitStack() as stack:
        reader, writer = await open_sessions(stack, settings)
        found = await one_off_plan.look(writer, asked)
        plan = await one_off_plan.settle(writer, asked, found, DIMENSION)
        table, gate = OneOffTable(reader, writer, plan), ModelGate(model, 2, Metrics())
        stack.push_async_callback(gate.close)
        return await OneOff(table, table, gate, inflight=2, max_attempts=3, **options).run()


async def test_pages_are_bounded_in_bytes_and_lose_no_row(database18):
    with database18.connect() as db:
        db.execute("CREATE TABLE books (id int PRIMARY KEY, title text, vec real[])")
        db.execute("INSERT INTO books SELECT n, repeat('x', 1 + n % 7 * 1000) FROM generate_series(1, 200) n")
        pages = await all_pages(database18, rows=50, text_bytes=10_000)
    assert [key for page in pages for key in page] == list(range(1, 201))
    assert max(map(len, pages)) < 50  # the bytes are what bounds them


async def all_pages(database, rows, text_bytes):
    settings = config.load({"WALVEC_DATABASE_URL": database.dsn()})
    asked = Asked(Table("public", "books"), "title", Table("public", "books"), "vec")
    async with AsyncExitStack() as stack:
        reader, writer = await open_sessions(stack, settings)
        found = await one_off_plan.look(writer, asked)
        table = OneOffTable(reader, writer, await one_off_plan.settle(writer, asked, found, DIMENSION))
        pages, after = [], None
        while page := await table.page(after, rows, text_bytes):
            assert sum(len(item.text) for item in page[:-1]) <= text_bytes
            pages.append([int(key_cells(item.key)[0]) for item in page])
            after = page[-1].key
        return pages


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-t", "nosuch"], "There is no table public.nosuch."),
        (["-c", "nosuch"], "has no column nosuch. It has id, title"),
        (["--pk", "title"], "no unique index on (title)"),
        (["--out-column", "vec"], "Give --create-column"),
        (["--out-column", "id"], "is read, so it is not written"),
        (["--out-column", "wrong"], "holds no vectors"),
        (["--runtime", "nosuch"], "There is no runtime 'nosuch'"),
        (["--runtime-params", "{'x'}"], "--runtime-params is no JSON object"),
        (["--runtime-params", '{"dimension": 3}'], "has no parameter 'dimension'"),
        (["--job-type", "poetry"], "Use embedding-generation or completion."),
        (["--create-column", "--column-type", "int", "--out-column", "new"], "holds no vectors"),
    ],
)
def test_refusals_are_one_sentence_and_come_before_anything_is_made(walvec, database18, words, says):
    with database18.connect() as db:
        db.execute("CREATE TABLE books (id int PRIMARY KEY, title text, wrong int); INSERT INTO books VALUES (1, 'a')")
        code, out, err = walvec("create-embeddings", "-u", database18.url, *BOOKS, *words)
        assert code == 2 and says in err and err.count("\n") == 1 and not out
        assert db.execute(
            "SELECT count(*) FROM pg_attribute WHERE attrelid = 'books'::regclass AND attnum > 0"
        ).fetchone() == (3,)


def test_the_model_that_comes_along(walvec, database18):
    with database18.connect() as db:
        db.execute("CREATE EXTENSION vector; CREATE TABLE books (id int PRIMARY KEY, title text)")
        db.execute("INSERT INTO books VALUES (1, 'A dog in the garden'), (2, 'Puppies outdoors'), (3, 'Tax law')")
        code, out, err = walvec(
            "create-embeddings", "-u", database18.url, "-m", "microsoft/all-MiniLM-L12-v2", "-t", "books",
            "-c", "title", "--out-column", "vec", "--create-column", "--data-path", "/nowhere", "--visual",
        )  # fmt: skip
        assert code == 0 and "vector(384)" in out, err
        assert "daemon" not in err and "run it again with --all" in err, err
        assert "stands in for microsoft/all-MiniLM-L12-v2" in err and "no folder" in err and "--visual changes" in err
        near = db.execute("SELECT id FROM books WHERE id > 1 ORDER BY vec <=> (SELECT vec FROM books WHERE id = 1)")
        assert near.fetchall() == [(2,), (3,)]


@pytest.mark.parametrize("command", ["pq-table", "start-server", "start-indexing-server"])
def test_what_is_not_provided_says_what_to_use(walvec, command):
    code, out, err = walvec(command, "--uri", "postgresql://x", "-t", "t", "--help")
    assert code == 2 and not out and err.count("\n") == 1
    assert {"pq-table": "halfvec", "start-server": "/v1/search", "start-indexing-server": "job"}[command] in err


def test_a_model_that_is_away_is_one_sentence(walvec, database18):
    with database18.connect() as db:
        db.execute("CREATE TABLE books (id int PRIMARY KEY, title text); INSERT INTO books VALUES (1, 'a')")
        code, out, err = walvec(
            "create-embeddings", "-u", database18.url, "-m", "m", "--runtime", "openai", "-t", "books", "-c", "title",
            "--out-column", "vec", "--create-column", "--runtime-params", '{"base_url": "http://127.0.0.1:9"}',
        )  # fmt: skip
        assert code == 2 and "does not answer" in err and err.count("\n") == 1 and not out
        assert db.execute("SELECT count(*) FROM pg_attribute WHERE attname = 'vec'").fetchone() == (0,)


def test_a_refusal_speaks_of_flags_and_not_of_jobs(walvec, database18):
    with database18.connect() as db:
        db.execute("CREATE TABLE books (id int PRIMARY KEY, title text)")
        words = ("create-embeddings", "-u", database18.url, "-t", "books", "-c", "title", "--out-column", "vec", "-m")
        for more in (
            ["clip/ViT-B-32-visual", "--runtime", "ort"],
            ["m", "--runtime", "triton"],
            ["m", "--runtime", "x"],
        ):
            code, _, err = walvec(*words, *more)
            assert code == 2 and "job" not in err and "--runtime" in err, err


async def test_a_run_that_ended_in_the_middle_goes_on_where_it_stood(database18):
    with database18.connect() as db:
        db.execute("CREATE TABLE books (id int PRIMARY KEY, title text, vec real[])")
        db.execute("INSERT INTO books SELECT n, 'a' FROM generate_series(1, 100) n")

        def later(texts):
            if len(first.batches) > 5:
                return EmbedFailed(Failure.MISCONFIGURED, "key", "The key has expired.")
            return None

        first = ScriptedModel(fails=later)
        with pytest.raises(ConfigError, match="The key has expired"):
            await embed(database18, first)
        (done,) = db.execute("SELECT count(vec) FROM books").fetchone()
        assert 0 < done <= 20
        second = ScriptedModel()
        assert (await embed(database18, second)).written == 100 - done
        assert sum(map(len, second.batches)) == 100 - done
        assert db.execute("SELECT count(vec) FROM books").fetchone() == (100,)


async def test_a_server_that_goes_away_in_the_middle_is_one_sentence(database18):
    with database18.connect() as db:
        db.execute("CREATE TABLE books (id int PRIMARY KEY, title text, vec real[])")
        db.execute("INSERT INTO books SELECT n, 'a' FROM generate_series(1, 100) n")

        def away(texts):
            db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name LIKE '%/create-embeddings' AND datname = current_database()"
            )

        with pytest.raises(Unavailable, match=r"A further run goes on where this one stood\.$"):
            await embed(database18, ScriptedModel(fails=away))
        assert (await embed(database18, ScriptedModel())).written == 100
