"""Every message with its bytes, put together by hand from the protocol's pages: (in a stream block?, hex, message)."""

from __future__ import annotations

from cdc.lsn import Lsn
from cdc.rows import UNCHANGED
from cdc.wire import messages as m
from cdc.wire.relations import Relation, RelationColumn, ReplicaIdentity

LSN_A, LSN_B = Lsn(0x16_B374D848), Lsn(0x16_B374D878)
A, B = "00000016b374d848", "00000016b374d878"
TIME_US, TIME = 1, "0000000000000001"
XID, X = 731, "000002db"
OID, R = 16384, "00004000"
GID, G = "tx-1", "74782d3100"
ROW = (b"7", b"h\xc3\xa9", None, UNCHANGED, m.BinaryCell(b"\x00\x01"))
ROW_HEX = "0005 74 00000001 37 74 00000003 68c3a9 6e 75 62 00000002 0001"
KEY, KEY_HEX = (b"6", None, None, None, None), "0005 74 00000001 36 6e 6e 6e 6e"
ARTICLES = Relation(
    OID,
    "public",
    "articles",
    ReplicaIdentity.DEFAULT,
    (RelationColumn("id", 20, -1, True), RelationColumn("név", 1043, 24, False)),
)
ARTICLES_HEX = (
    f"{R} 7075626c696300 61727469636c657300 64 0002 01 696400 00000014 ffffffff 00 6ec3a97600 00000413 00000018"
)

PLAIN: list[tuple[bool, str, m.Message]] = [
    (False, f"42 {A} {TIME} {X}", m.Begin(LSN_A, TIME_US, XID)),
    (False, f"43 00 {A} {B} {TIME}", m.Commit(LSN_A, LSN_B, TIME_US)),
    (False, f"4f {A} 656c7365 00", m.Origin(LSN_A, "else")),
    (False, f"52 {ARTICLES_HEX}", m.RelationMessage(None, ARTICLES)),
    (
        False,
        f"52 {R} 00 7400 66 0000",
        m.RelationMessage(None, Relation(OID, "pg_catalog", "t", ReplicaIdentity.FULL, ())),
    ),
    (False, "59 00004001 7075626c696300 6d6f6f6400", m.Type(None, 16385, "public", "mood")),
    (False, f"49 {R} 4e {ROW_HEX}", m.Insert(None, OID, ROW)),
    (False, f"55 {R} 4e {ROW_HEX}", m.Update(None, OID, None, ROW)),
    (False, f"55 {R} 4b {KEY_HEX} 4e {ROW_HEX}", m.Update(None, OID, m.OldTuple(True, KEY), ROW)),
    (False, f"55 {R} 4f {ROW_HEX} 4e {ROW_HEX}", m.Update(None, OID, m.OldTuple(False, ROW), ROW)),
    (False, f"44 {R} 4b {KEY_HEX}", m.Delete(None, OID, m.OldTuple(True, KEY))),
    (False, f"44 {R} 4f {ROW_HEX}", m.Delete(None, OID, m.OldTuple(False, ROW))),
    (False, f"54 00000002 01 {R} 00004001", m.Truncate(None, (OID, 16385), True, False)),
    (False, f"54 00000001 02 {R}", m.Truncate(None, (OID,), False, True)),
    (
        False,
        f"4d 01 {A} 77616c76656300 00000003 6f776e",
        m.LogicalMessage(None, True, LSN_A, "walvec", b"own"),
    ),
    (False, f"4d 00 {A} 00 00000000", m.LogicalMessage(None, False, LSN_A, "", b"")),
    (False, f"53 {X} 01", m.StreamStart(XID, True)),
    (False, f"53 {X} 00", m.StreamStart(XID, False)),
    (False, f"63 {X} 00 {A} {B} {TIME}", m.StreamCommit(XID, LSN_A, LSN_B, TIME_US)),
    (False, f"41 {X} 000002dc", m.StreamAbort(XID, 732)),
    (False, f"41 {X} 000002dc {A} {TIME}", m.StreamAbort(XID, 732, LSN_A, TIME_US)),
    (False, f"62 {A} {B} {TIME} {X} {G}", m.BeginPrepare(LSN_A, LSN_B, TIME_US, XID, GID)),
    (False, f"50 00 {A} {B} {TIME} {X} {G}", m.Prepare(LSN_A, LSN_B, TIME_US, XID, GID)),
    (False, f"4b 00 {A} {B} {TIME} {X} {G}", m.CommitPrepared(LSN_A, LSN_B, TIME_US, XID, GID)),
    (
        False,
        f"72 00 {A} {B} {TIME} ffffffffffffffff {X} {G}",
        m.RollbackPrepared(LSN_A, LSN_B, TIME_US, -1, XID, GID),
    ),
    (False, f"70 00 {A} {B} {TIME} {X} {G}", m.StreamPrepare(LSN_A, LSN_B, TIME_US, XID, GID)),
]

STREAMED: list[tuple[bool, str, m.Message]] = [
    (True, "45", m.StreamStop()),
    (True, f"52 {X} {ARTICLES_HEX}", m.RelationMessage(XID, ARTICLES)),
    (True, f"59 {X} 00004001 7075626c696300 6d6f6f6400", m.Type(XID, 16385, "public", "mood")),
    (True, f"49 {X} {R} 4e {ROW_HEX}", m.Insert(XID, OID, ROW)),
    (True, f"55 {X} {R} 4b {KEY_HEX} 4e {ROW_HEX}", m.Update(XID, OID, m.OldTuple(True, KEY), ROW)),
    (True, f"44 {X} {R} 4b {KEY_HEX}", m.Delete(XID, OID, m.OldTuple(True, KEY))),
    (True, f"54 {X} 00000001 00 {R}", m.Truncate(XID, (OID,), False, False)),
    (True, f"4d {X} 01 {A} 7000 00000001 78", m.LogicalMessage(XID, True, LSN_A, "p", b"x")),
]

SAMPLES = PLAIN + STREAMED
