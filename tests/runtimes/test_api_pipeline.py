"""The whole way over a web API: PostgreSQL, `walvec run`, and an API that limits, fails, refuses and goes away."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cdc.testing.consumer import Consumer
from inference.hashing import hash_vectors
from inference.testing_api import Answer, FakeApi

KEY = "sk-secret-0123456789"


@contextmanager
def served(api: FakeApi) -> Iterator[FakeApi]:
    """Serve an API in a thread of its own."""
    ready, end = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with api:
            ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(5)
        yield api
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
        loop.close()


@pytest.mark.parametrize("runtime", ["openai", "cohere"])
def test_rows_arrive_over_an_api_that_has_its_troubles(database18, runtime):
    api = FakeApi(dimension=8, key=KEY, max_rows=20, max_characters=500, refuses=lambda text: text == "poison")
    with served(api), database18.connect() as db:
        db.execute("CREATE TABLE articles (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text)")
        db.execute("CREATE PUBLICATION walvec FOR TABLE articles")
        db.execute("INSERT INTO articles (body) SELECT 'article ' || i FROM generate_series(1, 100) i")
        settings = {
            "WALVEC_RUNTIME": runtime,
            "WALVEC_MODEL": "m",
            f"WALVEC_{runtime.upper()}_URL": api.url,
            f"WALVEC_{runtime.upper()}_KEY": KEY,
            "WALVEC_REQUEST_TIMEOUT_S": "2",
        }
        with Consumer(database18.url, **settings) as consumer:
            consumer.sync()
            api.script.extend(
                [
                    Answer(429, {}, {"retry-after-ms": "100"}),
                    Answer(500),
                    Answer(hang_up=True),
                    Answer(429),
                    Answer(503),
                ]
            )
            db.execute("INSERT INTO articles (body) SELECT 'more ' || i FROM generate_series(1, 50) i")
            db.execute("INSERT INTO articles (body) VALUES ('poison'), (repeat('long ', 200))")
            consumer.sync()
            api.always = Answer(503, {"error": {"message": "down for repairs"}})
            db.execute("UPDATE articles SET body = 'changed ' || id WHERE id <= 30")
            time.sleep(1.5)
            api.always = None
            consumer.sync()
            log = consumer.log
        found = dict(
            db.execute("SELECT a.body, e.embedding::text FROM articles a JOIN articles_embeddings e USING (id)")
        )
        (count,) = db.execute("SELECT count(*) FROM articles").fetchone()
        assert count == 152 and len(found) == 151 and "poison" not in found
        vector = [float(x) for x in found["changed 7"].strip("[]").split(",")]
        assert vector == pytest.approx(hash_vectors(["changed 7"], 8)[0].tolist(), abs=1e-5)
        ((message,),) = db.execute("SELECT message FROM walvec.pipeline_errors").fetchall()
        assert "refuses an input" in message
        assert KEY not in log and "article 1" not in log
