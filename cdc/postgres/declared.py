"""Which pipelines there are: what the publication and the rows of the control schema come to together.

The publication of the main job declares pipelines: every table in it is one. That of jobs only carries what their rows
declare: a table is in it because some row reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cdc.postgres.catalog import PublishedTable
from cdc.postgres.stored import Stored


@dataclass(frozen=True, slots=True)
class Entry:
    """A pipeline: its table, None where the publication does not name it, and its row, None while it has none."""

    table: PublishedTable | None
    row: Stored | None


@dataclass(frozen=True, slots=True)
class Declaration:
    """The pipelines by name, and those that ran and are none any more."""

    pipelines: Mapping[str, Entry]
    gone: Mapping[str, Entry] = field(default_factory=dict)


Declared = Callable[[Sequence[PublishedTable], Sequence[Stored]], Declaration]
"""(the published tables but for destinations, the rows of one slot) → the pipelines."""


def by_publication(tables: Sequence[PublishedTable], rows: Sequence[Stored]) -> Declaration:
    """Return a pipeline per published table, and more where a table has several rows."""
    found: dict[str, Entry] = {}
    for table in tables:
        mine = [row for row in rows if row.source == table.table]
        found |= {row.name: Entry(table, row) for row in mine} or {str(table.table): Entry(table, None)}
    gone = {row.name: Entry(None, row) for row in rows if row.attached and row.name not in found}
    return Declaration(found, gone)


def by_rows(tables: Sequence[PublishedTable], rows: Sequence[Stored]) -> Declaration:
    """Return a pipeline per row that is attached, its table published or not."""
    published = {table.table: table for table in tables}
    return Declaration({row.name: Entry(published.get(row.source), row) for row in rows if row.attached})
