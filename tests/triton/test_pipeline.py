"""The whole way with the real model: PostgreSQL, `walvec run`, a real Triton, and what happens to it."""

import asyncio
import time
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from cdc.testing.consumer import Consumer
from cdc.testing.triton import TritonServer
from inference.repository.checks import in_process

MODEL = "all-minilm-l6-v2"
pytestmark = [pytest.mark.xdist_group("triton"), pytest.mark.slow]

ROWS = """
INSERT INTO articles (body)
SELECT 'article ' || i || ' ' || repeat('about the weather and the sea ', 1 + i % 7) FROM generate_series(1, {rows}) i
"""


@pytest.fixture(scope="module")
def scene(pg18, shared_triton: TritonServer) -> Iterator[SimpleNamespace]:
    """A table with 200 rows, and a consumer that embeds it through the real server."""
    shared_triton.start()
    database = pg18.create_database("triton")
    with database.connect() as db:
        db.execute("CREATE TABLE articles (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text)")
        db.execute("CREATE PUBLICATION walvec FOR TABLE articles")
        db.execute(ROWS.format(rows=200))
        settings = {
            "WALVEC_RUNTIME": "triton",
            "WALVEC_TRITON_URL": shared_triton.url,
            "WALVEC_MODEL": MODEL,
            "WALVEC_BATCH_ROWS": "16",
            "WALVEC_REQUEST_TIMEOUT_S": "2",
        }
        with Consumer(database.url, **settings) as consumer:
            consumer.sync(40)  # the backfill: a worker may run any of these tests without the first
            yield SimpleNamespace(db=db, consumer=consumer)
            consumer.stop()
    database.drop()


def one(scene, query):
    return scene.db.execute(query).fetchone()[0]


def write(scene, rows=320):
    """Write rows in one transaction, and return when some of them are embedded and others are not."""
    before = one(scene, "SELECT count(*) FROM articles_embeddings")
    scene.db.execute(ROWS.format(rows=rows))
    deadline = time.monotonic() + 20
    while one(scene, "SELECT count(*) FROM articles_embeddings") < before + 16:
        assert time.monotonic() < deadline, scene.consumer.log[-3000:]
        time.sleep(0.005)
    assert one(scene, "SELECT count(*) FROM articles_embeddings") < before + rows


def converged(scene):
    """See that everything is embedded and nothing was given up."""
    scene.consumer.sync(40)
    (found,) = scene.consumer.verify()
    assert (found["missing"], found["stale"], found["orphaned"], found["duplicate"]) == (0, 0, 0, 0)
    with_text = one(scene, "SELECT count(*) FROM articles WHERE body IS NOT NULL")
    assert with_text == one(scene, "SELECT count(*) FROM articles_embeddings")
    assert scene.db.execute("SELECT * FROM walvec.pipeline_errors").fetchall() == []


def stored(scene):
    rows = scene.db.execute(
        "SELECT a.body, e.embedding::real[] FROM articles a JOIN articles_embeddings e USING (id)"
    ).fetchall()
    return [body for body, _ in rows], np.array([vector for _, vector in rows], np.float32)


def test_backfill_and_stream_store_the_vectors_of_the_model_in_process(scene, triton):
    scene.consumer.sync(40)
    scene.db.execute("UPDATE articles SET body = 'Größe 東京 🙂' WHERE id = 1")
    scene.db.execute("UPDATE articles SET body = NULL WHERE id = 2")
    scene.db.execute("DELETE FROM articles WHERE id = 3")
    scene.db.execute("INSERT INTO articles (body) VALUES (repeat('longer than the model reads ', 300)), ('zip')")
    scene.consumer.sync(40)
    texts, vectors = stored(scene)
    assert len(texts) == 200  # two more, one deleted, one without text
    assert "Größe 東京 🙂" in texts
    assert np.abs(vectors - asyncio.run(in_process(texts))).max() <= 1e-6


def test_killed_in_the_middle_of_a_batch(scene, triton):
    write(scene)
    triton.kill()
    time.sleep(1.0)
    triton.start()
    converged(scene)


@pytest.mark.triton
def test_frozen_for_longer_than_a_request_may_take(scene, triton):
    write(scene)
    triton.freeze()
    time.sleep(3.0)  # more than the deadline of a request
    triton.thaw()
    converged(scene)


@pytest.mark.triton
def test_model_unloaded_and_loaded_again(scene, triton):
    write(scene)
    triton.unload(MODEL)
    scene.db.execute("INSERT INTO articles (body) VALUES ('written while the model was away')")
    time.sleep(1.0)
    assert one(scene, "SELECT count(*) FROM articles") - 1 > one(scene, "SELECT count(*) FROM articles_embeddings")
    triton.load(MODEL)
    converged(scene)


@pytest.mark.triton
def test_model_reloaded_under_load(scene, triton, models):
    write(scene)
    config = models / MODEL / "config.pbtxt"
    config.write_text(config.read_text() + "# touched, so that the server loads it anew\n")
    triton.load(MODEL)
    converged(scene)


@pytest.mark.triton
def test_model_process_killed(scene, triton):
    write(scene)
    triton.kill_models()
    time.sleep(1.0)
    triton.unload(MODEL, wait=False)
    triton.load(MODEL)
    converged(scene)


@pytest.mark.triton
def test_restarted_in_the_middle_of_a_batch(scene, triton):
    write(scene)
    triton.stop()
    triton.start()
    converged(scene)


@pytest.mark.triton
def test_stored_vectors_are_still_those_of_the_model_in_process(scene, triton):
    texts, vectors = stored(scene)
    order = np.random.default_rng(7).permutation(len(texts))[:120]
    assert np.abs(vectors[order] - asyncio.run(in_process([texts[i] for i in order]))).max() <= 1e-6
