"""The messages of pgoutput, protocol versions 1 to 4, as frozen values.

Field order is that of https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html. Times are
microseconds since 2000-01-01 UTC. ``xid`` that may be None is present only inside a stream block (version 2).
"""

from __future__ import annotations

from dataclasses import dataclass

from cdc.lsn import Lsn
from cdc.rows import Cell
from cdc.wire.relations import Relation


@dataclass(frozen=True, slots=True)
class BinaryCell:
    """A cell in the type's binary send format; only sent under the option ``binary``."""

    data: bytes


Tuple = tuple[Cell | BinaryCell, ...]
"""One row version, a cell for each published column."""


@dataclass(frozen=True, slots=True)
class OldTuple:
    """What UPDATE or DELETE says about the row before.

    Under ``key_only`` (K) the cells outside the replica identity are None because they were not sent, not because
    they were NULL. Otherwise (O, REPLICA IDENTITY FULL) all cells are real.
    """

    key_only: bool
    cells: Tuple


@dataclass(frozen=True, slots=True)
class Begin:
    """B: a committed transaction follows. ``final_lsn`` is its commit record."""

    final_lsn: Lsn
    commit_us: int
    xid: int


@dataclass(frozen=True, slots=True)
class Commit:
    """C: the transaction is complete. ``end_lsn`` is the only position of it that may be acknowledged."""

    commit_lsn: Lsn
    end_lsn: Lsn
    commit_us: int


@dataclass(frozen=True, slots=True)
class Origin:
    """O: the transaction came here through the replication origin ``name``."""

    origin_lsn: Lsn
    name: str


@dataclass(frozen=True, slots=True)
class RelationMessage:
    """R: a table's definition, before its first change and after each change of the definition."""

    xid: int | None
    relation: Relation


@dataclass(frozen=True, slots=True)
class Type:
    """Y: the name of a type that is not built in."""

    xid: int | None
    oid: int
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Insert:
    """I: a new row."""

    xid: int | None
    relation_oid: int
    new: Tuple


@dataclass(frozen=True, slots=True)
class Update:
    """U: a changed row. ``old`` is there if the identity changed or is FULL."""

    xid: int | None
    relation_oid: int
    old: OldTuple | None
    new: Tuple


@dataclass(frozen=True, slots=True)
class Delete:
    """D: a row that is gone."""

    xid: int | None
    relation_oid: int
    old: OldTuple


@dataclass(frozen=True, slots=True)
class Truncate:
    """T: these tables are empty."""

    xid: int | None
    relation_oids: tuple[int, ...]
    cascade: bool
    restart_identity: bool


@dataclass(frozen=True, slots=True)
class LogicalMessage:
    """M: from ``pg_logical_emit_message``. One that is not transactional comes at once, outside B and C."""

    xid: int | None
    transactional: bool
    lsn: Lsn
    prefix: str
    content: bytes


@dataclass(frozen=True, slots=True)
class StreamStart:
    """S: a block of changes of the open transaction ``xid`` follows (version 2)."""

    xid: int
    first_segment: bool


@dataclass(frozen=True, slots=True)
class StreamStop:
    """E: the block ends; the transaction may go on in a later one."""


@dataclass(frozen=True, slots=True)
class StreamCommit:
    """c: the streamed transaction committed."""

    xid: int
    commit_lsn: Lsn
    end_lsn: Lsn
    commit_us: int


@dataclass(frozen=True, slots=True)
class StreamAbort:
    """A: ``subxid`` (the whole transaction if equal to ``xid``) rolled back.

    Position and time come only under ``streaming 'parallel'`` (version 4).
    """

    xid: int
    subxid: int
    abort_lsn: Lsn | None = None
    abort_us: int | None = None


@dataclass(frozen=True, slots=True)
class BeginPrepare:
    """b: a transaction that was prepared for two-phase commit follows (version 3)."""

    prepare_lsn: Lsn
    end_lsn: Lsn
    prepare_us: int
    xid: int
    gid: str


@dataclass(frozen=True, slots=True)
class Prepare:
    """P: the prepared transaction is complete and waits for its second phase."""

    prepare_lsn: Lsn
    end_lsn: Lsn
    prepare_us: int
    xid: int
    gid: str


@dataclass(frozen=True, slots=True)
class CommitPrepared:
    """K: COMMIT PREPARED."""

    commit_lsn: Lsn
    end_lsn: Lsn
    commit_us: int
    xid: int
    gid: str


@dataclass(frozen=True, slots=True)
class RollbackPrepared:
    """r: ROLLBACK PREPARED."""

    prepare_end_lsn: Lsn
    rollback_end_lsn: Lsn
    prepare_us: int
    rollback_us: int
    xid: int
    gid: str


@dataclass(frozen=True, slots=True)
class StreamPrepare:
    """p: the streamed transaction was prepared."""

    prepare_lsn: Lsn
    end_lsn: Lsn
    prepare_us: int
    xid: int
    gid: str


Message = (
    Begin
    | Commit
    | Origin
    | RelationMessage
    | Type
    | Insert
    | Update
    | Delete
    | Truncate
    | LogicalMessage
    | StreamStart
    | StreamStop
    | StreamCommit
    | StreamAbort
    | BeginPrepare
    | Prepare
    | CommitPrepared
    | RollbackPrepared
    | StreamPrepare
)
