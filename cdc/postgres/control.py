"""The control schema: made and migrated forwards, one transaction per migration.

Migrations are the files ``sql/control_NNN.sql``; the version of a database is the newest of them in its
``schema_version`` table.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from cdc.errors import ConfigError, WalvecError
from cdc.postgres import queries
from cdc.postgres.connect import classify


@cache
def known() -> tuple[int, ...]:
    """Return the versions that this walvec has migrations for, oldest first."""
    names = (file.name for file in resources.files("cdc.postgres").joinpath("sql").iterdir())
    return tuple(sorted(int(match[1]) for name in names if (match := re.fullmatch(r"control_(\d{3})\.sql", name))))


def ensure(conn: psycopg.Connection[TupleRow], schema: str) -> list[int]:
    """Bring the control schema up to date and return the versions that were applied, oldest first.

    Args:
        conn: A connection in autocommit mode.
        schema: The schema's name, as in the catalogue.

    Raises:
        ConfigError: The role may not, the schema is a newer walvec's, or it is somebody else's.
        Unavailable: The server went away.
    """
    try:
        _refuse_newer(schema, _version(conn, schema))
        return [version for version in known() if version > _version(conn, schema) and _apply(conn, schema, version)]
    except psycopg.errors.InsufficientPrivilege as exc:
        raise _not_allowed(conn, schema, exc) from exc
    except psycopg.Error as exc:
        raise classify(exc) from exc


def installed_version(conn: psycopg.Connection[TupleRow], schema: str) -> int:
    """Return the version of the control schema, 0 where there is none.

    Raises:
        ConfigError: The role may not read it.
    """
    try:
        return _version(conn, schema)
    except psycopg.Error as exc:
        raise classify(exc) from exc


def require(conn: psycopg.Connection[TupleRow], schema: str) -> None:
    """Check that the control schema is there and of this version, changing nothing.

    Raises:
        ConfigError: It is missing, older or newer.
    """
    version = installed_version(conn, schema)
    if version == 0:
        raise ConfigError(
            f'This database has no control schema "{schema}".', "Run `walvec init` or `walvec run` first."
        )
    if version < known()[-1]:
        raise ConfigError(
            f'The control schema "{schema}" is of an older walvec.', "`walvec init` brings it up to date."
        )
    _refuse_newer(schema, version)


def migration_sql(conn: psycopg.Connection[TupleRow] | None, schema: str) -> str:
    """Return every migration as SQL text, the schema itself not included."""
    parts = (queries.query(f"control_{version:03}", "create", schema=sql.Identifier(schema)) for version in known())
    return "\n\n".join(part.as_string(conn) for part in parts)


def _version(conn: psycopg.Connection[TupleRow], schema: str) -> int:
    # Not to_regclass: it answers from a cache that another session's commit reaches only when a table is locked.
    there = conn.execute(
        "SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = 'schema_version'",
        [schema],
    ).fetchone()
    if there is None:
        return 0
    table = sql.Identifier(schema, "schema_version")
    row = conn.execute(sql.SQL("SELECT max(version) FROM {}").format(table)).fetchone()
    return int(row[0]) if row and row[0] is not None else 0


def _refuse_newer(schema: str, version: int) -> None:
    if version > known()[-1]:
        raise ConfigError(
            f'The control schema "{schema}" is version {version}; this walvec knows versions up to {known()[-1]}.',
            "Upgrade walvec.",
        )


def _refuse_foreign(conn: psycopg.Connection[TupleRow], schema: str) -> None:
    """Refuse a schema that somebody else uses: ours may be dropped as a whole."""
    used = conn.execute(
        "SELECT FROM pg_class WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %s) LIMIT 1", [schema]
    ).fetchone()
    if used is not None:
        raise ConfigError(
            f'The schema "{schema}" holds tables that are not walvec\'s.',
            "Set WALVEC_SCHEMA to the name of a schema of its own.",
        )


def _apply(conn: psycopg.Connection[TupleRow], schema: str, version: int) -> bool:
    """Apply one migration, unless somebody else just did."""
    name = sql.Identifier(schema)
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('walvec control schema ' || %s, 0))", [schema])
        present = _version(conn, schema)
        if present >= version:
            return False
        if present == 0:
            _refuse_foreign(conn, schema)
        # CREATE SCHEMA IF NOT EXISTS asks for the right to create even where a DBA has made the schema already.
        if conn.execute("SELECT FROM pg_namespace WHERE nspname = %s", [schema]).fetchone() is None:
            conn.execute(sql.SQL("CREATE SCHEMA {}").format(name))
        conn.execute(queries.query(f"control_{version:03}", "create", schema=name))
    return True


def _not_allowed(conn: psycopg.Connection[TupleRow], schema: str, exc: psycopg.Error) -> WalvecError:
    row = conn.execute(
        "SELECT current_user::text, current_database()::text, pg_get_userbyid(n.nspowner)::text, EXISTS ("
        " SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname = 'schema_version')"
        " FROM (SELECT) AS one LEFT JOIN pg_namespace n ON n.nspname = %s",
        [schema],
    ).fetchone()
    user, database, owner, made = row if row else ("walvec", "postgres", None, False)
    who, place = sql.Identifier(user), sql.Identifier(schema)
    if owner is None:
        problem = f'may not make the control schema "{schema}"'
        grant = sql.SQL("GRANT CREATE ON DATABASE {} TO {};").format(sql.Identifier(database), who)
        remedy = f"Let a DBA run `walvec init --print-sql`, or run: {grant.as_string(conn)}"
    elif made:  # a migration changes tables, which takes their owner
        problem = f'may not use or migrate the control schema "{schema}", which is the role "{owner}"\'s'
        remedy = f'Connect as "{owner}" or as a role that was granted it, or set WALVEC_SCHEMA to another name.'
    else:
        problem = f'may not make tables in the schema "{schema}", which is the role "{owner}"\'s'
        grant = sql.SQL("GRANT USAGE, CREATE ON SCHEMA {} TO {};").format(place, who)
        remedy = f"Let a DBA run: {grant.as_string(conn)} or set WALVEC_SCHEMA to another name."
    return ConfigError(f'The role "{user}" {problem} ({exc.diag.message_primary}).', remedy)
