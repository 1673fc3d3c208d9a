"""The whole way over the other wires: HTTP instead of gRPC, token ids instead of texts, and the ensemble of both."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from cdc.testing.consumer import Consumer
from cdc.testing.triton import TritonServer
from inference.minilm import MAX_TOKENS, TOKENIZER_FILE
from inference.repository.checks import in_process

MODEL = "all-minilm-l6-v2"
IDS = {"WALVEC_TOKENIZER": str(TOKENIZER_FILE), "WALVEC_MAX_TOKENS": str(MAX_TOKENS)}
pytestmark = [pytest.mark.xdist_group("triton"), pytest.mark.slow]


@pytest.fixture(scope="module")
def parts(ensemble) -> Iterator[TritonServer]:
    """A server of the production layout: the ensemble, and the network of token ids behind it."""
    with TritonServer(ensemble) as server:
        server.start()
        yield server


def keeps_in_step(pg18, url: str, model: str, **settings: str) -> None:
    """Backfill and stream through ``model``; every stored vector is that of the model in process."""
    database = pg18.create_database("triton")
    with database.connect() as db:
        db.execute("CREATE TABLE articles (id int PRIMARY KEY, body text)")
        db.execute("CREATE PUBLICATION walvec FOR TABLE articles")
        db.execute(
            "INSERT INTO articles SELECT i, 'article ' || i || repeat(' about the sea', i % 9) "
            "FROM generate_series(1, 60) i"
        )
        given = {"WALVEC_RUNTIME": "triton", "WALVEC_TRITON_URL": url, "WALVEC_MODEL": model, **settings}
        with Consumer(database.url, **given) as consumer:
            consumer.sync(40)
            db.execute("UPDATE articles SET body = 'Größe 東京 🙂' WHERE id = 1")
            db.execute("DELETE FROM articles WHERE id = 2")
            db.execute("INSERT INTO articles VALUES (100, repeat('longer than the model reads ', 300))")
            consumer.sync(40)
            (found,) = consumer.verify()
            assert (found["missing"], found["stale"], found["orphaned"], found["duplicate"]) == (0, 0, 0, 0)
        rows = db.execute(
            "SELECT a.body, e.embedding::real[] FROM articles a JOIN articles_embeddings e USING (id)"
        ).fetchall()
    database.drop()
    assert len(rows) == 60
    texts, vectors = [body for body, _ in rows], np.array([vector for _, vector in rows], np.float32)
    assert np.abs(vectors - asyncio.run(in_process(texts))).max() <= 1e-6


def test_texts_over_http(pg18, triton):
    keeps_in_step(pg18, triton.http_url, MODEL)


@pytest.mark.triton
@pytest.mark.parametrize("wire", ["url", "http_url"])
def test_token_ids(pg18, parts, wire):
    keeps_in_step(pg18, getattr(parts, wire), f"{MODEL}-network", **IDS)


@pytest.mark.triton
@pytest.mark.parametrize("wire", ["url", "http_url"])
def test_the_ensemble(pg18, parts, wire):
    keeps_in_step(pg18, getattr(parts, wire), MODEL)


@pytest.mark.triton
def test_a_dead_server_among_several_costs_nothing(pg18, triton, parts):
    keeps_in_step(pg18, f"grpc://127.0.0.1:1,{triton.url},{parts.url}", MODEL)
