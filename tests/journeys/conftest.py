from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Protocol

import pytest
from psycopg.conninfo import make_conninfo

from cdc.testing.cluster import Cluster
from tests.journeys.journey import Journey


class Start(Protocol):
    """Makes a journey, runs ``before``, makes the publication and starts the consumer."""

    def __call__(
        self, publication: str = "", *, before: str = "", role: str = "", run: bool = True, **settings: str
    ) -> Journey: ...


@pytest.fixture(scope="module")
def shared(cluster: Cluster) -> Iterator[Journey]:
    """A consumer that all tests of a module give tables to. At the end `walvec verify` must find every one equal."""
    with Journey(cluster, f"shared_{secrets.token_hex(4)}") as journey:
        journey.sql("CREATE PUBLICATION walvec WITH (publish_via_partition_root = true)")
        journey.run()
        yield journey
        journey.consumer.sync()
        journey.verified()
        assert journey.consumer.stop() == 0


@pytest.fixture
def start(cluster: Cluster) -> Iterator[Start]:
    """Databases with consumers for one test alone."""
    with ExitStack() as stack:

        def make(
            publication: str = "", *, before: str = "", role: str = "", run: bool = True, **settings: str
        ) -> Journey:
            """``role``: a new role of this name, with no more than it needs, runs the consumer."""
            journey = stack.enter_context(Journey(cluster, f"j_{secrets.token_hex(4)}", **settings))
            if role:
                password = secrets.token_hex(8)
                journey.sql(f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD '{password}'")
                journey.sql(f"GRANT CREATE ON DATABASE {journey.slot} TO {role}")
                journey.sql(f"GRANT CREATE ON SCHEMA public TO {role}")
                stack.callback(journey.forget_role, role)
                journey.use(make_conninfo(journey.database.dsn(), user=role, password=password))
            if before:
                journey.sql(before)
            if publication:
                journey.sql(publication)
            return journey.run() if run else journey

        yield make
