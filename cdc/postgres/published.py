"""The publication's tables as a command sees them, and why some cannot be followed."""

from __future__ import annotations

import psycopg
from psycopg.rows import TupleRow

from cdc.errors import PipelineFault
from cdc.postgres.catalog import PublishedTable, tables_of, tables_statement


def published(conn: psycopg.Connection[TupleRow], publication: str, control: str) -> list[PublishedTable]:
    """Return the tables of a publication as the consumer gathers them, without the control schema's own."""
    params = {"publication": publication, "control": control}
    return tables_of(conn.execute(tables_statement(conn.info.server_version), params).fetchall())


def fault(table: PublishedTable) -> PipelineFault | None:
    """Return why no pipeline can follow ``table``, or None where one can."""
    try:
        table.source()
    except PipelineFault as exc:
        return exc
    return None
