"""Models of jobs all the way: a table of jobs, the daemon, a server of models, and what the rows hold at the end."""

import asyncio
import json
import threading
from contextlib import contextmanager

import numpy as np

from inference.completion import GREETING
from inference.hashing import hash_vectors
from inference.testing import FakeModel, FakeTriton
from inference.testing_api import Answer, FakeApi
from inference.triton import CANARY_FILE
from tests.jobs.conftest import eventually

KEY = "sk-job-0123456789"


@contextmanager
def served(server):
    """Serve in a thread of its own."""
    ready, end = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve():
        async with server:
            ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(5)
        yield server
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
        loop.close()


def values(db, sql):
    return dict(db.execute(sql).fetchall())


def test_completions_fill_a_typed_column_and_no_error_becomes_an_answer(jobs):
    api = FakeApi(key=KEY, refuses=lambda text: text == "poison")
    said: dict[str, str | Answer] = {"five": "5", "many": "I cannot count that", "cut": Answer(200, cut_off())}
    api.answers = lambda text: said.get(text, "7")
    db = jobs.db
    db.execute("ALTER TABLE embedding_generation_jobs ADD job_type text, ADD column_type text")
    db.execute("CREATE TABLE articles (id int PRIMARY KEY, body text, n int)")
    db.execute("INSERT INTO articles VALUES (1, 'five'), (2, 'poison'), (3, 'many'), (4, 'other'), (5, ''), (6, 'cut')")
    with served(api), jobs.daemon() as daemon:
        params = json.dumps({"base_url": api.url, "api_token": KEY, "system_prompt": "How many?"})
        id = jobs.add(
            dst_column="n", runtime="openai", runtime_params=params, embedding_model="gpt-4o",
            job_type="completion", column_type="int",
        )  # fmt: skip
        jobs.until(id, "init_finished_at")
        assert values(db, "SELECT id, n FROM articles") == {1: 5, 2: None, 3: None, 4: 7, 5: None, 6: None}
        rows = [request.said for request in api.requests if request.said[-1][1] != GREETING[1]]
        assert {said[0] for said in rows} == {("system", "How many?")}
        db.execute("UPDATE articles SET body = 'five' WHERE id IN (2, 4)")
        eventually(lambda: values(db, "SELECT id, n FROM articles WHERE id IN (2, 4)") == {2: 5, 4: 5})
        dead = " ".join(message for (message,) in db.execute("SELECT message FROM walvec.pipeline_errors"))
        assert "cut off" in dead and "cannot count" not in dead and "poison" not in dead
        assert daemon.stop() == 0
        assert KEY not in daemon.log and "poison" not in daemon.log


def cut_off():
    return {"choices": [{"message": {"content": "5"}, "finish_reason": "length"}], "usage": {"total_tokens": 3}}


def test_rows_hold_images_as_bytes_and_as_paths(jobs, tmp_path):
    pictures = [CANARY_FILE, CANARY_FILE.replace(b"IDAT", b"IDATx")]
    (tmp_path / "one.png").write_bytes(pictures[1])
    served_model = FakeModel(
        name="ViT-B-32-visual", dimension=8, declared_dimension=8, inputs=(("IMAGE", "BYTES", (-1, 1)),)
    )
    db = jobs.db
    db.execute("CREATE TABLE pictures (id int PRIMARY KEY, body bytea, v real[])")
    db.execute("CREATE TABLE files (id int PRIMARY KEY, body text, v real[])")
    db.execute("INSERT INTO pictures VALUES (1, %s), (2, 'no image'), (3, NULL)", [pictures[0]])
    db.execute(
        "INSERT INTO files VALUES (1, %s), (2, '/etc/passwd'), (3, 'http://127.0.0.1:1/x.png')",
        [str(tmp_path / "one.png")],
    )
    with (
        served(FakeTriton(served_model)) as triton,
        jobs.daemon(WALVEC_IMAGE_ROOTS=str(tmp_path), WALVEC_TRITON_URL=triton.url) as daemon,
    ):
        asked = {"runtime": "triton", "embedding_model": "clip/ViT-B-32-visual"}
        ids = [jobs.add(table, **asked) for table in ("pictures", "files")]
        for id in ids:
            jobs.until(id, "init_finished_at")
        for table, picture in (("pictures", pictures[0]), ("files", pictures[1])):
            found = values(db, f"SELECT id, v FROM {table}")
            expected = hash_vectors([picture.decode("utf-8", "surrogateescape")], 8)[0]
            assert np.abs(np.array(found[1]) - expected).max() < 1e-6
            assert found[2] is None and found[3] is None  # and no vector of −1s
        reasons = " ".join(message for (message,) in db.execute("SELECT message FROM walvec.pipeline_errors"))
        assert "not a whole one" in reasons and "WALVEC_IMAGE_ROOTS" in reasons and "not public" in reasons
        assert daemon.stop() == 0


def test_a_stand_in_is_named_and_its_tokens_are_counted(jobs):
    jobs.texts("articles", 3)
    with jobs.daemon() as daemon:
        id = jobs.add(runtime="ort", embedding_model="microsoft/all-MiniLM-L12-v2")
        jobs.until(id, "init_finished_at", 40)
        warning = daemon.wait_for("model_stand_in")
        assert warning["level"] == "warning" and "microsoft/all-MiniLM-L12-v2" in warning["message"]
        found = eventually(
            lambda: jobs.db.execute(
                "SELECT model FROM walvec.pipeline_metrics WHERE reason LIKE '%stands in%'"
            ).fetchone()
        )
        assert found[0] == "all-minilm-l6-v2"
        usage = "SELECT sum(rows), sum(tokens) FROM walvec.embedding_usage_info"
        used = eventually(lambda: [row for row in jobs.db.execute(usage) if row[0]])
        assert used == [(3, 12)]  # "text 1": two pieces and two marks
        assert daemon.stop() == 0
