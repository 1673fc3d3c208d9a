"""What keeps a consumer from starting: one sentence that says what is wrong and what mends it, and the right status."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from psycopg.conninfo import make_conninfo

from cdc.testing.cluster import Cluster
from cdc.testing.consumer import Consumer
from tests.journeys.conftest import Start
from tests.journeys.journey import Journey, Watched

DOCS = Watched("docs")
TABLE = "CREATE TABLE docs (id int PRIMARY KEY, body text); INSERT INTO docs VALUES (1, 'one');"


def refused(journey: Journey, *words: str, url: str | None = None) -> str:
    """See ``walvec run`` end with status 2 and one sentence that has ``words``; return it."""
    if url is not None:
        journey.use(url)
    done = journey.consumer.command("run", timeout_s=30)
    said = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in said[-1], said
    return said[-1]


@pytest.fixture(scope="module")
def cluster(pg18: Cluster) -> Cluster:
    """One version will do here: `walvec doctor` is tested on both."""
    return pg18


@pytest.fixture(scope="module")
def fresh(cluster: Cluster) -> Iterator[Journey]:
    with Journey(cluster, f"fresh_{secrets.token_hex(4)}") as journey:
        journey.sql(TABLE + "CREATE PUBLICATION walvec FOR TABLE docs")
        yield journey


def test_a_wrong_password(fresh: Journey) -> None:
    said = refused(fresh, "password", "WALVEC_DATABASE_URL", url=make_conninfo(fresh.database.dsn(), password="guess1"))
    assert "guess1" not in said


def test_no_such_role_and_no_such_database(fresh: Journey) -> None:
    refused(fresh, "nobody_here", url=make_conninfo(fresh.database.dsn(), user="nobody_here"))
    refused(fresh, "no_such_db", "does not exist", url=make_conninfo(fresh.database.dsn(), dbname="no_such_db"))


def role(journey: Journey, attributes: str, grants: str = "") -> tuple[str, str]:
    """A new role and the URL to connect as it."""
    name, password = f"r_{secrets.token_hex(4)}", secrets.token_hex(8)
    journey.sql(f"CREATE ROLE {name} LOGIN {attributes} PASSWORD '{password}'")
    if grants:
        journey.sql(grants.format(role=name, database=journey.slot))
    return name, make_conninfo(journey.database.dsn(), user=name, password=password)


def test_a_role_without_replication(fresh: Journey) -> None:
    name, url = role(fresh, "", "GRANT CREATE ON DATABASE {database} TO {role}; GRANT SELECT ON docs TO {role}")
    try:
        refused(fresh, "REPLICATION", url=url)
        assert not fresh.sql("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", [fresh.slot])
    finally:
        fresh.sql(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def test_a_role_that_may_make_no_schema(fresh: Journey) -> None:
    fresh.sql("DROP SCHEMA IF EXISTS walvec CASCADE")
    name, url = role(fresh, "REPLICATION", "GRANT SELECT ON docs TO {role}")
    try:
        said = refused(fresh, "walvec init", url=url)
        assert "schema" in said or "database" in said, said
    finally:
        fresh.sql(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def test_a_role_that_may_make_no_table_beside_the_source(start: Start) -> None:
    journey = start(before=TABLE + "CREATE PUBLICATION walvec FOR TABLE docs", run=False)
    grants = "GRANT CREATE ON DATABASE {database} TO {role}; GRANT SELECT ON docs TO {role}"
    name, url = role(journey, "REPLICATION", grants)
    journey.sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    try:
        journey.use(url)
        journey.consumer.start()
        failed = journey.consumer.wait_for("pipeline_failed")
        assert "ermission denied for schema public" in failed["message"] and "init --print-sql" in failed["message"]
        journey.sql(f"GRANT CREATE ON SCHEMA public TO {name}")
        journey.converge(DOCS, timeout_s=20)
        assert journey.consumer.stop() == 0
    finally:
        journey.forget_role(name)


def test_wal_level_is_not_logical() -> None:
    made = Cluster.create("18", settings={"wal_level": "replica"})
    with made as cluster, Journey(cluster.start(), "plain") as journey:
        journey.sql(TABLE + "CREATE PUBLICATION walvec FOR TABLE docs")
        refused(journey, "wal_level is replica", "ALTER SYSTEM SET wal_level = 'logical'", "restart")


def test_the_database_has_another_encoding(cluster: Cluster) -> None:
    name = f"latin_{secrets.token_hex(4)}"
    with Journey(cluster, name) as journey:
        other = f"{name}_1"
        journey.sql(f"CREATE DATABASE {other} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        try:
            refused(journey, "LATIN1", "UTF8", url=make_conninfo(journey.database.dsn(), dbname=other))
        finally:
            journey.sql(f"DROP DATABASE {other} WITH (FORCE)")


def test_the_server_is_down_at_start_and_then_up(start: Start, cluster: Cluster) -> None:
    journey = start(before=TABLE + "CREATE PUBLICATION walvec FOR TABLE docs", run=False)
    journey.conn.close()
    cluster.stop("fast")
    try:
        journey.consumer.start()
        waiting = journey.consumer.wait_for(lambda e: e["level"] == "warning" and "refused" in str(e.get("message")))
        assert "WALVEC_DATABASE_URL" in waiting["message"]
        assert journey.consumer.process.poll() is None
    finally:
        cluster.start()
        journey.reconnect()
    journey.converge(DOCS, timeout_s=15)
    assert journey.consumer.stop() == 0


def test_a_consumer_that_waits_for_the_server_ends_at_once_when_told(start: Start, cluster: Cluster) -> None:
    consumer = Consumer("postgresql://postgres:x@127.0.0.1:1/none")
    with consumer:
        consumer.wait_for(lambda e: e["level"] == "warning")
        assert consumer.stop(timeout_s=5) == 0
