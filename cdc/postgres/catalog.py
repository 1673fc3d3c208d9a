"""What the publication publishes: the tables, their keys and texts, and why a table cannot be followed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import sql

from cdc.errors import PipelineFault
from cdc.postgres.expressions import Source
from cdc.postgres.queries import bound
from cdc.prepare.text import is_text_like
from cdc.rows import Column, Table


@dataclass(frozen=True, slots=True)
class Publication:
    """The publication itself; ``complete``: it publishes inserts, updates, deletes and truncates."""

    oid: int
    complete: bool
    via_root: bool


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """A table that the publication names.

    ``streamed_as`` are the names under which its changes arrive: its own, or those of its partitions. ``storage``
    changes whenever rows may have changed with no event: a rewrite, a partition attached or truncated. ``complete``:
    inserts, updates, deletes and truncates are all published. ``numbers`` are the columns' own: one that was dropped
    and made again under the same name has another.
    """

    oid: int
    table: Table
    columns: tuple[Column, ...]
    published: tuple[str, ...]
    key_names: tuple[str, ...]
    replica_identity: str
    row_filter: str
    streamed_as: tuple[Table, ...]
    storage: str
    complete: bool = True
    numbers: tuple[int, ...] = ()

    def shape(self, text_names: Sequence[str] | None = None) -> str:
        """Return a digest of all that decides how the table is read; a change of it calls for a reconcile.

        ``text_names`` are the columns that matter beside the key; None: every published text-like one.
        """
        relevant = [
            (column.name, column.type, number)
            for column, number in zip(self.columns, self.numbers, strict=True)
            if column.name in self.key_names
            or (column.name in self.published and is_text_like(column) and text_names is None)
            or (text_names is not None and column.name in text_names)
        ]
        parts = (self.oid, relevant, self.key_names, self.row_filter, self.replica_identity, self.complete)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

    def source(self, text_names: Sequence[str] | None = None) -> Source:
        """Return what walvec reads of the table.

        Args:
            text_names: The columns to embed; None: every published text-like column that is not part of the key.

        Raises:
            PipelineFault: the table cannot be followed as it is.
        """
        by_name = {column.name: column for column in self.columns}
        self._check_identity()
        hidden = [name for name in self.key_names if name not in self.published]
        if hidden:
            raise PipelineFault(
                f"The publication's column list for {self.table} leaves out the key column {hidden[0]}.",
                f"Add {', '.join(hidden)} to the column list with ALTER PUBLICATION … SET TABLE.",
            )
        wanted = self.published if text_names is None else text_names
        missing = [name for name in wanted if name not in by_name]
        if missing:
            raise PipelineFault(
                f"Column {missing[0]} of {self.table} does not exist any more: it was renamed or dropped.",
                "Restore the column, or name the new one.",
            )
        if text_names is not None and (unseen := [name for name in text_names if name not in self.published]):
            raise PipelineFault(f"The publication does not publish column {unseen[0]} of {self.table}.")
        key = tuple(by_name[name] for name in self.key_names)
        text = tuple(
            column
            for column in self.columns
            if column.name in wanted
            and column.name not in self.key_names
            and (is_text_like(column) or (text_names is not None and column.base_type == "bytea"))
        )
        if not text:
            raise PipelineFault(
                f"The publication publishes no text-like column of {self.table} beside its key, so there is nothing "
                "to embed.",
                "Add a column of type text, varchar, char, citext, json, jsonb or xml to its column list.",
            )
        return Source(self.table, key, text, self.row_filter)

    def _check_identity(self) -> None:
        if self.replica_identity == "n":
            raise PipelineFault(
                f"{self.table} has REPLICA IDENTITY NOTHING, so updates and deletes carry no key.",
                f"ALTER TABLE {self.table} REPLICA IDENTITY DEFAULT;",
            )
        if not self.key_names:
            raise PipelineFault(
                f"{self.table} has no primary key and no replica identity index, so its rows cannot be told apart.",
                f"ALTER TABLE {self.table} ADD PRIMARY KEY (…); or REPLICA IDENTITY USING INDEX …;",
            )


def tables_statement(server_version: int) -> sql.SQL:
    """Return the discovery statement for a server of this version (``server_version_num``)."""
    newer = server_version >= 150000
    # Without a column list all columns count. The server's own view leaves generated ones out where it does not send
    # them: their rows are read from the table.
    every = (
        "(SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_catalog.pg_attribute AS a "
        "WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)"
    )
    listed = (
        "EXISTS (SELECT FROM pg_catalog.pg_publication_rel AS r WHERE r.prpubid = p.oid AND r.prattrs IS NOT NULL "
        "AND (r.prrelid = c.oid OR r.prrelid IN (SELECT relid FROM pg_catalog.pg_partition_ancestors(c.oid))))"
    )
    return bound(
        "catalog",
        "tables",
        {
            "attnames": f"CASE WHEN {listed} THEN t.attnames::text[] ELSE {every} END" if newer else every,
            "rowfilter": "t.rowfilter" if newer else "NULL::text",
            "by_schema": "OR EXISTS (SELECT FROM pg_catalog.pg_publication_namespace AS s "
            "WHERE s.pnpubid = l.publication AND s.pnnspid = ac.relnamespace)"
            if newer
            else "",
        },
    )


def tables_of(rows: Sequence[tuple[Any, ...]]) -> list[PublishedTable]:
    """Return the tables that the discovery statement's rows describe."""
    return [
        PublishedTable(
            oid=oid,
            table=Table(schema, name),
            columns=tuple(Column(*column) for column in zip(names, types, bases, strict=True)),
            published=tuple(attnames or ()),
            key_names=tuple(key or ()),
            replica_identity=identity,
            row_filter=row_filter or "",
            streamed_as=tuple(Table(*member) for member in zip(schemas, members, strict=True)),
            storage=storage or "",
            numbers=tuple(numbers),
        )
        for (
            oid,
            schema,
            name,
            identity,
            attnames,
            row_filter,
            schemas,
            members,
            names,
            types,
            bases,
            numbers,
            key,
            storage,
        ) in rows
    ]


async def discover(
    connection: psycopg.AsyncConnection[Any], publication: str, control: str
) -> tuple[Publication | None, list[PublishedTable]]:
    """Return the publication, or None where there is none, and its tables but for walvec's own."""
    params = {"publication": publication, "control": control}
    cursor = await connection.execute(bound("catalog", "publication"), params, prepare=True)
    row = await cursor.fetchone()
    if row is None:
        return None, []
    statement = tables_statement(connection.info.server_version)
    cursor = await connection.execute(statement, params, prepare=True)
    found = Publication(*row)
    return found, [replace(table, complete=found.complete) for table in tables_of(await cursor.fetchall())]


def source_of(
    connection: psycopg.Connection[Any],
    table: Table,
    publication: str,
    control: str,
    text_names: Sequence[str] | None = None,
) -> Source:
    """Return what walvec reads of a published table, for commands that work outside the consumer.

    Raises:
        PipelineFault: the publication does not name the table, or it cannot be followed.
    """
    statement = tables_statement(connection.info.server_version)
    rows = connection.execute(statement, {"publication": publication, "control": control}).fetchall()
    for published in tables_of(rows):
        if published.table == table:
            return published.source(text_names)
    raise PipelineFault(f"{table} is not in publication {publication}.", f"ALTER PUBLICATION … ADD TABLE {table};")
