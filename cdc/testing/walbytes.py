"""The server's side of the replication protocol: bytes of every message, for tests and a simulated walsender.

    payload = xlog_data(encode(Insert(None, 16384, (b"1", b"text"))), lsn=0x16B3748)

Layouts are those of ``cdc.wire``, written down a second time from the same pages, so that a slip in one shows:
https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html and protocol-replication.html there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from cdc.lsn import Lsn
from cdc.rows import UNCHANGED
from cdc.wire import messages as m
from cdc.wire.relations import Relation


@dataclass(frozen=True, slots=True)
class StandbyStatus:
    """A status reply as the server reads it."""

    written: Lsn
    flushed: Lsn
    applied: Lsn
    sent_us: int
    reply_requested: bool


def xlog_data(body: bytes, lsn: int = 0, sent_us: int = 0) -> bytes:
    """Return the CopyData payload that carries ``body``; a logical walsender gives one position twice."""
    return b"w" + struct.pack("!QQq", lsn, lsn, sent_us) + body


def keepalive(wal_end: int, sent_us: int = 0, reply_requested: bool = False) -> bytes:
    """Return the CopyData payload of a keepalive."""
    return b"k" + struct.pack("!QqB", wal_end, sent_us, int(reply_requested))


def read_status(payload: bytes) -> StandbyStatus:
    """Return the status reply that a client sent.

    Raises:
        ValueError: It is not one.
    """
    if len(payload) != 34 or payload[:1] != b"r":
        raise ValueError("not a standby status update")
    written, flushed, applied, sent_us, asked = struct.unpack("!QQQqB", payload[1:])
    return StandbyStatus(Lsn(written), Lsn(flushed), Lsn(applied), sent_us, bool(asked))


def transaction(
    changes: Iterable[m.Message], *, xid: int, commit_lsn: int, end_lsn: int, commit_us: int = 0
) -> list[bytes]:
    """Return the payloads of one committed transaction: Begin, ``changes``, Commit."""
    begin = m.Begin(Lsn(commit_lsn), commit_us, xid)
    commit = m.Commit(Lsn(commit_lsn), Lsn(end_lsn), commit_us)
    return [xlog_data(encode(message), commit_lsn, commit_us) for message in (begin, *changes, commit)]


def encode(message: m.Message) -> bytes:
    """Return the pgoutput body of ``message``; an ``xid`` that is not None is written as in a stream block."""
    match message:
        case m.Begin():
            return b"B" + struct.pack("!QqI", message.final_lsn, message.commit_us, message.xid)
        case m.Commit():
            return b"C\0" + struct.pack("!QQq", message.commit_lsn, message.end_lsn, message.commit_us)
        case m.Origin():
            return b"O" + struct.pack("!Q", message.origin_lsn) + _string(message.name)
        case m.RelationMessage():
            return b"R" + _xid(message.xid) + _relation(message.relation)
        case m.Type():
            name = _namespace(message.namespace) + _string(message.name)
            return b"Y" + _xid(message.xid) + struct.pack("!I", message.oid) + name
        case m.Insert() | m.Update() | m.Delete() | m.Truncate() | m.LogicalMessage():
            return _encode_change(message)
        case m.StreamStart() | m.StreamStop() | m.StreamCommit() | m.StreamAbort():
            return _encode_stream(message)
        case _:
            return _encode_two_phase(message)


def _encode_change(message: m.Insert | m.Update | m.Delete | m.Truncate | m.LogicalMessage) -> bytes:
    xid = _xid(message.xid)
    match message:
        case m.Insert(_, oid, new):
            return b"I" + xid + struct.pack("!I", oid) + b"N" + _tuple(new)
        case m.Update(_, oid, old, new):
            return b"U" + xid + struct.pack("!I", oid) + (_old(old) if old else b"") + b"N" + _tuple(new)
        case m.Delete(_, oid, old):
            return b"D" + xid + struct.pack("!I", oid) + _old(old)
        case m.Truncate(_, oids, cascade, restart):
            return b"T" + xid + struct.pack(f"!IB{len(oids)}I", len(oids), cascade | restart << 1, *oids)
        case m.LogicalMessage(_, transactional, lsn, prefix, content):
            return b"M" + xid + struct.pack("!BQ", transactional, lsn) + _string(prefix) + _counted(content)


def _encode_stream(message: m.StreamStart | m.StreamStop | m.StreamCommit | m.StreamAbort) -> bytes:
    match message:
        case m.StreamStart(xid, first):
            return b"S" + struct.pack("!IB", xid, first)
        case m.StreamStop():
            return b"E"
        case m.StreamCommit(xid, commit_lsn, end_lsn, commit_us):
            return b"c" + struct.pack("!IBQQq", xid, 0, commit_lsn, end_lsn, commit_us)
        case m.StreamAbort(xid, subxid, None, _):
            return b"A" + struct.pack("!II", xid, subxid)
        case m.StreamAbort(xid, subxid, abort_lsn, abort_us):
            return b"A" + struct.pack("!IIQq", xid, subxid, abort_lsn, abort_us)


TwoPhase = m.BeginPrepare | m.Prepare | m.CommitPrepared | m.RollbackPrepared | m.StreamPrepare


def _encode_two_phase(message: TwoPhase) -> bytes:
    match message:
        case m.BeginPrepare(lsn, end_lsn, time_us, xid, gid):
            return b"b" + struct.pack("!QQqI", lsn, end_lsn, time_us, xid) + _string(gid)
        case m.Prepare(lsn, end_lsn, time_us, xid, gid):
            return b"P\0" + struct.pack("!QQqI", lsn, end_lsn, time_us, xid) + _string(gid)
        case m.CommitPrepared(lsn, end_lsn, time_us, xid, gid):
            return b"K\0" + struct.pack("!QQqI", lsn, end_lsn, time_us, xid) + _string(gid)
        case m.StreamPrepare(lsn, end_lsn, time_us, xid, gid):
            return b"p\0" + struct.pack("!QQqI", lsn, end_lsn, time_us, xid) + _string(gid)
        case m.RollbackPrepared(prepare_end, rollback_end, prepare_us, rollback_us, xid, gid):
            return (
                b"r\0" + struct.pack("!QQqqI", prepare_end, rollback_end, prepare_us, rollback_us, xid) + _string(gid)
            )


def _xid(xid: int | None) -> bytes:
    return b"" if xid is None else struct.pack("!I", xid)


def _string(text: str) -> bytes:
    return text.encode() + b"\0"


def _namespace(name: str) -> bytes:
    return _string("" if name == "pg_catalog" else name)


def _counted(data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + data


def _relation(relation: Relation) -> bytes:
    columns = b"".join(
        struct.pack("!B", column.is_key)
        + _string(column.name)
        + struct.pack("!Ii", column.type_oid, column.type_modifier)
        for column in relation.columns
    )
    names = _namespace(relation.namespace) + _string(relation.name)
    identity = relation.replica_identity.value.encode()
    return struct.pack("!I", relation.oid) + names + identity + struct.pack("!H", len(relation.columns)) + columns


def _old(old: m.OldTuple) -> bytes:
    return (b"K" if old.key_only else b"O") + _tuple(old.cells)


def _tuple(cells: m.Tuple) -> bytes:
    parts = [struct.pack("!H", len(cells))]
    for cell in cells:
        if cell is None:
            parts.append(b"n")
        elif cell is UNCHANGED:
            parts.append(b"u")
        elif isinstance(cell, m.BinaryCell):
            parts.append(b"b" + _counted(cell.data))
        else:
            parts.append(b"t" + _counted(cell))
    return b"".join(parts)
