"""Publication, slot and control schema: made once, in the right order, refused with a remedy."""

import secrets
import subprocess
import threading

import psycopg
import pytest
from psycopg import sql

from cdc import config
from cdc.errors import ConfigError
from cdc.postgres import control, queries, setup
from cdc.postgres.connect import connect_sync
from cdc.rows import Table

ODD = 'Odd "50% {schema}'


def refused(call, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def init(settings, *tables, warn=pytest.fail):
    lines: list[str] = []
    setup.init(settings, [setup.parse_table(table) for table in tables], say=lines.append, warn=warn)
    return lines


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("articles", Table("public", "articles")),
        ("Blog.Articles", Table("blog", "articles")),
        ('"Blog.x"."A ""b"""', Table("Blog.x", 'A "b"')),
    ],
)
def test_tables_are_named_as_in_sql(text, table):
    assert setup.parse_table(text) == table


@pytest.mark.parametrize("text", ["", "a.b.c", '"open', "a.", ".a", '""', '"a"b'])
def test_what_is_no_table_name_is_refused(text):
    assert "not a table's name" in refused(setup.parse_table, text)


def test_init_makes_everything_once(db, settings):
    db.execute("CREATE TABLE a (id int PRIMARY KEY, body text)")
    first, second = init(settings, "a"), init(settings)
    assert [line.split()[0] for line in first if "pgvector" not in line and "vector" not in line] == ["Made"] * 3
    assert not any(line.startswith("Made") for line in second)
    row = db.execute("SELECT slot, publication, state FROM walvec.slots").fetchone()
    assert row == (settings.slot, "walvec", "stopped")
    assert db.execute("SELECT pubviaroot FROM pg_publication").fetchone() == (True,)
    plugin, failover = db.execute(
        "SELECT plugin, to_jsonb(s) -> 'failover' FROM pg_replication_slots s WHERE slot_name = %s", [settings.slot]
    ).fetchone()
    assert (plugin, failover) == ("pgoutput", True if db.info.server_version >= 170000 else None)


def test_the_publication_is_older_than_the_slot(db, settings):
    db.execute("CREATE TABLE a (id int PRIMARY KEY, body text)")
    init(settings, "a")
    db.execute("INSERT INTO a VALUES (1, 'x')")
    changes = db.execute(
        "SELECT count(*) FROM pg_logical_slot_get_binary_changes(%s, NULL, NULL, 'proto_version', '1',"
        " 'publication_names', 'walvec')",
        [settings.slot],
    ).fetchone()
    assert changes[0] >= 3  # begin, relation, insert, …: nothing says that the publication does not exist


def test_a_missing_publication_without_a_table_is_refused_with_the_statement(db, settings):
    message = refused(init, settings)
    assert '"walvec" does not exist' in message and "walvec init --table" in message
    assert 'CREATE PUBLICATION "walvec" FOR TABLE' in message
    assert db.execute("SELECT FROM pg_replication_slots WHERE slot_name = %s", [settings.slot]).fetchone() is None


@pytest.mark.parametrize(
    ("make", "says"),
    [
        ("SELECT", "There is no table"),
        ("CREATE TABLE a (body text)", "no primary key"),
        ("CREATE TABLE a (id int PRIMARY KEY); ALTER TABLE a REPLICA IDENTITY NOTHING", "no primary key"),
        ("CREATE UNLOGGED TABLE a (id int PRIMARY KEY)", "not an ordinary logged table"),
        ("CREATE VIEW a AS SELECT 1", "not an ordinary logged table"),
    ],
)
def test_a_table_that_cannot_be_followed_is_refused_before_anything_is_made(db, settings, make, says):
    db.execute(make)
    assert says in refused(init, settings, "a")
    assert db.execute("SELECT count(*) FROM pg_publication").fetchone() == (0,)


def test_a_table_that_an_existing_publication_lacks_is_named(db, settings):
    db.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION walvec FOR TABLE a; CREATE TABLE b (id int)")
    assert 'ALTER PUBLICATION "walvec" ADD TABLE "public"."b";' in refused(init, settings, "b")


def test_a_slot_of_another_kind_is_refused(db, settings):
    db.execute("CREATE TABLE a (id int PRIMARY KEY)")
    db.execute("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", [settings.slot])
    assert "test_decoding" in refused(init, settings, "a")


def test_whom_the_slot_waits_for_is_named(db, settings, database):
    db.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION walvec FOR TABLE a")
    warned = []
    told = threading.Event()

    def warn(line):
        warned.append(line)
        told.set()

    with database.connect() as writer:
        pid = writer.info.backend_pid
        writer.execute("BEGIN; INSERT INTO a VALUES (1)")
        maker = threading.Thread(target=init, args=(settings,), kwargs={"warn": warn})
        maker.start()
        try:
            assert told.wait(30)
        finally:
            writer.execute("ROLLBACK")
            maker.join(30)
    assert f"pid {pid} " in warned[0]
    assert not maker.is_alive()
    assert db.execute("SELECT FROM pg_replication_slots WHERE slot_name = %s", [settings.slot]).fetchone() is not None


def test_the_printed_sql_is_runnable_and_enough_for_a_bare_role(db, database, cluster):
    role, password, slot = f"wal role {secrets.token_hex(3)}", secrets.token_hex(8), f"s_{secrets.token_hex(4)}"
    db.execute(sql.SQL("CREATE ROLE {} LOGIN REPLICATION PASSWORD {}").format(sql.Identifier(role), password))
    db.execute('CREATE TABLE "A ""t" ("I d" int PRIMARY KEY, body text)')
    flags = {"schema": ODD, "publication": "Pub's", "slot": slot}
    settings = config.load({}, {**flags, "database_url": database.dsn(user=role, password=password)})
    text = setup.print_sql(settings, role, [Table("public", 'A "t')])
    psql = [cluster.bin("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", database.dsn()]
    done = subprocess.run(psql, input=text, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert not any(line.startswith("Made") for line in init(settings, '"A ""t"'))
    with connect_sync(settings, "test") as conn:
        assert control.installed_version(conn, ODD) == control.known()[-1]
        conn.execute('SELECT * FROM public."A ""t"')
    db.execute("SELECT pg_drop_replication_slot(%s)", [slot])


def test_printing_sql_needs_no_server():
    settings = config.load({"WALVEC_DATABASE_URL": "postgresql://u@127.0.0.1:1/db"})
    text = setup.print_sql(settings, "u", [])
    assert '-- CREATE PUBLICATION "walvec" FOR TABLE …' in text
    assert "-- GRANT SELECT" in text and "CREATE SCHEMA" in text


def test_a_role_that_may_not_is_told_the_grant(db, database, settings):
    role, password = f"r_{secrets.token_hex(4)}", secrets.token_hex(8)
    db.execute(sql.SQL("CREATE ROLE {} LOGIN REPLICATION PASSWORD {}").format(sql.Identifier(role), password))
    db.execute("CREATE TABLE a (id int PRIMARY KEY)")
    limited = config.load({}, {"database_url": database.dsn(user=role, password=password), "slot": settings.slot})
    assert "Let the tables' owner run: CREATE PUBLICATION" in refused(init, limited, "a")
    db.execute("CREATE PUBLICATION walvec FOR TABLE a")
    assert f'GRANT CREATE ON DATABASE "{database.name}" TO "{role}";' in refused(init, limited)


@pytest.mark.parametrize(
    ("made", "says"), [(False, 'GRANT USAGE, CREATE ON SCHEMA "walvec" TO "{}"'), (True, 'Connect as "postgres"')]
)
def test_a_control_schema_of_another_role_is_told_as_that(db, database, made, says):
    role = f"r_{secrets.token_hex(4)}"
    db.execute(f"CREATE ROLE {role}; CREATE SCHEMA walvec")
    if made:
        control.ensure(db, "walvec")
        db.execute("DELETE FROM walvec.schema_version WHERE version > 1")
    db.execute(f"SET ROLE {role}")
    said = refused(control.ensure, db, "walvec")
    assert says.format(role) in said and "DATABASE" not in said, said


def test_migrations_are_applied_once_by_whoever_is_first(database, settings):
    applied = []

    def ensure():
        with connect_sync(settings, "test") as conn:
            applied.append(control.ensure(conn, ODD))

    threads = [threading.Thread(target=ensure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(version for mine in applied for version in mine) == list(control.known())


def test_a_newer_schema_is_refused_and_left_alone(db):
    control.ensure(db, "walvec")
    db.execute("INSERT INTO walvec.schema_version VALUES (999)")
    for call in (control.ensure, control.require):
        assert "Upgrade walvec" in refused(call, db, "walvec")


def test_a_schema_with_somebody_elses_tables_is_refused(db):
    db.execute("CREATE TABLE public.theirs (id int)")
    assert "WALVEC_SCHEMA" in refused(control.ensure, db, "public")


def test_a_migration_that_fails_leaves_nothing(db, monkeypatch):
    real = queries.query
    broken = lambda *args, **parts: sql.Composed([real(*args, **parts), sql.SQL("; SELECT 1/0")])  # noqa: E731
    monkeypatch.setattr(queries, "query", broken)
    with pytest.raises(Exception, match="SQLSTATE 22012"):
        control.ensure(db, "walvec")
    assert db.execute("SELECT FROM pg_namespace WHERE nspname = 'walvec'").fetchone() is None


def test_a_missing_schema_is_named_with_the_command(db):
    assert "walvec init" in refused(control.require, db, "walvec")


def test_dead_letters_are_not_for_everybody(articles):
    role = f"r_{secrets.token_hex(4)}"
    articles.execute(f"CREATE ROLE {role}; GRANT USAGE ON SCHEMA walvec TO {role}; SET ROLE {role}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        articles.execute("SELECT * FROM walvec.dead_letters")
