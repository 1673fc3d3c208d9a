"""What must exist before anything streams: publication, slot, control schema, pgvector. Everything here is idempotent.

The publication always comes before the slot: a slot decodes with the catalogue as it was, and a publication that is
younger than the slot does not exist at the place where decoding starts.
"""

from __future__ import annotations

import contextvars
import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from cdc.errors import ConfigError
from cdc.postgres import control
from cdc.postgres.connect import ConnectionSettings, classify, connect_sync
from cdc.postgres.queries import bound, query
from cdc.rows import Table

Say = Callable[[str], None]
Conn = psycopg.Connection[TupleRow]


class SetupSettings(ConnectionSettings, Protocol):
    """What setting up needs to know."""

    @property
    def publication(self) -> str:
        """The publication's name."""

    @property
    def schema(self) -> str:
        """The control schema's name."""

    @property
    def vector_type(self) -> str:
        """The type of new embedding columns: ``vector``, ``halfvec`` or ``real[]``."""

    @property
    def index(self) -> str:
        """The index of new destinations: ``hnsw`` or ``off``."""


def parse_table(text: str) -> Table:
    """Return the table that ``text`` names: ``table``, ``schema.table``, quoted as in SQL where needed.

    Raises:
        ConfigError: It is no table's name.
    """
    parts: list[str] = []
    rest = text.strip()
    while rest:
        part, rest = _identifier(rest, text)
        parts.append(part)
    if not 1 <= len(parts) <= 2:
        raise ConfigError(f"{text!r} is not a table's name.", "Write schema.table, with double quotes as in SQL.")
    return Table(parts[0], parts[1]) if len(parts) == 2 else Table("public", parts[0])


def _identifier(rest: str, whole: str) -> tuple[str, str]:
    """Split one identifier and the dot after it off ``rest``. Unquoted ones are folded to lower case, as in SQL."""
    if rest.startswith('"'):
        end = 1
        while (end := rest.find('"', end)) != -1 and rest[end : end + 2] == '""':
            end += 2
        name, after = rest[1:end].replace('""', '"'), rest[end + 1 :]
        unfinished = end == -1
    else:
        head, dot, tail = rest.partition(".")
        name, after, unfinished = head.strip().lower(), dot + tail, False
    if unfinished or not name or (after and (not after.startswith(".") or after == ".")):
        raise ConfigError(f"{whole!r} is not a table's name.", "Write schema.table, with double quotes as in SQL.")
    return name, after[1:]


def ensure_publication(conn: Conn, publication: str, tables: Sequence[Table]) -> str:
    """Make the publication for ``tables`` where it is missing, and say what was done.

    Raises:
        ConfigError: It is missing and no table is named, a table is missing, or the role may not.
    """
    if conn.execute("SELECT FROM pg_publication WHERE pubname = %s", [publication]).fetchone() is not None:
        _require_members(conn, publication, tables)
        return f'The publication "{publication}" is there.'
    if not tables:
        raise ConfigError(
            f'The publication "{publication}" does not exist, and it is what says which tables are watched.',
            f"Run `walvec init --table TABLE`, or in SQL: {publication_sql(publication, [], conn)}",
        )
    for table in tables:
        require_publishable(conn, table)
    try:
        conn.execute(sql.SQL(publication_sql(publication, tables, conn)))
    except psycopg.errors.InsufficientPrivilege as exc:
        raise ConfigError(
            f'This role may not make the publication "{publication}" ({exc.diag.message_primary}).',
            f"Let the tables' owner run: {publication_sql(publication, tables, conn)}",
        ) from exc
    except psycopg.Error as exc:
        raise _refused(exc) from exc
    return f'Made the publication "{publication}" for {", ".join(map(str, tables))}.'


def _require_members(conn: Conn, publication: str, tables: Sequence[Table]) -> None:
    found = conn.execute("SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = %s", [publication])
    members = {Table(*row) for row in found.fetchall()}
    for table in tables:
        if table not in members:
            names = [sql.Identifier(publication), sql.Identifier(table.schema, table.name)]
            statement = sql.SQL("ALTER PUBLICATION {} ADD TABLE {};").format(*names).as_string(conn)
            raise ConfigError(
                f'The publication "{publication}" exists, and {table} is not in it.', f"Let its owner run: {statement}"
            )


def require_publishable(conn: Conn, table: Table) -> None:
    """Refuse a table whose own UPDATEs would fail, or of which nothing would arrive, once it is published."""
    row = conn.execute(query("setup", "table"), [table.schema, table.name]).fetchone()
    if row is None:
        raise ConfigError(f"There is no table {table}.", "Correct --table; it takes schema.table.")
    kind, persistence, identified = row
    if kind not in ("r", "p") or persistence != "p":
        raise ConfigError(f"{table} is not an ordinary logged table, so its changes are not in the WAL.")
    if not identified:
        name = sql.Identifier(table.schema, table.name).as_string(conn)
        raise ConfigError(
            f"{table} has no primary key or other replica identity: published, its UPDATEs would fail.",
            f"ALTER TABLE {name} ADD PRIMARY KEY (…);",
        )


def publication_sql(publication: str, tables: Sequence[Table], conn: Conn | None = None) -> str:
    """Return the statement that makes the publication; with no table, one to be completed."""
    names = [sql.Identifier(table.schema, table.name).as_string(conn) for table in tables]
    return (
        f"CREATE PUBLICATION {sql.Identifier(publication).as_string(conn)} FOR TABLE {', '.join(names) or '…'} "
        "WITH (publish_via_partition_root = true);"
    )


def ensure_slot(settings: SetupSettings, conn: Conn, warn: Say) -> str:
    """Make the replication slot where it is missing, and say what was done. Waits for running transactions to end.

    Args:
        settings: Where, and which slot.
        conn: A connection in autocommit mode.
        warn: Told now and then whom the server waits for.

    Raises:
        ConfigError: The slot is of another kind, ``wal_level`` is not logical, no slot is free, or the role may not.
    """
    row = conn.execute(query("setup", "slot"), [settings.slot]).fetchone()
    if row is not None:
        _refuse_other_slot(settings.slot, row)
        return f'The replication slot "{settings.slot}" is there.'
    failover = ", failover => true" if conn.info.server_version >= 170000 else ""
    statement = sql.SQL("SELECT pg_create_logical_replication_slot({}, 'pgoutput'{})").format(
        sql.Literal(settings.slot), sql.SQL(failover)
    )
    with _Watcher(settings, conn.info.backend_pid, warn):
        try:
            conn.execute(statement)
        except psycopg.Error as exc:
            raise _refused(exc) from exc
    return f'Made the replication slot "{settings.slot}".'


def _refuse_other_slot(name: str, row: TupleRow) -> None:
    plugin, database, here, temporary = row
    if plugin != "pgoutput" or database != here or temporary:
        what = f'uses "{plugin}"' if plugin != "pgoutput" else f'belongs to database "{database}"'
        raise ConfigError(
            f'The replication slot "{name}" {"is temporary" if temporary else what}, so walvec cannot read it.',
            "Set WALVEC_SLOT to a name of its own.",
        )


class _Watcher:
    """While a slot is being made, names the transactions that the server waits for."""

    FIRST_S, EVERY_S = 1.0, 10.0

    def __init__(self, settings: SetupSettings, pid: int, warn: Say) -> None:
        self._settings, self._pid, self._warn = settings, pid, warn
        self._done = threading.Event()
        run = contextvars.copy_context().run  # what is logged names the database that whoever asks has bound
        self._thread = threading.Thread(target=run, args=(self._watch,), name="slot-watcher", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        if self._done.wait(self.FIRST_S):
            return
        with connect_sync(self._settings, "init") as conn:
            while True:
                waiting = conn.execute(query("setup", "slot_blockers"), [self._pid]).fetchall()
                if waiting:
                    who = ", ".join(f"{name} ({seconds:.0f} s)" for name, seconds in waiting)
                    self._warn(f"The server makes the slot when older transactions have ended; it waits for {who}.")
                if self._done.wait(self.EVERY_S):
                    return


def ensure_vector(conn: Conn) -> str:
    """Make the extension ``vector`` where the server has it and the role may, and say how it stands."""
    installed, available = conn.execute(query("setup", "vector")).fetchone() or (None, None)
    if installed:
        return f"pgvector {installed} is there."
    if not available:
        return "This server has no pgvector: embeddings are stored as real[], and there is no vector index."
    try:
        conn.execute("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")
    except psycopg.errors.InsufficientPrivilege:
        return "pgvector is on this server, but this role may not create it: let a DBA run CREATE EXTENSION vector;"
    except psycopg.Error as exc:
        raise _refused(exc) from exc
    return f"Made the extension vector {available}."


def register_slot(conn: Conn, schema: str, slot: str, publication: str) -> None:
    """Note in the control schema which slot reads which publication."""
    try:
        conn.execute(bound("setup", "register_slot", schema=sql.Identifier(schema)), [slot, publication, publication])
    except psycopg.Error as exc:
        raise classify(exc) from exc


def init(settings: SetupSettings, tables: Sequence[Table], say: Say, warn: Say) -> None:
    """Make everything that is missing, telling each step to ``say``. The order is the one that loses no row.

    Raises:
        ConfigError: Something cannot be made; the sentence says what mends it.
    """
    with connect_sync(settings, "init") as conn:
        say(ensure_publication(conn, settings.publication, tables))
        say(ensure_slot(settings, conn, warn))
        if settings.vector_type != "real[]":
            say(ensure_vector(conn))
        applied = control.ensure(conn, settings.schema)
        done = f"Made the control schema, version {applied[-1]}" if applied else "The control schema is there"
        say(f'{done}: "{settings.schema}".')
        register_slot(conn, settings.schema, settings.slot, settings.publication)


def print_sql(settings: SetupSettings, role: str, tables: Sequence[Table]) -> str:
    """Return what ``init`` would do as SQL for a DBA to read and run with psql, roles and grants included.

    Args:
        settings: The names of things.
        role: The role that walvec connects as.
        tables: The tables to watch; with none, the statements about tables are comments to be completed.
    """
    quoted = [sql.Identifier(table.schema, table.name).as_string() for table in tables]
    schemas = sorted({sql.Identifier(table.schema).as_string() for table in tables})
    return query(
        "setup",
        "print_sql",
        role=sql.Identifier(role),
        schema=sql.Identifier(settings.schema),
        schema_name=sql.Literal(settings.schema),
        slot=sql.Literal(settings.slot),
        slot_name=sql.Identifier(settings.slot),
        publication_name=sql.Literal(settings.publication),
        publication=sql.SQL(("" if tables else "-- ") + publication_sql(settings.publication, tables)),
        tables=sql.SQL(", ".join(quoted) or "…"),
        schemas=sql.SQL(", ".join(schemas) or "…"),
        todo=sql.SQL("" if tables else "-- "),
        migrations=sql.SQL(control.migration_sql(None, settings.schema)),
    ).as_string()


def _refused(exc: psycopg.Error) -> Exception:
    """Return what a refused statement means: anything wrong with names or rights is the caller's to mend."""
    found = classify(exc)
    if exc.sqlstate and exc.sqlstate.startswith(("42", "22", "0A")) and not isinstance(found, ConfigError):
        return ConfigError(found.message, found.remedy)
    return found


def hashes_table(schema: str, table: Table, column: str) -> Table:
    """Return the table in the control schema ``schema`` that keeps the hashes of what ``table`` has in ``column``."""
    digest = hashlib.sha256(f"{table}.{column}".encode()).hexdigest()[:8]
    return Table(schema, f"{table.name[:40].encode()[:40].decode('utf-8', 'ignore')}_{digest}_hashes")


def keep_in_place(settings: SetupSettings, table: Table, column: str) -> str:
    """Have the vectors of ``table`` kept in its own ``column``, and say so.

    Hashes and versions go to a table in the control schema. An existing pipeline of the table is left as it is.

    Raises:
        ConfigError: The table has a pipeline that keeps its vectors elsewhere.
    """
    with connect_sync(settings, "setup") as conn:
        statement = bound("registry", "in_place", schema=sql.Identifier(settings.schema))
        found = conn.execute(statement, {"schema": table.schema, "table": table.name}).fetchone()
        if found is not None and found[0] == column:
            return f"The vectors of {table} are kept in its column {column}."
        if found is not None:
            raise ConfigError(
                f"{table} has a pipeline already, which keeps its vectors {f'in {found[0]}' if found[0] else 'apart'}.",
                f"Delete its row from {settings.schema}.pipelines first.",
            )
        hashes = hashes_table(settings.schema, table, column)
        params = {
            "name": str(table),
            "slot": settings.slot,
            "source_schema": table.schema,
            "source_table": table.name,
            "target_schema": hashes.schema,
            "target_table": hashes.name,
            "target_column": column,
            "vector_type": settings.vector_type,
        }
        conn.execute(bound("registry", "register", schema=sql.Identifier(settings.schema)), params)
    return f"The vectors of {table} will be kept in its column {column}."
