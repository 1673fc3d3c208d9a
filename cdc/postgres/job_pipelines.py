"""The pipelines that jobs ask for: rows of the control schema, and the tables that their publication carries.

A pipeline runs while its row is attached. Everything here is idempotent, waits for the server (call it in a thread),
and tells a running consumer of the slot at once, through the WAL.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from cdc.errors import ConfigError
from cdc.jobs import JobKind
from cdc.postgres import control, expressions, setup
from cdc.postgres.carried import carry, drop_unused
from cdc.postgres.connect import classify
from cdc.postgres.queries import bound
from cdc.postgres.setup import SetupSettings
from cdc.prepare.text import TEXT_TYPES
from cdc.rows import Table

Conn = psycopg.Connection[TupleRow]

LOCK_TIMEOUT = "5s"
"""How long the publication waits for a lock on a table before it is put off."""

_KINDS_SINCE = 2
"""The version of the control schema that knows of jobs."""


@dataclass(frozen=True, slots=True)
class JobPipeline:
    """A pipeline that a job asks for. ``name`` is ``schema.table.column``; ``job`` is :attr:`cdc.jobs.JobId.owner`.

    ``value_type`` is the type that a completion's answers are cast to; empty: what the column is, else text.
    """

    name: str
    kind: str
    job: str
    source: Table
    text_columns: tuple[str, ...]
    target_column: str
    runtime: str = ""
    value_type: str = ""

    def params(self, settings: SetupSettings) -> dict[str, Any]:
        """Return what its row holds."""
        hashes = setup.hashes_table(settings.schema, self.source, self.target_column)
        return {
            "name": self.name,
            "slot": settings.slot,
            "kind": str(self.kind),
            "job": self.job,
            "runtime": self.runtime or None,
            "value_type": self.value_type or None,
            "source_schema": self.source.schema,
            "source_table": self.source.name,
            "text_columns": list(self.text_columns),
            "target_schema": hashes.schema,
            "target_table": hashes.name,
            "target_column": self.target_column,
            "vector_type": settings.vector_type,
        }


def ensure_job_pipeline(conn: Conn, settings: SetupSettings, wanted: JobPipeline) -> str:
    """Have ``wanted`` run, and say in a word what was done: ``made``, ``changed``, ``attached`` or ``unchanged``.

    Control schema, publication and the table's place in it are made where they are missing. A pipeline that comes back
    or changes is compared by hash: only what differs is made anew.

    Args:
        conn: In autocommit mode.
        settings: Of the slot that runs the jobs.
        wanted: The pipeline.

    Raises:
        ConfigError: table or columns will not do, another pipeline writes the column, or the role may not.
        Unavailable: the server went away, or a lock was not to be had.
    """
    with _said(conn):
        _check(conn, wanted)
        control.ensure(conn, settings.schema)
        with _transaction(conn):
            done = _store(conn, settings, wanted)
            carry(conn, settings, wanted.source)
        _wake(conn)
        return done


def detach_job_pipeline(conn: Conn, settings: SetupSettings, name: str) -> bool:
    """Have the pipeline ``name`` run no more; tell whether it was to run. Hashes stay, for when it comes back.

    Raises:
        WalvecError: the server is away, or the role may not.
    """
    with _said(conn):
        if control.installed_version(conn, settings.schema) < _KINDS_SINCE:
            return False
        with _transaction(conn):
            row = _one(conn, settings, "detach", {"name": name, "slot": settings.slot})
            if row is not None:
                drop_unused(conn, settings, Table(*row))
        _wake(conn)
        return row is not None


def remove_job_pipeline(conn: Conn, settings: SetupSettings, name: str) -> bool:
    """Forget the pipeline ``name``, its queue, dead letters and hashes; tell whether there was one.

    What it has written into the user's table stays. Detach it first, and let the consumer leave it.

    Raises:
        WalvecError: the server is away, or the role may not.
    """
    with _said(conn):
        if control.installed_version(conn, settings.schema) < _KINDS_SINCE:
            return False
        detach_job_pipeline(conn, settings, name)
        with _transaction(conn):
            row = _one(conn, settings, "remove", {"name": name, "slot": settings.slot})
            if row is not None:
                hashes = expressions.identifier(Table(*row))
                conn.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(hashes))
        return row is not None


def job_pipelines(conn: Conn, settings: SetupSettings) -> dict[str, tuple[str, bool]]:
    """Return the pipelines of the slot that jobs asked for: by name, the job's id, and whether it is to run.

    Raises:
        WalvecError: the server is away, or the role may not.
    """
    with _said(conn):
        if control.installed_version(conn, settings.schema) < _KINDS_SINCE:
            return {}
        rows = conn.execute(_statement(settings, "list"), {"slot": settings.slot}).fetchall()
        return {name: (job, attached) for name, job, attached in rows}


def release_jobs(conn: Conn, settings: SetupSettings) -> None:
    """Drop the slot and the publication of the jobs: the last of them is gone, and nothing is to hold back WAL.

    Raises:
        SlotInUse: a consumer still holds the slot.
        WalvecError: the server is away, or the role may not.
    """
    with _said(conn):
        conn.execute(bound("job_pipelines", "drop_slot"), {"slot": settings.slot})
        if control.installed_version(conn, settings.schema) >= _KINDS_SINCE:
            conn.execute(_statement(settings, "forget_slot"), {"slot": settings.slot})
        conn.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(settings.publication)))


# -- checking -------------------------------------------------------------------------------------------------------


def _check(conn: Conn, wanted: JobPipeline) -> None:
    """Refuse what could never run."""
    table = wanted.source
    setup.require_publishable(conn, table)
    found = conn.execute(bound("job_pipelines", "columns"), {"schema": table.schema, "table": table.name}).fetchall()
    columns = {name: (base, type, in_key) for name, base, type, in_key in found}
    for name in wanted.text_columns:
        if name not in columns:
            raise ConfigError(f"{table} has no column {name}.")
        base, type, in_key = columns[name]
        if in_key:
            raise ConfigError(f"Column {name} of {table} is part of its key, and a key is not embedded.")
        if base not in TEXT_TYPES and base != "bytea":
            raise ConfigError(
                f"Column {name} of {table} is of type {type}: only text, JSON, XML and bytea have a text."
            )
    if wanted.target_column in wanted.text_columns:
        raise ConfigError(f"Column {wanted.target_column} of {table} cannot be read and written by one job.")
    if columns.get(wanted.target_column, ("", "", False))[2]:
        raise ConfigError(f"Column {wanted.target_column} of {table} is part of its key, and is not written.")


# -- storing --------------------------------------------------------------------------------------------------------


def _store(conn: Conn, settings: SetupSettings, wanted: JobPipeline) -> str:
    params = wanted.params(settings)
    other = _one(conn, settings, "writer", params)
    if other is not None:
        raise ConfigError(f"Column {wanted.target_column} of {wanted.source} is written by the pipeline {other[0]}.")
    row = _one(conn, settings, "row", params)
    if row is None:
        _one(conn, settings, "register", params)
        return "made"
    slot, kind, job, schema, table, texts, column, runtime, value_type, attached = row
    if kind not in (JobKind.EMBEDDING, JobKind.COMPLETION) or (Table(schema, table), column) != (
        wanted.source,
        wanted.target_column,
    ):
        raise ConfigError(f'There is a pipeline "{wanted.name}" already, which is no job\'s.')
    if attached and job != wanted.job:
        raise _taken(wanted, settings, job, slot)
    before = (slot, kind, set(texts), value_type)
    changed = before != (settings.slot, str(wanted.kind), set(wanted.text_columns), wanted.value_type)
    if changed or not attached:
        reason = "the job was changed" if changed else "the job was resumed"
        _one(conn, settings, "change", params | {"reason": reason})
        return "changed" if attached else "attached"
    if (job, runtime) != (wanted.job, wanted.runtime):
        conn.execute(_statement(settings, "label"), params)
    return "unchanged"


def _taken(wanted: JobPipeline, settings: SetupSettings, job: str, slot: str) -> ConfigError:
    """Return what is said where another job writes the column; it may be one of a control that is gone for good."""
    remedy = "Cancel that one first, or name another dst_column."
    if slot != settings.slot:
        drop = sql.SQL("SELECT pg_drop_replication_slot({slot});").format(slot=slot).as_string(None)
        detach = sql.SQL("UPDATE {schema}.pipelines SET attached = false WHERE slot = {slot};")
        detach_text = detach.format(schema=sql.Identifier(settings.schema), slot=slot).as_string(None)
        remedy += f" If no daemon will ever run that one again: {drop} {detach_text}"
    return ConfigError(f"Column {wanted.target_column} of {wanted.source} is written by job {job} already.", remedy)


def _one(conn: Conn, settings: SetupSettings, name: str, params: dict[str, Any]) -> TupleRow | None:
    return conn.execute(_statement(settings, name), params).fetchone()


def _statement(settings: SetupSettings, name: str) -> sql.SQL:
    return bound("job_pipelines", name, schema=sql.Identifier(settings.schema))


@contextmanager
def _transaction(conn: Conn) -> Iterator[None]:
    with conn.transaction():
        conn.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT)))
        yield


def _wake(conn: Conn) -> None:
    """Tell the consumer to look. In a transaction of its own: by then what it is to see is visible for certain."""
    conn.execute(bound("admin", "wake"), [])


@contextmanager
def _said(conn: Conn) -> Iterator[None]:
    """Say what goes wrong in this package's words."""
    try:
        yield
    except psycopg.Error as exc:
        raise classify(exc) from exc
