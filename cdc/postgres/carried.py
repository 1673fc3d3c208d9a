"""The publication of the jobs: which tables it carries, and which of their columns.

It names the key and the columns that some job reads, where the server can (PostgreSQL 15): so the vectors that jobs
write back do not come through the WAL again. A list is only ever made longer: to change one renews the table's place in
the publication, and all of the table's pipelines are compared by hash for it.
"""

from __future__ import annotations

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from cdc.errors import ConfigError
from cdc.postgres import expressions
from cdc.postgres.queries import bound
from cdc.postgres.setup import SetupSettings
from cdc.rows import Table

Conn = psycopg.Connection[TupleRow]

COLUMN_LISTS_SINCE = 150000


def carry(conn: Conn, settings: SetupSettings, table: Table) -> None:
    """Have the publication carry what the attached pipelines of ``table`` read, making it where it is missing.

    Raises:
        ConfigError: the role may not.
    """
    try:
        _ensure_publication(conn, settings)
        _ensure_member(conn, settings, table)
    except psycopg.errors.InsufficientPrivilege as exc:
        publication = settings.publication
        raise ConfigError(
            f'This role may not have the publication "{publication}" carry {table} ({exc.diag.message_primary}).',
            f'Connect as the owner of the table, or let it run: ALTER PUBLICATION "{publication}" ADD TABLE '
            f"{expressions.identifier(table).as_string(conn)};",
        ) from exc


def drop_unused(conn: Conn, settings: SetupSettings, table: Table) -> None:
    """Have the publication carry ``table`` no more, if no attached pipeline reads it."""
    params = _params(settings, table)
    used = conn.execute(_statement(settings, "attached"), params).fetchone()
    member = conn.execute(bound("job_pipelines", "member"), params).fetchone()
    if used is None and member is not None and member[0]:
        _alter(conn, settings, "DROP", table, None)


def _ensure_publication(conn: Conn, settings: SetupSettings) -> None:
    there = conn.execute(bound("job_pipelines", "publication"), {"publication": settings.publication}).fetchone()
    if there is None:
        statement = sql.SQL("CREATE PUBLICATION {} WITH (publish_via_partition_root = true)")
        conn.execute(statement.format(sql.Identifier(settings.publication)))


def _ensure_member(conn: Conn, settings: SetupSettings, table: Table) -> None:
    params = _params(settings, table)
    row = conn.execute(bound("job_pipelines", "member"), params).fetchone()
    if row is None:
        raise ConfigError(f"There is no table {table}.")
    is_member, listed, whole_rows = row
    found = conn.execute(bound("job_pipelines", "columns"), params).fetchall()
    needed = {name for (name,) in conn.execute(_statement(settings, "needs"), params).fetchall()}
    needed |= {name for name, _, _, in_key in found if in_key}
    if conn.info.server_version < COLUMN_LISTS_SINCE or whole_rows:
        names = None
    else:
        names = [name for name, *_ in found if name in needed | set(listed or ())]
    if is_member and (listed is None or (names is not None and needed <= set(listed))):
        return
    if is_member:
        _alter(conn, settings, "DROP", table, None)
    _alter(conn, settings, "ADD", table, names)


def _alter(conn: Conn, settings: SetupSettings, verb: str, table: Table, names: list[str] | None) -> None:
    columns: sql.Composable = sql.SQL("")
    if names is not None:
        columns = sql.SQL(" ({})").format(sql.SQL(", ").join(map(sql.Identifier, names)))
    conn.execute(
        sql.SQL("ALTER PUBLICATION {} {} TABLE {}{}").format(
            sql.Identifier(settings.publication), sql.SQL(verb), expressions.identifier(table), columns
        )
    )


def _params(settings: SetupSettings, table: Table) -> dict[str, str]:
    return {
        "publication": settings.publication,
        "slot": settings.slot,
        "schema": table.schema,
        "table": table.name,
    }


def _statement(settings: SetupSettings, name: str) -> sql.SQL:
    return bound("job_pipelines", name, schema=sql.Identifier(settings.schema))
