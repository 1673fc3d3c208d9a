"""`sync` returns exactly when everything before the call is settled. The consumer is played by hand."""

import time

import pytest

from cdc.postgres.sync import Sync


@pytest.fixture
def lines():
    return []


@pytest.fixture
def acknowledge(articles, settings):
    """Move the slot past all that was written."""
    return lambda: articles.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", [settings.slot])


def test_it_waits_for_the_slot_to_pass_the_call(pipeline, articles, settings, acknowledge, lines):
    acknowledge()
    articles.execute("INSERT INTO articles VALUES (1, 'x')")
    waiting = Sync(settings, lines.append)
    assert not waiting.wait(0.05)
    waiting = Sync(settings, lines.append)
    acknowledge()
    assert waiting.wait(5)
    assert lines == []


def test_it_waits_for_older_keys_in_the_durable_queue(pipeline, articles, settings, acknowledge, lines):
    articles.execute("INSERT INTO walvec.dirty SELECT id, '[\"1\"]', pg_current_wal_insert_lsn() FROM walvec.pipelines")
    waiting = Sync(settings, lines.append)
    acknowledge()
    assert not waiting.wait(0.05)
    waiting = Sync(settings, lines.append)
    acknowledge()
    articles.execute("UPDATE walvec.dirty SET lsn = 'FFFF/0'")  # dirtied again, after the call
    assert waiting.wait(5)


@pytest.mark.parametrize(
    "busy",
    [
        "UPDATE walvec.progress SET scan_reason = 'first backfill'",
        "UPDATE walvec.progress SET backfilled_at = NULL",
        "INSERT INTO walvec.requests (pipeline_id, kind) SELECT id, 'reconcile' FROM walvec.pipelines",
        "UPDATE walvec.pipelines SET attached = false",
        "CREATE TABLE b (id int PRIMARY KEY, body text); ALTER PUBLICATION walvec ADD TABLE b",
    ],
)
def test_it_waits_for_backfills_requests_and_new_tables(pipeline, articles, settings, acknowledge, lines, busy):
    articles.execute(busy)
    waiting = Sync(settings, lines.append)
    acknowledge()
    assert not waiting.wait(0.05)


def test_a_request_made_after_the_call_is_not_waited_for(pipeline, articles, settings, acknowledge, lines):
    waiting = Sync(settings, lines.append)
    articles.execute("INSERT INTO walvec.requests (pipeline_id, kind) SELECT id, 'reconcile' FROM walvec.pipelines")
    acknowledge()
    assert waiting.wait(5)


def test_a_pipeline_in_error_is_reported_and_not_waited_for(pipeline, articles, settings, acknowledge, lines):
    articles.execute(
        "UPDATE walvec.progress SET state = 'error', reason = 'Column body is gone.',"
        " scan_reason = 'shape', backfilled_at = NULL"
    )
    articles.execute("INSERT INTO walvec.dirty SELECT id, '[\"1\"]', '0/1' FROM walvec.pipelines")
    waiting = Sync(settings, lines.append)
    acknowledge()
    assert waiting.wait(5)
    assert lines == ["Not waited for: public.articles is in error. Column body is gone."]


def test_destinations_of_a_wide_publication_are_no_sources(pipeline, articles, settings, acknowledge, lines):
    articles.execute("DROP PUBLICATION walvec; CREATE PUBLICATION walvec FOR ALL TABLES")
    waiting = Sync(settings, lines.append)
    acknowledge()
    assert waiting.wait(5)


def test_a_leaf_belongs_to_the_pipeline_of_its_root(pipeline, articles, settings, acknowledge, lines):
    articles.execute("CREATE TABLE parts (id int PRIMARY KEY, body text) PARTITION BY RANGE (id)")
    articles.execute("CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10)")
    articles.execute("ALTER PUBLICATION walvec SET TABLE parts")
    articles.execute("ALTER PUBLICATION walvec SET (publish_via_partition_root = false)")
    waiting = Sync(settings, lines.append)
    acknowledge()
    assert not waiting.wait(0.05)
    articles.execute("UPDATE walvec.pipelines SET source_table = 'parts'")
    waiting = Sync(settings, lines.append)
    acknowledge()
    assert waiting.wait(5)


def test_a_table_that_no_pipeline_can_follow_is_reported_and_not_waited_for(
    pipeline, articles, settings, acknowledge, lines
):
    articles.execute("CREATE TABLE keyless (body text); ALTER PUBLICATION walvec ADD TABLE keyless")
    waiting = Sync(settings, lines.append)
    acknowledge()
    assert waiting.wait(5)
    assert len(lines) == 1 and "public.keyless is in error" in lines[0] and "no primary key" in lines[0]


def test_it_waits_for_a_consumer_that_has_not_begun(db, settings, lines):
    started = time.monotonic()
    assert not Sync(settings, lines.append).wait(2.3)
    assert 2.2 < time.monotonic() - started < 10
    assert lines == [f'The replication slot "{settings.slot}" does not exist: is `walvec run` running?']


def test_a_server_that_goes_away_is_waited_for(pipeline, articles, settings, acknowledge, lines, database):
    waiting = Sync(settings, lines.append)
    acknowledge()
    articles.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s", [f"{settings.slot}/sync"]
    )
    assert waiting.wait(10)
    assert len(lines) == 1 and "Waiting for the server" in lines[0]
