"""What any consumer needs of a server, whatever it follows there."""

from __future__ import annotations

import psycopg
from psycopg.rows import TupleRow

from cdc.errors import ConfigError, Unavailable
from cdc.postgres.queries import bound


def check_server(connection: psycopg.Connection[TupleRow]) -> None:
    """Refuse a server or a database whose changes cannot be followed.

    Raises:
        ConfigError: the server is too old, its wal_level too low, or the database's encoding is not UTF8.
        Unavailable: it is a standby.
    """
    info = connection.info
    if info.server_version < 140000:
        raise ConfigError(f"The server is PostgreSQL {info.server_version // 10000}; walvec needs 14 or newer.")
    row = connection.execute(bound("registry", "server")).fetchone()
    wal_level, encoding, recovering = row if row else ("", "", False)
    if recovering:
        raise Unavailable("The server is a standby; walvec follows the primary.", "Point WALVEC_DATABASE_URL at it.")
    if wal_level != "logical":
        raise ConfigError(
            f"The server's wal_level is {wal_level}; logical replication needs logical.",
            "ALTER SYSTEM SET wal_level = 'logical'; then restart PostgreSQL.",
        )
    if encoding != "UTF8":
        raise ConfigError(
            f"The database's encoding is {encoding}; walvec hashes text as UTF-8 and needs a UTF8 database.",
            "Create the database with ENCODING 'UTF8'.",
        )
