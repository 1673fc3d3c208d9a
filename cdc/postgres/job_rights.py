"""What a job's own role may do, and what it must not reach through the consumer that jobs of one database share.

That consumer has one role, and runs as it whatever code a table brings along: triggers, defaults, generated columns,
expressions of indexes. Who could put such code there could do all that the consumer's role may do.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from cdc.errors import ConfigError, PipelineFault
from cdc.jobs import EmbeddingSpec, Job
from cdc.postgres.queries import bound

Connection = psycopg.Connection[TupleRow]

_SET_SINCE = 160000
"""Since PostgreSQL 16 a member of a role need not be one that may act as it."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Whom a job's connection belongs to, and whether row-level security hides rows of the job's table from them."""

    role: str
    filtered: bool


def check_rights(connection: Connection, job: Job) -> Asker:
    """Refuse a job whose own role may not read its source or write its destination. What is missing is said later.

    Args:
        connection: As the job's own role.
        job: The job.

    Raises:
        ConfigError: the role lacks a privilege.
        PipelineFault: there is no such table.
    """
    spec = job.spec
    assert isinstance(spec, EmbeddingSpec)
    params = {
        **{"schema": job.table.schema, "table": job.table.name},
        **{"source": spec.source_column, "target": spec.target_column},
    }
    row = connection.execute(bound("jobs", "rights"), params).fetchone()
    if row is None:
        raise PipelineFault(f"There is no table {job.table}.", "Correct the job's schema and table.")
    role, session, filtered, owns, reads, writes = row
    names = {"table": sql.Identifier(job.table.schema, job.table.name), "role": sql.Identifier(role)}
    if reads is False:
        remedy = sql.SQL("GRANT SELECT ON {table} TO {role};").format(**names)
        raise ConfigError(f'The role "{role}" may not read {job.table}.', remedy.as_string(connection))
    column = sql.Identifier(spec.target_column)
    if writes is None and not owns:
        add = sql.SQL("ALTER TABLE {table} ADD {column} real[]; GRANT UPDATE ({column}) ON {table} TO {role};")
        raise ConfigError(
            f'{job.table} has no column {spec.target_column}, and the role "{role}" may not add one.',
            f"Let the table's owner run: {add.format(**names, column=column).as_string(connection)}",
        )
    if writes is False:
        remedy = sql.SQL("GRANT UPDATE ({column}) ON {table} TO {role};").format(**names, column=column)
        raise ConfigError(
            f'The role "{role}" may not write column {spec.target_column} of {job.table}.', remedy.as_string(connection)
        )
    return Asker(session, filtered)


def check_hands(connection: Connection, job: Job, asker: Asker) -> None:
    """Refuse a job of another role than the consumer's where that gave somebody the consumer's role.

    A table whose owner, and whoever else could have code run by it, may act as the consumer's role anyway, is safe.

    Args:
        connection: As the role that writes for all jobs of the database.
        job: The job.
        asker: Whose job it is.

    Raises:
        ConfigError: it is not for the consumer to do.
    """
    act = "SET" if connection.info.server_version >= _SET_SINCE else "MEMBER"
    params = {"schema": job.table.schema, "table": job.table.name, "act": act}
    rows = connection.execute(bound("jobs", "hands"), params).fetchall()
    role = connection.execute(bound("jobs", "session")).fetchall()[0][0]
    if asker.role == role:
        return
    remedy = (
        f'Let the db_connection of all jobs of this database name one role: "{role}", or "{asker.role}" for all of '
        "them."
    )
    if rows:
        hand, what = rows[0]
        raise ConfigError(
            f'The jobs of this database are run by the role "{role}", and this job is of the role "{asker.role}": '
            f'{hand} {what} {job.table}, and so could have code run as "{role}".',
            remedy,
        )
    if asker.filtered:
        raise ConfigError(
            f'The jobs of this database are run by the role "{role}", which row-level security does not keep from '
            f'rows of {job.table} that this job\'s role "{asker.role}" may not see.',
            remedy,
        )
