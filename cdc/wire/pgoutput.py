"""One pgoutput message body to one frozen message, for protocol versions 1 to 4.

Source: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html. Strictness is that of the
server's own subscriber: flags of Commit and the two-phase messages must be 0, unknown bits of other flags are
ignored. ``RULES`` holds one line for each tag; :func:`decode` walks it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Final

from cdc.errors import DecodeError
from cdc.lsn import Lsn
from cdc.rows import UNCHANGED, Cell
from cdc.wire.messages import (
    Begin,
    BeginPrepare,
    BinaryCell,
    Commit,
    CommitPrepared,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    OldTuple,
    Origin,
    Prepare,
    RelationMessage,
    RollbackPrepared,
    StreamAbort,
    StreamCommit,
    StreamPrepare,
    StreamStart,
    StreamStop,
    Truncate,
    Tuple,
    Type,
    Update,
)
from cdc.wire.reader import ByteReader
from cdc.wire.relations import Relation, RelationColumn, ReplicaIdentity

_KEY_COLUMN: Final = 1
_TRANSACTIONAL: Final = 1
_CASCADE: Final = 1
_RESTART_IDENTITY: Final = 2

_LSN_TIME_XID: Final = Struct(">QqI")
_LSN_LSN_TIME: Final = Struct(">QQq")
_LSN_LSN_TIME_XID: Final = Struct(">QQqI")
_LSN_LSN_TIME_TIME_XID: Final = Struct(">QQqqI")
_LSN: Final = Struct(">Q")
_LSN_TIME: Final = Struct(">Qq")
_XID_XID: Final = Struct(">II")
_TYPE_AND_MODIFIER: Final = Struct(">Ii")


def _unset_flags(read: ByteReader) -> None:
    if read.byte():
        raise read.fail("flags are set that no version of the protocol defines")


def _begin(read: ByteReader, _xid: int | None) -> Begin:
    lsn, commit_us, xid = read.fields(_LSN_TIME_XID)
    return Begin(Lsn(lsn), commit_us, xid)


def _commit(read: ByteReader, _xid: int | None) -> Commit:
    _unset_flags(read)
    commit_lsn, end_lsn, commit_us = read.fields(_LSN_LSN_TIME)
    return Commit(Lsn(commit_lsn), Lsn(end_lsn), commit_us)


def _origin(read: ByteReader, _xid: int | None) -> Origin:
    return Origin(Lsn(read.fields(_LSN)[0]), read.string())


def _namespace(read: ByteReader) -> str:
    return read.string() or "pg_catalog"  # the server leaves its own schema's name out


def _relation(read: ByteReader, xid: int | None) -> RelationMessage:
    oid = read.u32()
    namespace, name = _namespace(read), read.string()
    try:
        identity = ReplicaIdentity(chr(read.byte()))
    except ValueError:
        raise read.fail("the replica identity is unknown") from None
    columns = tuple(_column(read) for _ in range(read.u16()))
    return RelationMessage(xid, Relation(oid, namespace, name, identity, columns))


def _column(read: ByteReader) -> RelationColumn:
    flags, name = read.byte(), read.string()
    type_oid, modifier = read.fields(_TYPE_AND_MODIFIER)
    return RelationColumn(name, type_oid, modifier, bool(flags & _KEY_COLUMN))


def _type(read: ByteReader, xid: int | None) -> Type:
    return Type(xid, read.u32(), _namespace(read), read.string())


def _cell(read: ByteReader) -> Cell | BinaryCell:
    match chr(read.byte()):
        case "t":
            return read.data()
        case "n":
            return None
        case "u":
            return UNCHANGED
        case "b":
            return BinaryCell(read.data())
    raise read.fail("the kind of a cell is unknown")


def _tuple(read: ByteReader) -> Tuple:
    return tuple([_cell(read) for _ in range(read.u16())])


def _new_tuple(read: ByteReader, kind: str) -> Tuple:
    if kind != "N":
        raise read.fail("a new row (N) is expected")
    return _tuple(read)


def _insert(read: ByteReader, xid: int | None) -> Insert:
    return Insert(xid, read.u32(), _new_tuple(read, chr(read.byte())))


def _update(read: ByteReader, xid: int | None) -> Update:
    oid, kind, old = read.u32(), chr(read.byte()), None
    if kind in "KO":
        old = OldTuple(kind == "K", _tuple(read))
        kind = chr(read.byte())
    return Update(xid, oid, old, _new_tuple(read, kind))


def _delete(read: ByteReader, xid: int | None) -> Delete:
    oid, kind = read.u32(), chr(read.byte())
    if kind not in "KO":
        raise read.fail("an old row (K or O) is expected")
    return Delete(xid, oid, OldTuple(kind == "K", _tuple(read)))


def _truncate(read: ByteReader, xid: int | None) -> Truncate:
    count, flags = read.u32(), read.byte()
    oids = read.fields(Struct(f">{count}I"))  # looks for the bytes before it makes room for the numbers
    return Truncate(xid, oids, bool(flags & _CASCADE), bool(flags & _RESTART_IDENTITY))


def _message(read: ByteReader, xid: int | None) -> LogicalMessage:
    flags = read.byte()
    lsn = Lsn(read.fields(_LSN)[0])
    return LogicalMessage(xid, bool(flags & _TRANSACTIONAL), lsn, read.string(), read.data())


def _stream_start(read: ByteReader, _xid: int | None) -> StreamStart:
    return StreamStart(read.u32(), read.byte() == 1)


def _stream_stop(_read: ByteReader, _xid: int | None) -> StreamStop:
    return StreamStop()


def _stream_commit(read: ByteReader, _xid: int | None) -> StreamCommit:
    xid = read.u32()
    _unset_flags(read)
    commit_lsn, end_lsn, commit_us = read.fields(_LSN_LSN_TIME)
    return StreamCommit(xid, Lsn(commit_lsn), Lsn(end_lsn), commit_us)


def _stream_abort(read: ByteReader, _xid: int | None) -> StreamAbort:
    xid, subxid = read.fields(_XID_XID)
    if not read.remaining:
        return StreamAbort(xid, subxid)
    abort_lsn, abort_us = read.fields(_LSN_TIME)
    return StreamAbort(xid, subxid, Lsn(abort_lsn), abort_us)


Parse = Callable[[ByteReader, int | None], Message]
"""Reads the fields of one message; the second argument is the xid of the stream block it stands in."""


def _two_phase(make: Callable[..., Message], layout: Struct, flags: bool) -> Parse:
    """Return the parser of a two-phase message: perhaps a flags byte, then ``layout``, then the transaction's name."""

    def parse(read: ByteReader, _xid: int | None) -> Message:
        if flags:
            _unset_flags(read)
        return make(*read.fields(layout), read.string())

    return parse


@dataclass(frozen=True, slots=True)
class Rule:
    """How to read the messages of one tag.

    ``streamed``: inside a stream block the xid stands before the fields that ``parse`` reads.
    """

    name: str
    parse: Parse
    streamed: bool = False


RULES: Final[dict[int, Rule]] = {
    ord("B"): Rule("Begin", _begin),
    ord("C"): Rule("Commit", _commit),
    ord("O"): Rule("Origin", _origin),
    ord("R"): Rule("Relation", _relation, streamed=True),
    ord("Y"): Rule("Type", _type, streamed=True),
    ord("I"): Rule("Insert", _insert, streamed=True),
    ord("U"): Rule("Update", _update, streamed=True),
    ord("D"): Rule("Delete", _delete, streamed=True),
    ord("T"): Rule("Truncate", _truncate, streamed=True),
    ord("M"): Rule("Message", _message, streamed=True),
    ord("S"): Rule("Stream Start", _stream_start),
    ord("E"): Rule("Stream Stop", _stream_stop),
    ord("c"): Rule("Stream Commit", _stream_commit),
    ord("A"): Rule("Stream Abort", _stream_abort),
    ord("b"): Rule("Begin Prepare", _two_phase(BeginPrepare, _LSN_LSN_TIME_XID, flags=False)),
    ord("P"): Rule("Prepare", _two_phase(Prepare, _LSN_LSN_TIME_XID, flags=True)),
    ord("K"): Rule("Commit Prepared", _two_phase(CommitPrepared, _LSN_LSN_TIME_XID, flags=True)),
    ord("r"): Rule("Rollback Prepared", _two_phase(RollbackPrepared, _LSN_LSN_TIME_TIME_XID, flags=True)),
    ord("p"): Rule("Stream Prepare", _two_phase(StreamPrepare, _LSN_LSN_TIME_XID, flags=True)),
}


def decode(body: bytes, *, streaming: bool = False) -> Message:
    """Return the message that ``body`` holds.

    Args:
        body: The payload of one XLogData, from its tag byte to its end.
        streaming: Between a Stream Start and its Stop, where changes carry the xid.

    Raises:
        DecodeError: ``body`` is not one whole message of the protocol, whatever the bytes.
    """
    read = ByteReader(body)
    tag = read.byte()
    rule = RULES.get(tag)
    if rule is None:
        raise read.fail(f"the tag {tag:#04x} is unknown")
    read.name = rule.name
    message = rule.parse(read, read.u32() if streaming and rule.streamed else None)
    read.finish()
    return message


class StreamDecoder:
    """Decodes the messages of one connection in order, keeping track of stream blocks."""

    __slots__ = ("_streaming",)

    def __init__(self) -> None:
        self._streaming = False

    def decode(self, body: bytes) -> Message:
        """Return the next message.

        Raises:
            DecodeError: As :func:`decode`, and for a block that starts inside another or ends outside one.
        """
        message = decode(body, streaming=self._streaming)
        if isinstance(message, StreamStart | StreamStop):
            starts = isinstance(message, StreamStart)
            if starts is self._streaming:
                raise DecodeError(
                    f"pgoutput: a stream block {'starts inside another' if starts else 'ends outside one'}"
                )
            self._streaming = starts
        return message
