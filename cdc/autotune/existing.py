"""The vector indexes that a table has already: which of them are in the way, and which is the one to replace."""

from __future__ import annotations

from collections.abc import Sequence

from cdc.errors import PipelineFault
from cdc.postgres.tuning import KINDS, Existing, Subject
from cdc.postgres.tuning_indexes import drop_statement, index_name


def check_indexes(subject: Subject, indexes: Sequence[Existing], metric: str) -> None:
    """Refuse what cannot be built or measured, before anything is read.

    Raises:
        PipelineFault: the table is partitioned, or has an index that is not ours and serves the same queries.
    """
    if subject.partitioned:
        raise PipelineFault(
            f"{subject.table} is partitioned, and PostgreSQL builds no index of it without locking writers out.",
            "Name one of its partitions, or leave create_index out.",
        )
    name = index_name(subject.table, subject.column, metric)
    for index in indexes:
        if index.name == name and index.opclass != f"{KINDS.get(subject.base, '')}_{metric}_ops":
            raise PipelineFault(
                f"The index {name} of {subject.table} is not one by {metric} distance, so it is not autotune's.",
                f"ALTER INDEX … RENAME it, or drop it: {drop_statement(subject.table.schema, name)};",
            )
        if index.valid and index.name not in (name, f"{name}_new") and fits(index, subject, metric, subject.width):
            raise PipelineFault(
                f"Column {subject.column} of {subject.table} has the vector index {index.name} already; with a second "
                "one PostgreSQL chooses by itself, and the recall of neither can be measured.",
                f"{drop_statement(subject.table.schema, index.name)}; or leave create_index out.",
            )


def fits(index: Existing, subject: Subject, metric: str, dimension: int) -> bool:
    """Tell whether an index serves the queries that a search for this distance asks.

    The planner takes an index only for its own operator class and its very expression: one of ``e::halfvec(48)`` serves
    no query that orders by ``e``. A ``dimension`` that is not known (0 or less) may be any.
    """
    kind = KINDS.get(subject.base, "")
    if index.opclass != f"{kind}_{metric}_ops":
        return False
    bare, plain = _bare(index.of), _bare(subject.column)
    quoted = '"' + plain.replace('"', '""') + '"'
    if subject.base == kind and subject.width > 0:  # indexed as it is
        return bare in (plain, quoted)
    if not bare.startswith((f"{plain}::", f"{quoted}::")):
        return False
    return dimension <= 0 or bare.endswith(f"{kind}{dimension}")


def _bare(text: str) -> str:
    """Return an expression without its parentheses, of which PostgreSQL sets some and leaves others out."""
    return text.replace("(", "").replace(")", "")
