"""A database with one watched table, and settings for it."""

import secrets
import sys

import pytest

from cdc import cli, config
from cdc.postgres import setup
from cdc.telemetry import logs


@pytest.fixture
def settings(database):
    name = f"s_{secrets.token_hex(4)}"
    return config.load({"WALVEC_DATABASE_URL": database.dsn(), "WALVEC_SLOT": name})


@pytest.fixture
def articles(db, settings):
    """The connection, after a table, its publication, the slot and the control schema were made."""
    db.execute("CREATE TABLE articles (id int PRIMARY KEY, body text)")
    setup.init(settings, [setup.parse_table("articles")], say=lambda _: None, warn=pytest.fail)
    return db


@pytest.fixture
def pipeline(articles, settings):
    """The name of a pipeline that is backfilled and ready, as the consumer would have registered it."""
    articles.execute(
        "CREATE TABLE articles_embeddings (id int, chunk int DEFAULT 0, embedding real[], source_hash bytea)"
    )
    row = articles.execute(
        "INSERT INTO walvec.pipelines (name, slot, source_schema, source_table, key_columns, text_columns,"
        " target_schema, target_table, model, dimension, fingerprint) VALUES ('public.articles', %s, 'public',"
        " 'articles', '{id}', '{body}', 'public', 'articles_embeddings', 'm', 2, '\\x00') RETURNING id",
        [settings.slot],
    ).fetchone()
    articles.execute(
        "INSERT INTO walvec.progress (pipeline_id, state, backfilled_at, source_records, embeddings)"
        " VALUES (%s, 'ready', now(), 3, 2)",
        row,
    )
    return "public.articles"


@pytest.fixture
def walvec(monkeypatch, capsys):
    """Run a command in this process; return its exit status, standard output and standard error."""
    for setting in config.table():
        monkeypatch.delenv(setting.env, raising=False)
    monkeypatch.setattr(logs, "configure", lambda *_, **__: None)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["walvec", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return run
