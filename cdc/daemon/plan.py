"""What a daemon is to do, as its command line says."""

from __future__ import annotations

from dataclasses import dataclass, field

from cdc.jobs import JobKind
from cdc.ports.books import BookName
from cdc.rows import Table


@dataclass(frozen=True, slots=True)
class Plan:
    """What a daemon is to do.

    Args:
        uri: The one control database, whose ``books`` are; empty where each target database holds its own.
        books: The tables of jobs of that database.
        results: The table of autotune's trials.
        schemas: Where tables and functions for usage are looked for, besides the control schema.
        targets: Databases with tables of jobs of their own.
        master: The database that lists further such databases, and the table that does.
        kinds: Which kinds of jobs are run.
        schema: The schema of tables of jobs in target databases; empty: the control schema.
        label: Which jobs are run.
    """

    uri: str = field(default="", repr=False)
    books: tuple[BookName, ...] = ()
    results: Table | None = None
    schemas: tuple[str, ...] = ()
    targets: tuple[str, ...] = field(default=(), repr=False)
    master: tuple[str, Table] | None = field(default=None, repr=False)
    kinds: frozenset[JobKind] = frozenset(JobKind)
    schema: str = ""
    label: str = ""
