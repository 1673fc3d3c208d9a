"""Vectors kept in a column of the watched table itself."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg

from cdc.testing.consumer import Consumer
from cdc.testing.database import Database

Connection = psycopg.Connection[Any]


def vector_of(text: str) -> np.ndarray[Any, Any]:
    """Return what the runtime ``hash`` makes of ``text`` (CONTRACT: the runtime without a model)."""
    numbers = np.frombuffer(hashlib.shake_256(text.encode()).digest(768), "<i2").astype("float32")
    return np.asarray(numbers / np.linalg.norm(numbers))


def stored(db: Connection) -> dict[int, Any]:
    """Return the vectors by id, None where there is none."""
    rows = db.execute("SELECT id, embedding::text FROM docs ORDER BY id").fetchall()
    return {key: None if text is None else np.fromstring(text.strip("[]{}"), sep=",") for key, text in rows}


def assert_exact(db: Connection) -> None:
    """Assert that every row holds the vector of its text now, and none where it has no text."""
    texts = dict(db.execute("SELECT id, body FROM docs").fetchall())
    found = stored(db)
    assert found.keys() == texts.keys()
    for key, text in texts.items():
        if text is None or not text.strip():
            assert found[key] is None, f"row {key} has no text, but a vector"
        else:
            assert found[key] is not None, f"row {key} has no vector"
            np.testing.assert_allclose(found[key], vector_of(text), atol=1e-5)


def start(database: Database, db: Connection, vector: str) -> Consumer:
    """Make the table, its publication and the in-place pipeline; return a consumer, not yet running."""
    db.execute(f"CREATE TABLE docs (id int PRIMARY KEY, body text, other int DEFAULT 0, embedding {vector})")
    db.execute("INSERT INTO docs (id, body) SELECT i, 'text ' || i FROM generate_series(1, 500) AS i")
    db.execute("INSERT INTO docs (id, body) VALUES (501, NULL), (502, '  ')")
    db.execute("CREATE PUBLICATION walvec FOR TABLE docs (id, body)")
    consumer = Consumer(database.url)
    made = consumer.command("init", "--table", "public.docs", "--in-place", "embedding")
    assert made.returncode == 0, made.stderr
    return consumer


def follow(database: Database, db: Connection, vector: str) -> None:
    """Run the whole life of an in-place pipeline."""
    with start(database, db, vector) as consumer:
        consumer.sync()
        assert_exact(db)
        db.execute("UPDATE docs SET body = 'changed ' || id WHERE id % 3 = 0")
        db.execute("UPDATE docs SET other = 1 WHERE id % 5 = 0")
        db.execute("UPDATE docs SET body = NULL WHERE id % 7 = 0")
        db.execute("UPDATE docs SET id = id + 1000 WHERE id % 11 = 0")
        db.execute("DELETE FROM docs WHERE id % 13 = 0")
        db.execute("INSERT INTO docs (id, body) VALUES (5000, 'new')")
        consumer.sync()
        assert_exact(db)
        (row,) = consumer.verify()
        assert (row["missing"], row["stale"], row["orphaned"], row["duplicate"]) == (0, 0, 0, 0)
        settled = changes(db)
        time.sleep(1.0)
        assert changes(db) == settled, "the consumer goes on answering its own writes"
        assert consumer.stop() == 0


def changes(db: Connection) -> str:
    """Return a digest of where every row version stands: it changes with each write to the table."""
    row = db.execute("SELECT md5(string_agg(ctid::text || xmin::text, ',' ORDER BY id)) FROM docs").fetchone()
    assert row is not None
    return str(row[0])


def test_pgvector_column(database18: Database) -> None:
    """The column is pgvector's."""
    with database18.connect() as db:
        db.execute("CREATE EXTENSION vector")
        follow(database18, db, "vector(384)")


def test_plain_column(database15: Database) -> None:
    """The column is real[]; the server has no pgvector."""
    with database15.connect() as db:
        follow(database15, db, "real[]")


def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> bool:
    """Wait for ``condition``; tell whether it came true."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_a_trigger_that_answers_back_ends_as_a_dead_letter(database15: Database) -> None:
    """A trigger changes the text each time the vector is written: it must not go round for ever."""
    with database15.connect() as db:
        consumer = start(database15, db, "real[]")
        db.execute(
            "CREATE FUNCTION answer() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN IF NEW.id = 7 AND NEW.embedding IS NOT NULL THEN NEW.body := NEW.body || '!'; END IF; "
            "RETURN NEW; END$$"
        )
        db.execute("CREATE TRIGGER answer BEFORE UPDATE ON docs FOR EACH ROW EXECUTE FUNCTION answer()")
        with consumer:
            consumer.wait_for("slot_streaming")
            dead = "SELECT count(*) FROM walvec.pipeline_errors WHERE pipeline = 'public.docs' AND key = '{\"id\": 7}'"
            assert until(lambda: db.execute(dead).fetchone() == (1,))
            consumer.sync()
            assert db.execute("SELECT count(*) FROM docs WHERE embedding IS NULL").fetchone() == (3,)
