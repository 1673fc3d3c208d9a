"""Each requirement is broken on purpose, on both servers, and its code must report it."""

import contextlib
import secrets
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from cdc import config
from cdc.postgres import doctor, doctor_facts, doctor_server, setup
from cdc.postgres.doctor_facts import Facts

ROLE = "doctor_role"


@pytest.fixture
def settings(database):
    name = f"s_{secrets.token_hex(4)}"
    return config.load({"WALVEC_DATABASE_URL": database.dsn(), "WALVEC_SLOT": name})


@pytest.fixture
def articles(db):
    db.execute("CREATE TABLE articles (id int PRIMARY KEY, title text, body text)")
    db.execute("CREATE PUBLICATION walvec FOR TABLE articles WITH (publish_via_partition_root = true)")
    return db


def as_role(settings, database, attributes="LOGIN REPLICATION"):
    """Return settings that connect as a bare role with a password."""
    role, password = f"{ROLE}_{secrets.token_hex(4)}", secrets.token_hex(8)
    with database.connect() as conn:
        conn.execute(
            sql.SQL("CREATE ROLE {} PASSWORD {} ").format(sql.Identifier(role), password) + sql.SQL(attributes)
        )
    flags = {"database_url": database.dsn(user=role, password=password), "slot": settings.slot}
    return config.load({}, flags), role


def found(settings, code):
    return [finding for finding in doctor.examine(settings) if finding.code == code]


def statuses(settings, code):
    return [finding.status for finding in found(settings, code)]


def test_a_well_prepared_database_has_no_failure_and_no_unexpected_warning(articles, settings):
    setup.init(settings, [], say=lambda _: None, warn=pytest.fail)
    findings = doctor.examine(settings)
    assert {f.code for f in findings} == {check.code for check in doctor.CHECKS}
    bad = {f.code: f.what for f in findings if f.status not in ("ok", "skip")}
    # no keep size limit; the distribution's minor release; no pgvector there
    assert set(bad) <= {"WV055", "WV003", "WV040"}, bad
    assert doctor.exit_code(findings) == 1


def test_nothing_is_changed(articles, settings, db):
    census = "SELECT count(*), (SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s) FROM pg_class"
    before = db.execute(census, [settings.slot]).fetchone()
    doctor.examine(settings)
    assert db.execute(census, [settings.slot]).fetchone() == before
    with psycopg.connect(settings.database_url, autocommit=True) as conn:
        Facts(conn, settings)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            conn.execute("CREATE TABLE t ()")


def test_an_unreachable_server_is_one_finding_and_no_secret():
    settings = config.load({"WALVEC_DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/db"})
    findings = doctor.examine(settings)
    assert [(f.code, f.status) for f in findings] == [("WV001", "fail")]
    assert doctor.exit_code(findings) == 2
    assert "hunter2" not in repr(findings)


def test_a_check_that_fails_itself_is_reported_and_stops_no_other(articles, settings, db, database):
    limited, _ = as_role(settings, database)
    db.execute("CREATE SCHEMA walvec; CREATE TABLE walvec.schema_version (version int)")
    findings = {f.code: f for f in doctor.examine(limited)}
    assert findings["WV011"].status == "fail"
    assert findings["WV058"].status == "skip"


def test_missing_publication(db, settings):
    assert statuses(settings, "WV020") == ["fail"]
    assert statuses(settings, "WV030") == ["skip"]
    assert 'CREATE PUBLICATION "walvec"' in found(settings, "WV020")[0].fix


BREAKAGES = {
    "WV021": ("ALTER PUBLICATION walvec SET (publish = 'insert')", "fail"),
    "WV023": ("ALTER PUBLICATION walvec DROP TABLE articles", "warn"),
    "WV026": ("ALTER PUBLICATION walvec SET TABLE articles (title)", "fail"),
    "WV027": (
        "ALTER TABLE articles ADD shout text GENERATED ALWAYS AS (upper(body)) STORED",
        "warn",
    ),
    "WV031": ("ALTER PUBLICATION walvec SET TABLE articles (id)", "fail"),
    "WV051": ("SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')", "fail"),
    "WV025": ("ALTER PUBLICATION walvec SET TABLE articles WHERE (title <> 'draft')", "fail"),
}


@pytest.mark.parametrize("code", BREAKAGES)
def test_each_breakage_is_reported_under_its_code(articles, settings, code):
    statement, status = BREAKAGES[code]
    assert statuses(settings, code) in (["ok"], ["skip"])
    articles.execute(statement.format(slot=settings.slot))
    (finding,) = found(settings, code)
    assert finding.status == status
    assert finding.what and finding.why and finding.fix


def test_a_row_filter_on_the_key_is_fine(articles, settings):
    articles.execute("ALTER PUBLICATION walvec SET TABLE articles WHERE (id > 5)")
    assert statuses(settings, "WV025") == ["ok"]


@pytest.mark.parametrize(
    ("statement", "status", "fix"),
    [
        (
            "ALTER TABLE articles DROP CONSTRAINT articles_pkey",
            "fail",
            'TABLE "public"."articles" ADD PRIMARY KEY',
        ),
        ("ALTER TABLE articles REPLICA IDENTITY NOTHING", "fail", "REPLICA IDENTITY DEFAULT"),
        ("ALTER TABLE articles REPLICA IDENTITY FULL", "warn", "REPLICA IDENTITY DEFAULT"),
    ],
)
def test_replica_identity(articles, settings, statement, status, fix):
    articles.execute(statement)
    (finding,) = found(settings, "WV030")
    assert finding.status == status and fix in finding.fix


def test_replica_identity_full_with_a_column_list_is_a_failure(articles, settings):
    articles.execute("ALTER TABLE articles REPLICA IDENTITY FULL")
    articles.execute("ALTER PUBLICATION walvec SET TABLE articles (id, body)")
    assert statuses(settings, "WV026") == ["fail"]


def test_partitions_published_one_by_one(articles, settings):
    articles.execute("CREATE TABLE parts (id int PRIMARY KEY, body text) PARTITION BY RANGE (id)")
    articles.execute("CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10)")
    articles.execute("ALTER PUBLICATION walvec ADD TABLE parts")
    assert statuses(settings, "WV022") == ["ok"]
    articles.execute("ALTER PUBLICATION walvec SET (publish_via_partition_root = false)")
    assert statuses(settings, "WV022") == ["warn"]


def test_publishing_everything_is_a_loop(articles, settings):
    setup.init(settings, [], say=lambda _: None, warn=pytest.fail)
    articles.execute("DROP PUBLICATION walvec")
    articles.execute("CREATE PUBLICATION walvec FOR ALL TABLES")
    assert statuses(settings, "WV024") == ["warn"]


def test_a_bare_role_is_told_every_grant(articles, settings, database):
    limited, role = as_role(settings, database, "LOGIN NOREPLICATION")
    for code in ("WV010", "WV011", "WV032", "WV034"):
        assert statuses(limited, code) == ["fail"], code
    articles.execute(f"GRANT SELECT ON articles TO {role}; GRANT CREATE ON SCHEMA public TO {role}")
    articles.execute(f"ALTER ROLE {role} REPLICATION; GRANT CREATE ON DATABASE {database.name} TO {role}")
    for code in ("WV010", "WV011", "WV032", "WV034"):
        assert statuses(limited, code) == ["ok"], code


def test_column_grants_are_enough(articles, settings, database):
    limited, role = as_role(settings, database)
    articles.execute("ALTER PUBLICATION walvec SET TABLE articles (id, body)")
    articles.execute(f"GRANT SELECT (id, body) ON articles TO {role}")
    assert statuses(limited, "WV032") == ["ok"]


def test_row_level_security_that_applies_to_us(articles, settings, database):
    limited, role = as_role(settings, database)
    articles.execute(f"GRANT SELECT ON articles TO {role}")
    assert statuses(limited, "WV033") == ["ok"]
    articles.execute("ALTER TABLE articles ENABLE ROW LEVEL SECURITY")
    assert statuses(limited, "WV033") == ["fail"]
    articles.execute(f"ALTER ROLE {role} BYPASSRLS")
    assert statuses(limited, "WV033") == ["ok"]


def test_another_reader_of_the_slot_is_named(articles, settings, database):
    articles.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [settings.slot])
    dsn = database.dsn(replication="database", application_name="thief")
    with contextlib.closing(psycopg.connect(dsn, autocommit=True)) as thief:
        start = "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names 'walvec')"
        thief.execute(start.format(settings.slot))
        (finding,) = found(settings, "WV052")
    assert finding.status == "warn" and "thief" in finding.what


def test_a_prepared_transaction_and_an_old_one_are_named_by_age(articles, settings, database, monkeypatch):
    monkeypatch.setattr(doctor_facts, "LONG_S", 0)
    name = f"px_{secrets.token_hex(4)}"
    with database.connect() as other:
        other.execute("BEGIN; INSERT INTO articles VALUES (1)")
        assert f"pid {other.info.backend_pid}" in found(settings, "WV013")[0].what
        other.execute(f"PREPARE TRANSACTION '{name}'")
    try:
        assert name in found(settings, "WV014")[0].what
    finally:
        articles.execute(f"ROLLBACK PREPARED '{name}'")


def test_a_destination_of_another_dimension_is_a_failure(database18):
    slot = f"s_{secrets.token_hex(4)}"
    settings = config.load({"WALVEC_DATABASE_URL": database18.dsn(), "WALVEC_SLOT": slot})
    with database18.connect() as db:
        db.execute("CREATE TABLE a (id int PRIMARY KEY, body text); CREATE PUBLICATION walvec FOR TABLE a")
        setup.init(settings, [], say=lambda _: None, warn=pytest.fail)
        db.execute(
            "CREATE TABLE a_embeddings"
            " (id int, chunk int, embedding vector(2500), source_hash bytea, source_lsn pg_lsn)"
        )
        pipeline = db.execute(
            "INSERT INTO walvec.pipelines"
            " (name, slot, source_schema, source_table, target_schema, target_table, dimension)"
            " VALUES ('public.a', %s, 'public', 'a', 'public', 'a_embeddings', 384) RETURNING id",
            [slot],
        ).fetchone()
        db.execute("INSERT INTO walvec.progress (pipeline_id, state, reason) VALUES (%s, 'error', 'broken')", pipeline)
    assert sorted(statuses(settings, "WV042")) == ["fail", "warn"]
    assert statuses(settings, "WV043") == ["warn"]


def test_server_settings_are_judged(settings, db):
    class Fake(Facts):
        def __init__(self, parameters, server):
            self.parameters, self.server, self.slot = parameters, server, None
            self.settings = settings

    good: dict[str, object] = {
        "wal_level": "logical", "max_replication_slots": "10", "max_wal_senders": "10", "wal_sender_timeout": "60000",
        "logical_decoding_work_mem": "65536", "output_plugin_libraries": 'pgoutput, "x"',
        "max_slot_wal_keep_size": "100",
        "idle_replication_slot_timeout": "0",
    }  # fmt: skip
    server: dict[str, object] = {"slots": 0, "walsenders": 0, "in_recovery": False, "encoding": "UTF8",
              "skew_s": 0.0, "version": 180006,
              "version_text": "18.6"}  # fmt: skip
    wrong: dict[str, tuple[dict, dict]] = {
        "WV004": ({"wal_level": "replica"}, {}),
        "WV005": ({}, {"slots": 10}),
        "WV006": ({}, {"walsenders": 10}),
        "WV007": ({"output_plugin_libraries": "test_decoding"}, {}),
        "WV008": ({}, {"in_recovery": True}),
        "WV009": ({}, {"encoding": "SQL_ASCII"}),
        "WV012": ({}, {"skew_s": -3600.0}),
        "WV015": ({"logical_decoding_work_mem": "1024"}, {}),
        "WV016": ({"wal_sender_timeout": "0"}, {}),
        "WV055": ({"max_slot_wal_keep_size": "-1"}, {}),
        "WV057": ({"idle_replication_slot_timeout": "3600"}, {}),
    }
    looks = {check.code: check.look for check in doctor.CHECKS}
    for code, (parameters, facts) in wrong.items():
        assert list(looks[code](Fake(good, server))) == [], code
        assert len(list(looks[code](Fake(good | parameters, server | facts)))) == 1, code
    for version, expected in ((130020, 1), (150018, 1), (150019, 0), (180006, 0), (190000, 0)):
        assert len(list(looks["WV003"](Fake(good, server | {"version": version})))) == expected, version
    assert doctor_server.SKEW_S < 3600


def test_slots_are_judged(settings):
    class Fake(Facts):
        def __init__(self, slot, server=None):
            self.slot, self.server, self.settings = slot, server or {"standbys": True}, settings
            self.parameters = {"max_slot_wal_keep_size": "1000"}

    good: dict[str, object] = {
        "plugin": "pgoutput", "database": "d", "here": "d", "temporary": False, "active": False, "holder": None,
        "wal_status": "reserved", "safe_wal_size": 900 << 20, "failover": True, "retained": 0, "active_pid": None,
    }  # fmt: skip
    wrong: dict[str, list[dict]] = {
        "WV051": [{"plugin": None}, {"database": "other"}, {"temporary": True}],
        "WV052": [{"active": True, "holder": "thief"}],
        "WV053": [{"wal_status": "lost"}, {"wal_status": "unreserved"}, {"invalidation_reason": "idle_timeout"}],
        "WV054": [{"safe_wal_size": 100 << 20}],
        "WV056": [{"failover": False}],
        "WV058": [{"retained": 2 << 30}],
    }
    looks = {check.code: check.look for check in doctor.CHECKS}
    for code, changes in wrong.items():
        assert list(looks[code](Fake(good))) == [], code
        for change in changes:
            assert len(list(looks[code](Fake(good | change)))) == 1, (code, change)


def test_codes_are_unique_and_every_one_is_documented():
    codes = [check.code for check in doctor.CHECKS]
    assert len(codes) == len(set(codes))
    page = Path(config.__file__).parents[1] / "docs" / "doctor.md"
    assert page.read_text("utf-8") == doctor.markdown(), "python -m cdc.postgres.doctor > docs/doctor.md"
    for code in codes:
        assert f"## {code}\n" in page.read_text("utf-8")
