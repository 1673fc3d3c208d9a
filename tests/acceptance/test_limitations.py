"""Lantern's limitations, one test each: what its design of triggers, NOTIFY and a lock table gets wrong is right here.

The numbers are those of the migration page's table. Each test states the limitation in its first line.
"""

from __future__ import annotations

import json
import re
import secrets
import statistics
import time
from collections.abc import Iterator

import pytest

from cdc.testing.cluster import Cluster
from inference.testing_api import Answer, FakeApi
from tests.acceptance.conftest import Running
from tests.acceptance.scene import Connection, World, converged, eventually, vector_of, wrong

TICK_S = 10.0
"""Lantern collects what its triggers tell it for so long before it embeds."""


@pytest.fixture(scope="module")
def mortal(pg18: Cluster) -> Iterator[World]:
    """A control database that is its own target; each test starts and ends daemons as it likes."""
    database = pg18.create_database(f"mortal_{secrets.token_hex(4)}")
    world = World(database)
    world.db.execute("CREATE EXTENSION vector")
    world.jobs.execute("ALTER TABLE embedding_generation_jobs ALTER database_id SET DEFAULT 'x'")
    try:
        yield world
    finally:
        world.close()
        database.drop()


@pytest.fixture
def alone(mortal: World) -> Iterator[World]:
    """The same; the test's jobs are deleted when it ends."""
    yield mortal
    mortal.jobs.execute("DELETE FROM embedding_generation_jobs")


def asked(api: FakeApi) -> list[str]:
    """Return every text that the API was asked for so far, the canary aside."""
    return [text for texts in api.asked for text in texts if text != "walvec"]


# -- 1 to 5: what was lost ------------------------------------------------------------------------------------------


def test_01_an_update_of_a_row_that_is_being_embedded(world: Running, api: FakeApi) -> None:
    """An update of a claimed row is dropped, and the vector of the older text stays for good."""
    table = world.texts(1)
    world.done(world.api_job(api, table))
    api.delay_s = 0.4
    world.add(table, "first")
    eventually(lambda: "first" in asked(api))
    world.db.execute(f"UPDATE {table} SET body = 'second' WHERE id = 2")
    world.db.execute(f"UPDATE {table} SET body = 'third' WHERE id = 2")
    assert api.running == 1, "the first text is under way still"
    converged(world.db, table)
    eventually(lambda: api.running == 0)
    world.add(table, "after")
    converged(world.db, table)  # and no older answer came in behind it


def test_02_changes_while_no_daemon_runs(alone: World) -> None:
    """Updates while the daemon is down are never embedded: it looks for NULLs when it comes back."""
    table = alone.texts(20)
    id = alone.job(table)
    with alone.daemon() as daemon:
        before = alone.done(id)
        assert daemon.stop() == 0
    alone.db.execute(f"UPDATE {table} SET body = 'changed ' || id WHERE id % 3 = 0")
    alone.db.execute(f"UPDATE {table} SET body = NULL WHERE id % 5 = 0")
    alone.db.execute(f"DELETE FROM {table} WHERE id % 7 = 0")
    alone.add(table, "inserted")
    with alone.daemon() as daemon:
        converged(alone.db, table)
        assert alone.row(id)["init_finished_at"] == before["init_finished_at"]
        assert daemon.stop() == 0


def test_03_rows_that_were_claimed_by_a_daemon_that_crashed(alone: World, api: FakeApi) -> None:
    """A crash leaves rows in the lock table, and later updates of theirs are ignored."""
    table = alone.texts(3)
    alone_id = alone.api_job(api, table)
    with alone.daemon() as daemon:
        alone.done(alone_id)
        api.delay_s = 30.0
        alone.db.execute(f"UPDATE {table} SET body = 'claimed ' || id")
        eventually(lambda: "claimed 3" in asked(api))
        daemon.kill()
    alone.db.execute(f"UPDATE {table} SET body = 'again ' || id WHERE id < 3")
    api.delay_s = 0.0
    with alone.daemon():
        converged(alone.db, table)


def test_04_a_queue_that_was_only_in_memory(alone: World, api: FakeApi) -> None:
    """The queue, and the 300 s until a failed batch is tried again, are lost with the process."""
    table = alone.texts(5)
    id = alone.api_job(api, table)
    with alone.daemon() as daemon:
        alone.done(id)
        api.always = Answer(503, {"error": {"message": "down for repairs"}})
        alone.add(table, *(f"queued {n}" for n in range(300)))
        alone.db.execute(f"UPDATE {table} SET body = 'queued too' WHERE id = 2")
        daemon.wait_for("model_unavailable")
        daemon.kill()
    api.always = None
    with alone.daemon():
        converged(alone.db, table)
    assert not alone.letters()


@pytest.mark.parametrize("empty", [None, "", " \n\t "], ids=["null", "empty", "blank"])
def test_05_a_text_that_is_taken_away(world: Running, empty: str | None) -> None:
    """An UPDATE to NULL or '' tells nobody, and the old vector stays."""
    table = world.texts(3)
    world.done(world.job(table))
    world.db.execute(f"UPDATE {table} SET body = %s WHERE id = 2", [empty])
    eventually(lambda: world.db.execute(f"SELECT v IS NULL FROM {table} WHERE id = 2").fetchone() == (True,))
    assert not wrong(world.db, table)


# -- 6 and 7: what was done to the user's tables --------------------------------------------------------------------

WATCH_DDL = """
CREATE SCHEMA watch;
CREATE TABLE watch.ddl (command text, object text);
CREATE FUNCTION watch.note() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO watch.ddl SELECT command_tag, object_identity FROM pg_event_trigger_ddl_commands();
END $$;
CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION watch.note();
"""


@pytest.fixture
def ddl(world: Running) -> Iterator[Connection]:
    """Write every DDL command in the target database down."""
    world.db.execute(WATCH_DDL)
    yield world.db
    world.db.execute("DROP EVENT TRIGGER watch; DROP SCHEMA watch CASCADE")


FOREIGN_TO_US = """
SELECT 'trigger ' || tgname FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT 'function ' || p.oid::regprocedure FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = pronamespace
    WHERE nspname = 'public' AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = p.oid AND d.deptype = 'e')
UNION ALL SELECT 'rule ' || rulename FROM pg_rewrite WHERE rulename <> '_RETURN'
UNION ALL SELECT 'table ' || relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
UNION ALL SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname !~ '^pg_'
"""


def test_06_bulk_loads_and_rows_that_fire_no_trigger(world: Running) -> None:
    """One NOTIFY a row in the user's transaction; rows that replication applies fire no trigger and are never seen."""
    table = world.texts()
    world.done(world.job(table))
    with world.db.cursor().copy(f"COPY {table} (body) FROM STDIN") as copy:
        for n in range(3000):
            copy.write_row([f"copied {n}"])
    with world.target.connect() as session:
        session.execute("SET session_replication_role = replica")
        session.execute(f"INSERT INTO {table} (body) VALUES ('applied')")
        session.execute(f"UPDATE {table} SET body = 'applied too' WHERE id = 5")
    converged(world.db, table)
    assert world.db.execute(f"SELECT count(v) FROM {table}").fetchone() == (3001,)
    assert world.db.execute("SELECT pg_notification_queue_usage()").fetchone() == (0.0,)


def test_07_no_trigger_no_function_no_lock_on_a_watched_table(world: Running, api: FakeApi, ddl: Connection) -> None:
    """Two triggers and a function a job, made and dropped with each start and stop; a scan that blocks the table."""
    table = world.texts(300)
    before = sorted(ddl.execute(FOREIGN_TO_US).fetchall())
    ddl.execute("TRUNCATE watch.ddl")
    api.delay_s = 0.3
    id = world.api_job(api, table)
    eventually(lambda: api.running)
    ddl.execute("SET lock_timeout = '1s'")
    ddl.execute(f"CREATE INDEX ON {table} (body)")  # waits for no scan, and is refused were one to hold a lock
    ddl.execute("RESET lock_timeout")
    world.done(id)
    world.cancel(id)
    eventually(lambda: ddl.execute(
        "SELECT attached FROM walvec.pipelines WHERE name = %s", [f"public.{table}.v"]
    ).fetchone() == (False,))  # fmt: skip
    world.resume(id)
    world.add(table, "after")
    api.delay_s = 0.0
    converged(world.db, table)
    assert sorted(ddl.execute(FOREIGN_TO_US).fetchall()) == before
    done = ddl.execute("SELECT command, object FROM watch.ddl WHERE object ~ '^public[.][^ ]+$'").fetchall()
    assert sorted(done) == [
        ("ALTER TABLE", f"public.{table}"),  # the destination column
        ("CREATE INDEX", f"public.{table}_body_idx"),  # our own
    ]
    columns = "SELECT array_agg(attname ORDER BY attnum) FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
    assert ddl.execute(columns, [table]).fetchone() == (["id", "body", "v"],)


# -- 8 to 10: how fast ----------------------------------------------------------------------------------------------


def test_08_batches_side_by_side_and_a_slow_job_beside_a_fast_one(world: Running, api: FakeApi) -> None:
    """One batch at a time for the whole process: a slow model holds up every job of every database."""
    api.delay_s = 0.4
    slow, fast = world.texts(3000), world.texts(1)
    id = world.api_job(api, slow, batch_size=100)
    world.done(world.job(fast))
    eventually(lambda: api.most_running > 1)
    took = []
    for n in range(5):
        began = time.monotonic()
        world.add(fast, f"quick {n}")
        converged(world.db, fast)
        took.append(time.monotonic() - began)
    print(f"beside a slow job: {statistics.median(took) * 1000:.0f} ms (median of 5)")
    assert world.row(id)["init_finished_at"] is None, "the slow job was done too soon to show anything"
    assert max(took) < api.delay_s * 3
    api.delay_s = 0.0
    world.done(id)
    assert not wrong(world.db, slow)


def test_09_nothing_is_written_that_need_not_be(world: Running, api: FakeApi) -> None:
    """Every write-back makes a row version, fires the user's triggers and queues for row locks."""
    table = world.texts(30, more=", other int DEFAULT 0")
    world.db.execute(f"""
        CREATE TABLE {table}_told (id int);
        CREATE FUNCTION {table}_tell() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN INSERT INTO {table}_told VALUES (NEW.id); RETURN NEW; END';
        CREATE TRIGGER tell AFTER UPDATE OF body ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_tell();
    """)
    id = world.api_job(api, table)
    world.done(id)
    world.db.execute(f"UPDATE {table} SET other = 1")
    places = f"SELECT array_agg(ctid::text ORDER BY id) FROM {table} WHERE id <> 7"
    before = world.db.execute(places).fetchone()
    world.cancel(id)
    attached = "SELECT attached FROM walvec.pipelines WHERE name = %s"
    eventually(lambda: world.db.execute(attached, [f"public.{table}.v"]).fetchone() == (False,))
    world.db.execute(f"UPDATE {table} SET body = 'changed' WHERE id = 7")
    world.resume(id)
    converged(world.db, table)
    assert world.db.execute(places).fetchone() == before, "a row that did not change was written again"
    assert sorted(asked(api)) == sorted([*(f"text {n}" for n in range(1, 31)), "changed"])
    assert world.db.execute(f"SELECT id FROM {table}_told").fetchall() == [(7,)], "a vector is no change of the text"
    world.db.execute(f"DROP TABLE {table}; DROP FUNCTION {table}_tell")


def test_09_a_row_that_somebody_has_locked_holds_up_no_other_job(world: Running) -> None:
    """Write-backs queue behind the user's row locks; the one worker of the process with them."""
    table, other = world.texts(5), world.texts(1)
    for id in (world.job(table), world.job(other)):
        world.done(id)
    with world.target.connect() as session, session.transaction():
        session.execute(f"SELECT FROM {table} WHERE id = 1 FOR UPDATE")
        with world.target.connect() as second:
            second.execute(f"UPDATE {table} SET body = 'changed ' || id WHERE id > 1")
        session.execute(f"UPDATE {table} SET body = 'changed too' WHERE id = 1")
        world.add(other, "meanwhile")
        converged(world.db, other, timeout_s=3)
        held = f"SELECT count(*) FROM {table} WHERE body LIKE 'changed %%' AND v::real[] <> %s::real[]"
        eventually(lambda: world.db.execute(held, [vector_of("text 5").tolist()]).fetchone() == (4,))
    converged(world.db, table)


def test_10_from_commit_to_vector_without_a_tick(world: Running) -> None:
    """Up to ten seconds pass before anything happens."""
    table = world.texts(1)
    world.done(world.job(table))
    took = []
    for n in range(15):
        began = time.monotonic()
        world.db.execute(f"UPDATE {table} SET body = 'at {n}' WHERE id = 1")
        wanted = vector_of(f"at {n}").tolist()
        query = f"SELECT (v <-> %s::real[]::vector) < 1e-4 FROM {table}"
        while world.db.execute(query, [wanted]).fetchone() != (True,):
            assert time.monotonic() < began + TICK_S
        took.append(time.monotonic() - began)
    print(f"from commit to visible: {statistics.median(took) * 1000:.1f} ms (median of 15)")
    assert statistics.median(took) < TICK_S / 50


# -- 11 and 12: secrets, TLS, types ---------------------------------------------------------------------------------


def test_11_nothing_is_granted_to_everybody_and_no_secret_is_shown(world: Running, api: FakeApi) -> None:
    """No TLS; tokens in a table that PUBLIC may read."""
    token, password = f"sk-{secrets.token_hex(12)}", secrets.token_hex(12)
    api.key = token
    table = world.texts(2)
    good = world.api_job(api, table, params={"api_token": token})
    world.done(good)
    bad = world.api_job(api, table, params={"api_token": token + "x"}, dst_column="w")
    nobody = world.target.url.replace("postgres:", f"nobody_{world.target.name}:")
    login = re.sub(r":[^:@/]+@", f":{password}@", nobody)
    refused = world.job(table, db_connection=login, dst_column="x")
    reasons = [world.until(id, "init_failed_at")["init_failure_reason"] for id in (bad, refused)]
    granted = """SELECT c.oid::regclass::text FROM pg_class AS c, aclexplode(c.relacl) AS a
                 WHERE c.relnamespace = 'walvec'::regnamespace AND a.grantee = 0"""
    shown = [world.log, *reasons, *(world.get(path) for path in ("/status", "/metrics", "/healthz", "/"))]
    for db in (world.db, world.jobs):
        assert not db.execute(granted).fetchall()
        assert db.execute("SELECT has_schema_privilege('public', 'walvec', 'USAGE')").fetchone() == (False,)
        names = [name for (name,) in db.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'walvec'")]
        shown += [str(db.execute(f'SELECT * FROM walvec."{name}"').fetchall()) for name in names]
        others = "SELECT query, application_name FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        shown.append(str(db.execute(others).fetchall()))
    for text in shown:
        assert token not in text
        assert password not in text


def test_11_a_job_that_asks_for_tls_gets_tls_or_nothing(world: Running) -> None:
    """This server speaks no TLS: a connection that asks for it is refused, not made without."""
    table = world.texts(1)
    row = world.until(world.job(table, db_connection=f"{world.target.url}?sslmode=require"), "init_failed_at")
    assert "SSL" in row["init_failure_reason"] or "sslmode" in row["init_failure_reason"]
    assert wrong(world.db, table) == [f"{table} has no column v yet"]


TYPES = {"vector(8)": "vector(8)", "vector": "vector", "halfvec(8)": "halfvec(8)", "real[]": "real[]", "": "vector(8)"}


@pytest.mark.parametrize("type", TYPES)
def test_12_columns_of_pgvectors_types(world: Running, type: str) -> None:
    """Only REAL[] can be written."""
    table = world.texts(4, more=f", v {type}" if type else "")
    world.done(world.job(table))
    world.add(table, "one more")
    converged(world.db, table, within=2e-3 if "half" in type else 1e-5)
    query = "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = %s::regclass AND attname = 'v'"
    assert world.db.execute(query, [table]).fetchone() == (TYPES[type],)


# -- 13 and 14: states and numbers ----------------------------------------------------------------------------------


def test_13_a_failed_start_is_tried_again(world: Running, api: FakeApi) -> None:
    """A job whose initial rows failed must be reset by hand. Here it is tried again, and its row tells the truth."""
    api.always = Answer(401, {"error": {"message": "no such key"}})
    table = world.texts(4)
    id = world.api_job(api, table)
    row = world.until(id, "init_failed_at")
    assert "key" in row["init_failure_reason"]
    assert row["init_finished_at"] is None
    api.always = None
    row = world.done(id)
    assert (row["init_failed_at"], row["init_failure_reason"], row["init_progress"]) == (None, None, 100)
    assert not wrong(world.db, table)


def test_13_a_job_canceled_at_the_start_is_canceled_not_failed(world: Running, api: FakeApi) -> None:
    """A job that is canceled while its initial rows are embedded reports a failure, even when it is resumed."""
    api.delay_s = 0.5
    table = world.texts(600)
    id = world.api_job(api, table, batch_size=50)
    world.until(id, "init_started_at")
    eventually(lambda: api.running)
    world.cancel(id)
    attached = "SELECT attached FROM walvec.pipelines WHERE name = %s"
    eventually(lambda: world.db.execute(attached, [f"public.{table}.v"]).fetchone() == (False,))
    row = world.row(id)
    assert (row["init_failed_at"], row["init_finished_at"]) == (None, None)
    api.delay_s = 0.0
    world.resume(id)
    assert world.done(id)["init_failed_at"] is None
    assert not wrong(world.db, table)


def test_13_a_table_that_is_dropped_and_made_anew(world: Running) -> None:
    """A job whose table has gone stays failed, or goes on in silence with triggers that went along."""
    table = world.texts(3)
    id = world.job(table)
    world.done(id)
    world.db.execute(f"DROP TABLE {table}")
    assert "dropped" in world.until(id, "init_failed_at")["init_failure_reason"]
    world.db.execute(f"CREATE TABLE {table} (id serial PRIMARY KEY, body text)")
    world.add(table, "one", "two")
    converged(world.db, table)
    eventually(lambda: world.row(id)["init_failed_at"] is None)


def test_14_metrics_health_progress_and_lag(world: Running, api: FakeApi) -> None:
    """No metrics, no health, no lag, and progress of the initial rows only."""
    api.delay_s = 0.3
    table = world.texts(1000)
    id = world.api_job(api, table, batch_size=50)
    seen = set()

    def finished() -> bool:
        row = world.row(id)
        seen.add(row["init_progress"])
        return row["init_finished_at"] is not None

    eventually(lambda: len(seen) > 3 or finished())
    api.delay_s = 0.0
    eventually(finished)
    assert len(seen) > 3
    assert max(seen) == 100
    name = f"public.{table}.v"
    world.add(table, "for the figures")
    converged(world.db, table)

    def status() -> dict[str, object]:
        found = [row for row in json.loads(world.get("/status")) if str(row["knowledge_base"]).endswith(name)]
        return found[0] if found and found[0]["source_records"] == 1001 else {}

    row = eventually(status)
    assert (row["unprocessed_rows"], row["embeddings"], row["errors"]) == (0, 1001, 0)
    assert row["lag_seconds"] is not None
    assert row["lag_bytes"] is not None
    metrics = eventually(lambda: (text := world.get("/metrics")) and name in text and text)
    for series in (
        "walvec_commit_to_visible_seconds_count", "walvec_rows_embedded_total", "walvec_source_records",
        "walvec_slot_lag_bytes", "walvec_oldest_unacked_seconds", "walvec_jobs",
    ):  # fmt: skip
        assert re.search(rf"^{series}[{{ ]", metrics, re.MULTILINE), f"{series} is not there"
    rows = re.search(rf'^walvec_rows_embedded_total{{[^}}]*{re.escape(name)}"}} (\S+)', metrics, re.MULTILINE)
    assert rows is not None
    assert float(rows[1]) == 1001
    assert world.get("/livez")
    checks = json.loads(world.get("/healthz"))
    assert "error" not in json.dumps(checks)


# -- 15 to 17: daemons, keys, bad rows ------------------------------------------------------------------------------


def test_15_two_daemons_at_once(alone: World, api: FakeApi) -> None:
    """Two daemons that start on one database drop and make the same table of initial rows."""
    api.delay_s = 0.1
    table = alone.texts(400)
    id = alone.api_job(api, table, batch_size=50)
    with alone.daemon() as one, alone.daemon() as two:
        alone.done(id)
        alone.add(table, *(f"later {n}" for n in range(20)))
        converged(alone.db, table)
        texts = asked(api)
        assert len(texts) == len(set(texts)) == 420, "each text is embedded once"
        for daemon in (one, two):
            daemon.wait_for("job_feed_streaming")
            assert not [e for e in daemon.events if e["event"] in ("job_failed", "job_engine_failed")]
        assert alone.row(id)["init_failed_at"] is None
        assert (one.stop(), two.stop()) == (0, 0)


def test_16_names_that_need_quotes(world: Running) -> None:
    """The key must be one column called id, and a ':' in it breaks the payload; source columns go unquoted."""
    table, name = 'Odd: "table"', '"Odd: ""table"""'
    world.db.execute(
        f'CREATE TABLE {name} ("my:Key" text, "Half 2" int, "The Text" text, PRIMARY KEY ("my:Key", "Half 2"))'
    )
    keys = "'a:' || i || ':''\"\\,{}'"
    world.db.execute(f"INSERT INTO {name} SELECT {keys}, i, 'text ' || i FROM generate_series(1, 9) AS i")
    world.done(world.job(table, src_column="The Text", dst_column="Its Vector", pk="my:Key"))
    world.db.execute(f"""UPDATE {name} SET "The Text" = 'changed' WHERE "Half 2" = 4""")
    world.db.execute(f"""UPDATE {name} SET "my:Key" = 'moved:' WHERE "Half 2" = 5""")
    world.db.execute(f'DELETE FROM {name} WHERE "Half 2" = 6')
    converged(world.db, table, source="The Text", target="Its Vector")


def test_17_one_bad_row_and_a_server_that_limits(world: Running, api: FakeApi) -> None:
    """A row that the provider refuses blocks its batch for ever; a rate limit and a crash look the same."""
    api.refuses = lambda text: "poison" in text
    table = world.texts(3)
    world.done(world.api_job(api, table))
    world.add(table, "before", "poison", "behind", *(f"beside {n}" for n in range(20)))
    name = f"public.{table}.v"
    letters = "SELECT key, category FROM walvec.pipeline_errors WHERE pipeline = %s"
    eventually(lambda: world.db.execute(letters, [name]).fetchall())
    eventually(lambda: len(wrong(world.db, table)) == 1)
    assert "poison" in wrong(world.db, table)[0]
    assert world.db.execute(letters, [name]).fetchall() == [({"id": 5}, "invalid_argument")]
    api.script.extend([Answer(429, {}, {"retry-after-ms": "50"}), Answer(429), Answer(500), Answer(hang_up=True)])
    world.add(table, *(f"under a limit {n}" for n in range(10)))
    eventually(lambda: len(wrong(world.db, table)) == 1)
    assert len(world.db.execute(letters, [name]).fetchall()) == 1, "trouble of the server's is no fault of a row"
    world.db.execute(f"UPDATE {table} SET body = 'mended' WHERE id = 5")
    converged(world.db, table)
    eventually(lambda: not world.db.execute(letters, [name]).fetchall())
