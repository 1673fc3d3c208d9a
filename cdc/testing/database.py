"""One database of a test server."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import psycopg
from psycopg import sql

from cdc.testing.binaries import ClusterError

if TYPE_CHECKING:
    from cdc.testing.cluster import Cluster

DROP_TIMEOUT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Database:
    """A database and the cluster that holds it."""

    cluster: Cluster
    name: str

    @classmethod
    def create(cls, cluster: Cluster, name: str, template: str = "template1") -> Self:
        """Make a database; any name is fine, it is quoted."""
        with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
            query = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(query.format(sql.Identifier(name), sql.Identifier(template)))
        return cls(cluster, name)

    @property
    def url(self) -> str:
        """``postgresql://`` URL, as the superuser."""
        return self.cluster.url(self.name)

    def dsn(self, **parameters: Any) -> str:
        """A libpq connection string as the superuser; ``parameters`` are added or win."""
        return self.cluster.dsn(self.name, **parameters)

    def connect(self, **parameters: Any) -> psycopg.Connection[Any]:
        """A new connection in autocommit mode; ``parameters`` are libpq's."""
        return psycopg.connect(self.dsn(**parameters), autocommit=True)

    def drop(self) -> None:
        """Remove the database with whatever still uses it: its sessions, and its replication slots.

        Raises:
            ClusterError: a consumer that takes a slot again and again was not stopped.
        """
        with psycopg.connect(self.cluster.dsn(), autocommit=True) as connection:
            deadline = time.monotonic() + DROP_TIMEOUT_S
            while not _drop_slots(connection, self.name):
                if time.monotonic() > deadline:
                    raise ClusterError(f"A replication slot of database {self.name} is still in use.")
                time.sleep(0.01)
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(self.name)))


def _drop_slots(connection: psycopg.Connection[Any], database: str) -> bool:
    """Try to drop every slot of ``database``; whether there was none left."""
    slots = connection.execute(
        "SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = %s", (database,)
    ).fetchall()
    for slot, holder in slots:
        if holder is not None:
            connection.execute("SELECT pg_terminate_backend(%s)", (holder,))
            continue
        try:
            connection.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
        except (psycopg.errors.ObjectInUse, psycopg.errors.UndefinedObject):
            continue  # somebody was faster; the next look tells
    return not slots
