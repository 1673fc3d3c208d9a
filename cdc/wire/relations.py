"""Tables as the server describes them on one connection.

A Relation message precedes the first change of a table and comes again after each change of its definition
(https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html). With
``publish_via_partition_root`` a partitioned table and then its partition are described; rows name the root's OID.
What was learnt on one connection means nothing on the next.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from cdc.errors import DecodeError
from cdc.rows import Table


class ReplicaIdentity(StrEnum):
    """``pg_class.relreplident``: which columns of the old row UPDATE and DELETE put into the WAL."""

    DEFAULT = "d"  # the primary key
    NOTHING = "n"
    FULL = "f"  # all columns
    INDEX = "i"  # the columns of a chosen unique index


@dataclass(frozen=True, slots=True)
class RelationColumn:
    """A published column: ``type_oid`` and ``type_modifier`` as in ``pg_attribute``; ``is_key`` = in the identity."""

    name: str
    type_oid: int
    type_modifier: int
    is_key: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table's definition, reduced to the published columns, in the order of a row's cells."""

    oid: int
    namespace: str
    name: str
    replica_identity: ReplicaIdentity
    columns: tuple[RelationColumn, ...]

    @property
    def table(self) -> Table:
        return Table(self.namespace, self.name)

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def key_indexes(self) -> tuple[int, ...]:
        """Positions of the replica identity's columns; all of them under FULL."""
        return tuple(index for index, column in enumerate(self.columns) if column.is_key)

    def index_of(self, name: str) -> int | None:
        """Return the position of column ``name`` in a row, or None where it is not published."""
        return next((index for index, column in enumerate(self.columns) if column.name == name), None)

    def same_shape(self, other: Relation, columns: Collection[str] | None = None) -> bool:
        """Tell whether rows mean the same under both definitions.

        Compares the replica identity and the columns (name, type, type modifier, in the key or not).

        Args:
            other: The definition to compare with.
            columns: Look only at columns of these names, wherever they stand; their positions may differ, so a
                decoder of rows must be rebuilt even if this returns True. None looks at all, in order.
        """
        if self.replica_identity is not other.replica_identity:
            return False
        if columns is None:
            return self.columns == other.columns
        return self._named(columns) == other._named(columns)

    def _named(self, names: Collection[str]) -> dict[str, RelationColumn]:
        return {column.name: column for column in self.columns if column.name in names}


class RelationCache:
    """The definitions received on one connection, by OID."""

    __slots__ = ("_relations",)

    def __init__(self) -> None:
        self._relations: dict[int, Relation] = {}

    def learn(self, relation: Relation) -> Relation | None:
        """Remember ``relation`` and return what was known of that OID before."""
        previous = self._relations.get(relation.oid)
        self._relations[relation.oid] = relation
        return previous

    def get(self, oid: int) -> Relation:
        """Return the definition of table ``oid``.

        Raises:
            DecodeError: The server has not described it on this connection.
        """
        try:
            return self._relations[oid]
        except KeyError:
            raise DecodeError(f"a change names table OID {oid}, which the server has not described") from None

    def __contains__(self, oid: int) -> bool:
        return oid in self._relations

    def __len__(self) -> int:
        return len(self._relations)
