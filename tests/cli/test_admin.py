"""Status, pausing, dead letters and drop, against what SQL says."""

import contextlib
import json
import secrets

import psycopg
import pytest

from cdc import config
from cdc.errors import ConfigError
from cdc.postgres.admin import Admin, Choice, Dropper
from cdc.postgres.connect import connect_sync

ALL = Choice(slot=True, publication=True, schema=True)
START = "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names 'walvec', messages 'true')"
CONTRACT_KEYS = [
    "knowledge_base", "auto_processing", "source_type", "unprocessed_rows", "scans_completed", "source_records",
    "embeddings", "status", "lag_seconds", "lag_bytes", "errors",
]  # fmt: skip


@pytest.fixture
def admin(articles, settings):
    with connect_sync(settings, "test") as conn:
        yield Admin(conn, settings)


@contextlib.contextmanager
def consuming(database, slot):
    """Hold the slot as a consumer does."""
    dsn = database.dsn(replication="database", application_name=slot)
    with contextlib.closing(psycopg.connect(dsn, autocommit=True)) as stream:
        stream.execute(START.format(slot))
        yield


def bury(db, body="hunter2"):
    db.execute("INSERT INTO articles VALUES (7, %s)", [body])
    db.execute(
        "INSERT INTO walvec.dead_letters (pipeline_id, key, cells, step, category, message, attempts)"
        " SELECT id, '{\"id\": 7}', '[\"7\"]', 'embed', 'refused', 'too long', 3 FROM walvec.pipelines"
    )


def test_status_of_a_running_pipeline_equals_the_view(admin, pipeline, articles, database, settings):
    with consuming(database, settings.slot):
        articles.execute("UPDATE walvec.slots SET state = 'streaming'")
        found = admin.status()
    (row,) = found.to_json()
    assert list(row) == CONTRACT_KEYS
    view = articles.execute("SELECT * FROM walvec.kbstat").fetchone()
    keys = ("knowledge_base", "auto_processing", "unprocessed_rows", "scans_completed", "source_records", "embeddings")
    assert tuple(row[key] for key in keys) == view
    assert (row["status"], row["errors"]) == ("ready", 0)
    assert row["lag_bytes"] > 0
    json.dumps(row)


def test_status_says_why_everything_stands_still(admin, pipeline, articles, settings):
    def status():
        return admin.status().to_json()[0]["status"]

    assert status() == "stopped"
    articles.execute("DROP PUBLICATION walvec")
    assert status() == "publication_missing"
    articles.execute("CREATE PUBLICATION walvec FOR TABLE articles")
    articles.execute("SELECT pg_drop_replication_slot(%s)", [settings.slot])
    assert status() == "lost"
    articles.execute("UPDATE walvec.pipelines SET attached = false")
    assert status() == "detached"


def test_pause_and_resume(admin, pipeline, database, settings):
    assert admin.set_paused(pipeline, True)
    assert not admin.set_paused(pipeline, True)
    with consuming(database, settings.slot):
        assert admin.status().to_json()[0]["status"] == "paused"
        assert admin.set_paused(pipeline, False)
        assert admin.status().to_json()[0]["status"] == "ready"


@pytest.mark.parametrize("method", ["errors", "requeue_errors", "clear_errors"])
def test_an_unknown_pipeline_is_refused_with_the_known_ones(admin, pipeline, method):
    with pytest.raises(ConfigError, match=r'no pipeline "nope"\. Pipelines: public\.articles\.'):
        getattr(admin, method)("nope")


def test_every_change_wakes_the_consumer_in_its_own_transaction(admin, pipeline, articles, settings):
    articles.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", [settings.slot])
    admin.set_paused(pipeline, True)
    peek = (
        "SELECT data FROM pg_logical_slot_get_binary_changes(%s, NULL, NULL, 'proto_version', '1',"
        " 'publication_names', 'walvec', 'messages', 'true')"
    )
    messages = [row[0] for row in articles.execute(peek, [settings.slot]).fetchall()]
    assert sum(b"walvec\0" in data and data.endswith(b"wake") for data in messages) == 1


def test_dead_letters_are_listed_requeued_and_cleared(admin, pipeline, articles):
    bury(articles)
    (row,) = admin.errors(None)
    assert (row["pipeline"], row["key"], row["message"], row["attempts"]) == (pipeline, {"id": 7}, "too long", 3)
    assert "hunter2" not in repr(row)
    before = articles.execute("SELECT pg_current_wal_lsn()").fetchone()[0]
    assert admin.requeue_errors(pipeline) == 1
    queued = articles.execute("SELECT key, lsn >= %s::pg_lsn FROM walvec.dirty", [before]).fetchall()
    assert queued == [('["7"]', True)]
    assert admin.errors(None) == []
    articles.execute("DELETE FROM articles; UPDATE walvec.dirty SET lsn = 'FFFF/0', leased_until = now()")
    bury(articles)
    assert admin.requeue_errors(None) == 1  # the key is queued already: its position never moves back
    row = articles.execute("SELECT lsn::text, leased_until FROM walvec.dirty").fetchall()
    assert row == [("FFFF/0", None)]
    articles.execute("DELETE FROM articles")
    bury(articles)
    assert admin.clear_errors(pipeline) == 1
    assert admin.clear_errors(None) == 0


def test_drop_says_what_it_frees_and_leaves_the_embeddings(pipeline, articles, settings):
    with connect_sync(settings, "test") as conn:
        dropper = Dropper(conn, settings)
        plan = dropper.plan(ALL)
        assert [settings.slot in plan[0], "WAL" in plan[0], "schema" in plan[1], "publication" in plan[2]] == [True] * 4
        dropper.drop(ALL)
        assert Dropper(conn, settings).plan(ALL) == []
    left = articles.execute("SELECT to_regclass('articles_embeddings'), to_regclass('articles')").fetchone()
    assert None not in left
    names = articles.execute("SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s", [settings.slot])
    assert names.fetchone() == (0,)


def test_drop_takes_only_what_is_chosen(articles, settings):
    with connect_sync(settings, "test") as conn:
        Dropper(conn, settings).drop(Choice(slot=True, publication=False, schema=False))
        assert len(Dropper(conn, settings).plan(ALL)) == 2


def test_a_slot_in_use_is_refused_with_its_pid_and_nothing_is_dropped(articles, settings, database):
    with consuming(database, settings.slot), connect_sync(settings, "test") as conn:
        dropper = Dropper(conn, settings)
        with pytest.raises(ConfigError, match=r"in use by pid \d+"):
            dropper.drop(ALL)
        assert len(Dropper(conn, settings).plan(ALL)) == 3


def test_a_foreign_schema_or_publication_is_never_dropped(articles, settings, database):
    theirs = config.load({}, {"database_url": settings.database_url, "slot": settings.slot, "schema": "public"})
    with connect_sync(theirs, "test") as conn, pytest.raises(ConfigError, match="not walvec's"):
        Dropper(conn, theirs).drop(ALL)
    role, password = f"r_{secrets.token_hex(4)}", secrets.token_hex(8)
    articles.execute(f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD '{password}'")
    articles.execute(f"GRANT USAGE ON SCHEMA walvec TO {role}; GRANT SELECT ON walvec.schema_version TO {role}")
    limited = config.load({}, {"database_url": database.dsn(user=role, password=password), "slot": settings.slot})
    with connect_sync(limited, "test") as conn, pytest.raises(ConfigError, match="belongs to the role"):
        Dropper(conn, limited).drop(ALL)
    assert articles.execute("SELECT count(*) FROM pg_publication").fetchone() == (1,)
