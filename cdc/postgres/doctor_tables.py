"""Checks of the publication and of the tables in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from psycopg import sql

from cdc.postgres.catalog import PublishedTable
from cdc.postgres.doctor_facts import Check, Checks, Facts, Problem, fail, warn
from cdc.postgres.setup import publication_sql
from cdc.prepare.text import is_text_like

_checks = Checks()
CHECKS: Final[list[Check]] = _checks.all


def _quoted(table: PublishedTable) -> str:
    return sql.Identifier(table.table.schema, table.table.name).as_string()


def _publication(facts: Facts) -> str:
    return sql.Identifier(facts.settings.publication).as_string()


def _text_names(table: PublishedTable) -> list[str]:
    return [
        column.name
        for column in table.columns
        if column.name in table.published and column.name not in table.key_names and is_text_like(column)
    ]


@_checks.add(
    "WV020",
    "The publication exists.",
    why="It says which tables are watched, and must be older than the slot.",
    fix="`walvec init --table TABLE`, or CREATE PUBLICATION … FOR TABLE …;",
)
def _exists(facts: Facts) -> Iterator[Problem]:
    if facts.publication is None:
        name = facts.settings.publication
        yield fail(f'The publication "{name}" does not exist.', publication_sql(name, []))


@_checks.add(
    "WV021",
    "The publication publishes inserts, updates, deletes and truncates.",
    why="Whatever is not published leaves embeddings missing, stale or orphaned.",
    fix="ALTER PUBLICATION … SET (publish = 'insert, update, delete, truncate');",
    needs="publication",
)
def _publishes(facts: Facts) -> Iterator[Problem]:
    publication = facts.publication or {}
    missing = [op for op in ("insert", "update", "delete", "truncate") if not publication.get(f"pub{op}", True)]
    if missing:
        fix = f"ALTER PUBLICATION {_publication(facts)} SET (publish = 'insert, update, delete, truncate');"
        yield fail(f"The publication leaves out {', '.join(missing)}.", fix)


@_checks.add(
    "WV022",
    "Partitioned tables are published by their root.",
    why="Otherwise changes arrive under each partition's name, and partitions may differ in what they publish.",
    fix="ALTER PUBLICATION … SET (publish_via_partition_root = true);",
    needs="publication",
)
def _via_root(facts: Facts) -> Iterator[Problem]:
    leaves = [row["table"] for row in facts.rows("leaves")]
    if leaves and not (facts.publication or {}).get("pubviaroot"):
        fix = f"ALTER PUBLICATION {_publication(facts)} SET (publish_via_partition_root = true);"
        yield warn(f"Partitions are published one by one: {', '.join(leaves[:5])}.", fix)


@_checks.add(
    "WV023",
    "The publication names tables.",
    why="With none, nothing is embedded.",
    fix="ALTER PUBLICATION … ADD TABLE …;",
    needs="publication",
)
def _names_tables(facts: Facts) -> Iterator[Problem]:
    if facts.publication is not None and not facts.tables:
        yield warn("The publication names no table.", f"ALTER PUBLICATION {_publication(facts)} ADD TABLE …;")


@_checks.add(
    "WV024",
    "walvec's own tables are not published.",
    why="FOR ALL TABLES and FOR TABLES IN SCHEMA publish destinations and the queue too: every embedding travels back "
    "through the WAL, to be thrown away.",
    fix="Name the watched tables in the publication, or keep them in a schema of their own.",
    needs="publication",
)
def _own_tables(facts: Facts) -> Iterator[Problem]:
    own = [row["table"] for row in facts.rows("own_tables")]
    if own:
        yield warn(f"The publication includes walvec's own tables: {', '.join(own[:5])}.")


@_checks.add(
    "WV025",
    "Row filters use columns of the replica identity only.",
    why="PostgreSQL refuses every UPDATE and DELETE on a table whose filter needs a column that the old row lacks.",
    fix="ALTER PUBLICATION … SET TABLE … without the filter, or with key columns alone in it.",
    needs="tables",
)
def _row_filter(facts: Facts) -> Iterator[Problem]:
    for table in facts.tables:
        if not table.row_filter or table.replica_identity == "f":
            continue
        outside = [column.name for column in table.columns if column.name not in table.key_names]
        used = [name for name in outside if _mentions(table.row_filter, name)]
        if used:
            yield fail(f"The row filter of {table.table} uses {', '.join(used)}, which is not in its replica identity.")


def _mentions(expression: str, column: str) -> bool:
    quoted = sql.Identifier(column).as_string()
    plain = rf"(?<![\w\"']){re.escape(column)}(?![\w\"'(])" if re.fullmatch(r"[a-z_][a-z0-9_]*", column) else r"(?!)"
    return quoted in expression or re.search(plain, expression) is not None


@_checks.add(
    "WV026",
    "Column lists cover the replica identity.",
    why="PostgreSQL refuses every UPDATE and DELETE on a table whose column list leaves out a key column.",
    fix="ALTER PUBLICATION … SET TABLE … (all key columns, …);",
    needs="tables",
)
def _column_list(facts: Facts) -> Iterator[Problem]:
    for table in facts.tables:
        all_names = {column.name for column in table.columns}
        generated = set(facts.access[table.oid]["generated"]) if table.oid in facts.access else set()
        needed = all_names - generated if table.replica_identity == "f" else set(table.key_names)
        hidden = sorted(needed - set(table.published))
        if hidden:
            what = "all columns, its replica identity being FULL" if table.replica_identity == "f" else "its key"
            yield fail(f"The column list of {table.table} leaves out {', '.join(hidden)}; it must cover {what}.")


@_checks.add(
    "WV027",
    "No text comes from a generated column.",
    why="Generated columns travel in the WAL from PostgreSQL 18 on, and only where the publication says so.",
    fix="Publish the columns that the generated one is made of.",
    needs="tables",
)
def _generated(facts: Facts) -> Iterator[Problem]:
    for table in facts.tables:
        generated = set(facts.access[table.oid]["generated"]) if table.oid in facts.access else set()
        texts = {column.name for column in table.columns if is_text_like(column)}
        if generated & texts:
            names = ", ".join(sorted(generated & texts))
            yield warn(f"{table.table} has generated text columns, which are embedded only if published: {names}.")


@_checks.add(
    "WV030",
    "Every table has a key that its changes carry.",
    why="Without a replica identity PostgreSQL refuses UPDATE and DELETE on a published table.",
    fix="ALTER TABLE … ADD PRIMARY KEY (…); or ALTER TABLE … REPLICA IDENTITY USING INDEX …;",
    needs="tables",
)
def _identity(facts: Facts) -> Iterator[Problem]:
    for table in facts.tables:
        name = _quoted(table)
        if table.replica_identity == "n":
            yield fail(f"{table.table} has REPLICA IDENTITY NOTHING.", f"ALTER TABLE {name} REPLICA IDENTITY DEFAULT;")
        elif not table.key_names:
            yield fail(f"{table.table} has no primary key.", f"ALTER TABLE {name} ADD PRIMARY KEY (…);")
        elif table.replica_identity == "f":
            fix = f"ALTER TABLE {name} REPLICA IDENTITY DEFAULT;"
            yield warn(f"{table.table} has REPLICA IDENTITY FULL, which writes every old row to the WAL.", fix)


@_checks.add(
    "WV031",
    "Every table has text to embed.",
    why="Text-like columns beside the key are what is embedded: text, varchar, char, citext, json, jsonb, xml.",
    fix="Add such a column to the table's column list in the publication.",
    needs="tables",
)
def _text(facts: Facts) -> Iterator[Problem]:
    for table in facts.tables:
        if not _text_names(table):
            yield fail(f"Nothing that is published of {table.table} is text.")


@_checks.add(
    "WV032",
    "The tables can be read.",
    why="The first backfill, re-reads and verify select from the table; the stream itself needs no such right.",
    fix="GRANT USAGE ON SCHEMA … TO …; GRANT SELECT ON … TO …;",
    needs="tables",
)
def _readable(facts: Facts) -> Iterator[Problem]:
    role = sql.Identifier(facts.role["name"]).as_string()
    for table in facts.tables:
        rights = facts.access[table.oid]
        unreadable = sorted({*table.key_names, *_text_names(table)} & set(rights["unreadable"]))
        if not rights["usage"]:
            fix = f"GRANT USAGE ON SCHEMA {sql.Identifier(table.table.schema).as_string()} TO {role};"
            yield fail(f"The role may not use the schema of {table.table}.", fix)
        if unreadable:
            fix = f"GRANT SELECT ON {_quoted(table)} TO {role};"
            yield fail(f"The role may not read {', '.join(unreadable)} of {table.table}.", fix)


@_checks.add(
    "WV033",
    "Row-level security hides nothing from us.",
    why="The stream carries all rows whatever the policies say; a backfill that saw only some of them would not agree.",
    fix="ALTER ROLE … BYPASSRLS;",
    needs="tables",
)
def _row_security(facts: Facts) -> Iterator[Problem]:
    role = sql.Identifier(facts.role["name"]).as_string()
    for table in facts.tables:
        if facts.access[table.oid]["filtered"]:
            yield fail(f"Row-level security of {table.table} applies to our role.", f"ALTER ROLE {role} BYPASSRLS;")
