"""Connection parameters and the meaning of failures, without a server."""

from dataclasses import dataclass

import psycopg
import pytest
from psycopg import errors

from cdc.errors import (
    ConfigError,
    PipelineFault,
    PublicationMissing,
    SlotInUse,
    SlotLost,
    Unavailable,
    WalvecError,
)
from cdc.postgres.connect import REPLICATION, classify, connect_sync, connection_params, parse_dsn, redact_dsn


@dataclass(frozen=True)
class Where:
    database_url: str = ""
    slot: str = "walvec"


@pytest.fixture(autouse=True)
def no_ambient(monkeypatch):
    for name in ("PGOPTIONS", "PGHOST", "PGTARGETSESSIONATTRS", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)


def test_replication_connection_is_named_as_the_slot_exactly():
    params = connection_params(Where(slot="s_1"), REPLICATION)
    assert (params["application_name"], params["replication"]) == ("s_1", "database")


def test_other_sessions_name_their_role_and_never_replicate():
    params = connection_params(Where("postgresql://h/db?replication=database&application_name=x"), "writer")
    assert params["application_name"] == "walvec/writer"
    assert "replication" not in params


@pytest.mark.parametrize("how", ["url", "environment"])
def test_the_users_own_options_are_kept_and_ours_come_last(how, monkeypatch):
    url = "postgresql://h/db"
    if how == "url":
        url += "?options=-c%20work_mem%3D5MB%20-c%20row_security%3Don"
    else:
        monkeypatch.setenv("PGOPTIONS", "-c work_mem=5MB -c row_security=on")
    options = connection_params(Where(url), "x")["options"]
    assert options.startswith("-c work_mem=5MB -c row_security=on -c row_security=off -c search_path= ")
    assert r"default_transaction_isolation=read\ committed" in options


def test_a_users_timeout_wins_over_the_default():
    assert connection_params(Where("host=h connect_timeout=3"), "x")["connect_timeout"] == "3"
    assert connection_params(Where("host=h"), "x")["keepalives_idle"] == 10


def test_several_hosts_ask_for_the_primary_unless_told_otherwise(monkeypatch):
    assert connection_params(Where("postgresql://a,b/db"), "x")["target_session_attrs"] == "read-write"
    asked = connection_params(Where("postgresql://a,b/db?target_session_attrs=any"), "x")
    assert asked["target_session_attrs"] == "any"
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "primary")
    assert "target_session_attrs" not in connection_params(Where("postgresql://a,b/db"), "x")


@pytest.mark.parametrize("dsn", ["hunter2", "postgresql://u:hunter2@[h/db", "postgresql://u:x@hunter2:1@h/db"])
def test_an_unreadable_url_is_refused_without_repeating_it(dsn):
    with pytest.raises(ConfigError) as caught:
        parse_dsn(dsn)
    assert "hunter2" not in str(caught.value)


def test_redaction_hides_every_secret_part():
    shown = redact_dsn("postgresql://u:hunter2@h:5/db?sslpassword=hunter2&sslmode=require")
    assert "hunter2" not in shown
    assert "host=h" in shown and "sslmode=require" in shown
    assert redact_dsn("hunter2") == "***"
    assert redact_dsn("") == ""


@pytest.mark.parametrize(
    ("text", "kind", "holds"),
    [
        ('FATAL: password authentication failed for user "u"', ConfigError, "password"),
        ("fe_sendauth: no password supplied", ConfigError, "password"),
        ('FATAL: no pg_hba.conf entry for host "1.2.3.4"', ConfigError, "pg_hba.conf"),
        ('FATAL: database "x" does not exist', ConfigError, "database"),
        ("server does not support SSL, but SSL was required", ConfigError, "sslmode"),
        ("FATAL: unsupported startup parameter: options", ConfigError, "pooler"),
        ("connection failed: refused\n\tIs the server running on that host?", Unavailable, "Start the server"),
        ("FATAL: the database system is starting up", Unavailable, "starting"),
        ("server closed the connection unexpectedly", Unavailable, "closed"),
    ],
)
def test_failures_to_connect_are_told_apart_by_what_mends_them(text, kind, holds):
    found = classify(psycopg.OperationalError(text))
    assert type(found) is kind
    assert holds in str(found)
    assert "\n" not in str(found)


def test_a_piece_of_a_badly_escaped_url_is_not_repeated():
    assert "hunter2" not in str(classify(psycopg.OperationalError('invalid integer value "hunter2" for "port"')))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.InvalidPassword, ConfigError),
        (errors.InvalidAuthorizationSpecification, ConfigError),
        (errors.InvalidCatalogName, ConfigError),
        (errors.InsufficientPrivilege, ConfigError),
        (errors.ConfigurationLimitExceeded, ConfigError),
        (errors.ObjectInUse, SlotInUse),
        (errors.AdminShutdown, Unavailable),
        (errors.CannotConnectNow, Unavailable),
        (errors.ConnectionFailure, Unavailable),
        (errors.TooManyConnections, Unavailable),
        (errors.DiskFull, Unavailable),
        (errors.SerializationFailure, Unavailable),
        (errors.DeadlockDetected, Unavailable),
        (errors.ReadOnlySqlTransaction, Unavailable),
        (errors.UndefinedColumn, PipelineFault),
        (errors.UniqueViolation, PipelineFault),
        (errors.InternalError_, WalvecError),
    ],
)
def test_sqlstates_are_told_apart(error, kind):
    assert type(classify(error("x"))) is kind


def test_values_of_rows_are_not_repeated():
    assert "hunter2" not in str(classify(errors.InvalidTextRepresentation('invalid input: "hunter2"')))


@pytest.mark.parametrize(
    ("state", "line", "kind"),
    [
        ("55000", 'logical decoding requires "wal_level" >= "logical"', ConfigError),
        ("42501", 'query would be affected by row-level security policy for table "t"', ConfigError),
        ("55000", 'can no longer access replication slot "s"', SlotLost),
        ("42704", 'replication slot "s" does not exist', SlotLost),
        ("42704", 'publication "p" does not exist', PublicationMissing),
    ],
)
def test_words_of_the_replication_protocol(state, line, kind):
    from cdc.postgres.connect import _classify_state

    assert type(_classify_state(state, line)) is kind


def test_an_unknown_service_is_a_wrong_setting_and_no_server_that_is_away(monkeypatch, tmp_path):
    for name in ("nowhere", "pg_service.conf"):
        monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / name))
        if name != "nowhere":
            (tmp_path / name).write_text("[other]\nhost=h\n")
        with pytest.raises(ConfigError, match="WALVEC_DATABASE_URL"):
            connect_sync(Where("service=nosuch"), "x")
