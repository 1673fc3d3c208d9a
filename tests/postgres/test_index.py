"""The approximate index: built once the first backfill is complete, of the vectors' own type."""

from __future__ import annotations

import time
from typing import Any

import psycopg
import pytest

from cdc.testing.consumer import Consumer
from cdc.testing.database import Database


def index_of(db: psycopg.Connection[Any], timeout_s: float = 10.0) -> str | None:
    """Return the definition of the embeddings' HNSW index, waiting for it for a while."""
    asked = "SELECT indexdef FROM pg_indexes WHERE tablename = 'docs_embeddings' AND indexdef LIKE '%hnsw%'"
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        row = db.execute(asked).fetchone()
        valid = db.execute("SELECT bool_and(indisvalid) FROM pg_index").fetchone()
        if row is not None and valid == (True,):
            return str(row[0])
        time.sleep(0.05)
    return None


@pytest.mark.parametrize(
    ("vector_type", "operators"), [("vector", "vector_cosine_ops"), ("halfvec", "halfvec_cosine_ops")]
)
def test_index_follows_the_first_backfill(database18: Database, vector_type: str, operators: str) -> None:
    """It comes by itself, after the rows and not before, and is not built twice."""
    with database18.connect() as db:
        db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
        db.execute("INSERT INTO docs SELECT i, 'row ' || i FROM generate_series(1, 300) AS i")
        db.execute("CREATE PUBLICATION walvec FOR TABLE docs")
        settings = {"WALVEC_VECTOR_TYPE": vector_type, "WALVEC_INDEX": "hnsw", "WALVEC_MODEL": "hash-16"}
        with Consumer(database18.url, **settings) as consumer:
            consumer.sync()
            definition = index_of(db)
            assert definition is not None, "no index was built"
            assert operators in definition
            assert consumer.stop() == 0
            consumer.start()
            consumer.sync()
            assert db.execute("SELECT count(*) FROM pg_indexes WHERE tablename = 'docs_embeddings'").fetchone() == (2,)


def test_the_rest_of_a_failed_build_is_replaced(database18: Database) -> None:
    """An invalid index is removed, and a valid one built."""
    with database18.connect() as db:
        db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
        db.execute("INSERT INTO docs SELECT i, 'row ' || i FROM generate_series(1, 50) AS i")
        db.execute("CREATE PUBLICATION walvec FOR TABLE docs")
        with Consumer(database18.url, WALVEC_INDEX="hnsw", WALVEC_MODEL="hash-16") as consumer:
            consumer.sync()
            assert index_of(db) is not None
            assert consumer.stop() == 0
            db.execute(
                "UPDATE pg_index SET indisvalid = false FROM pg_class c JOIN pg_am a ON a.oid = c.relam "
                "WHERE c.oid = indexrelid AND a.amname = 'hnsw'"
            )
            consumer.start()
            assert index_of(db) is not None, "the invalid index stayed"


def test_off_builds_none(database18: Database) -> None:
    """WALVEC_INDEX=off leaves the destination as it is."""
    with database18.connect() as db:
        db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
        db.execute("INSERT INTO docs VALUES (1, 'row')")
        db.execute("CREATE PUBLICATION walvec FOR TABLE docs")
        with Consumer(database18.url, WALVEC_INDEX="off", WALVEC_MODEL="hash-16") as consumer:
            consumer.sync()
            assert index_of(db, timeout_s=1.0) is None
