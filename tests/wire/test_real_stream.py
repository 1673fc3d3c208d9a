"""The decoder and the session against real walsenders, PostgreSQL 15 and 18."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest

from cdc.lsn import Lsn, parse_lsn
from cdc.rows import UNCHANGED
from cdc.testing.cluster import Cluster
from cdc.testing.database import Database
from cdc.testing.walbytes import encode
from cdc.wire import messages as m
from cdc.wire.frames import Keepalive, XLogData, parse_frame, pg_us
from cdc.wire.pgoutput import StreamDecoder
from cdc.wire.relations import RelationCache, ReplicaIdentity
from cdc.wire.session import ReplicationSession, SessionLimits
from cdc.wire.tuples import ROUTE_KEY, RowDecoder, route_keys

PATIENCE_S = 20.0


class Stream:
    """A consumer in one thread: reads, decodes, replies when the session says so.

    Args:
        connection: In COPY BOTH mode.
        acknowledge: Whether everything counts as done once it is received.
    """

    def __init__(self, connection: psycopg.Connection[Any], acknowledge: bool) -> None:
        self.pg = connection.pgconn
        self.acknowledge = acknowledge
        self.session = ReplicationSession(time.monotonic(), SessionLimits(ask_after=1.0, dead_after=5.0))
        self.decoder = StreamDecoder()
        self.frames: list[bytes] = []
        self.messages: list[m.Message] = []
        self.keepalives: list[Keepalive] = []

    def until(self, done: Callable[[], bool]) -> None:
        """Go on until ``done``."""
        end = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < end, f"not done after {PATIENCE_S} s: {self.messages[-5:]}"
            self.turn()

    def until_message(self, kind: type[m.Message], count: int = 1) -> None:
        self.until(lambda: sum(isinstance(message, kind) for message in self.messages) >= count)

    def turn(self) -> None:
        now = time.monotonic()
        wait = min(max(self.session.next_deadline(now) - now, 0.0), 0.2)
        if select.select([self.pg.socket], [], [], wait)[0]:
            self.pg.consume_input()
        while (read := self.pg.get_copy_data(1))[0] > 0:
            self.take(bytes(read[1]))
        assert read[0] == 0, "the server ended the stream"
        if self.acknowledge:
            self.session.acknowledge(self.session.received)
        now = time.monotonic()
        assert not self.session.is_dead(now)
        if self.session.reply_due(now):
            self.pg.put_copy_data(self.session.status_bytes(now, pg_us(time.time_ns() // 1000)))
            self.pg.flush()

    def take(self, payload: bytes) -> None:
        frame = parse_frame(payload)
        if isinstance(frame, Keepalive):
            self.keepalives.append(frame)
            self.session.heard_keepalive(frame, time.monotonic())
            return
        assert isinstance(frame, XLogData)
        message = self.decoder.decode(frame.payload)
        assert encode(message) == frame.payload, "the encoder for tests writes what the server writes"
        self.frames.append(payload)
        self.messages.append(message)
        self.session.heard_data(time.monotonic())
        if isinstance(message, m.Commit | m.StreamCommit | m.CommitPrepared):
            self.session.heard_commit(message.end_lsn)


@contextmanager
def streaming(
    database: Database, *options: str, acknowledge: bool = True, slot_options: str = "", settings: str = ""
) -> Iterator[Stream]:
    """Create slot ``s`` and stream publication ``p`` from it."""
    session_settings = f"-c wal_sender_timeout=15s {settings}"
    with closing(database.connect(replication="database", options=session_settings)) as connection:
        connection.execute(f"CREATE_REPLICATION_SLOT s TEMPORARY LOGICAL pgoutput {slot_options}".encode())
        given = ", ".join(["publication_names 'p'", "messages 'true'", *options])
        connection.execute(f"START_REPLICATION SLOT s LOGICAL 0/0 ({given})".encode())
        yield Stream(connection, acknowledge)


def changes(stream: Stream) -> list[m.Message]:
    brackets = (m.Begin, m.Commit, m.RelationMessage, m.Type)
    return [message for message in stream.messages if not isinstance(message, brackets)]


def test_every_change_of_a_table_is_read_as_it_was_made(database: Database, db: psycopg.Connection[Any]) -> None:
    db.execute("CREATE TYPE mood AS ENUM ('fine')")
    db.execute('CREATE TABLE "Odd ""näme" (id bigint PRIMARY KEY, "títle" varchar(20), body text, mood mood, n int)')
    db.execute("""ALTER TABLE "Odd ""näme" ALTER body SET STORAGE EXTERNAL""")
    db.execute("CREATE PUBLICATION p FOR ALL TABLES")
    long = "é" * 5000
    with streaming(database, "proto_version '1'") as stream:
        table = '"Odd ""näme"'
        db.execute(f"INSERT INTO {table} VALUES (1, 'añb', %s, 'fine', NULL)", (long,))
        db.execute(f"UPDATE {table} SET \"títle\" = '' WHERE id = 1")
        db.execute(f"UPDATE {table} SET id = 2 WHERE id = 1")
        db.execute(f"DELETE FROM {table} WHERE id = 2")
        db.execute(f"TRUNCATE {table} RESTART IDENTITY CASCADE")
        db.execute("SELECT pg_logical_emit_message(true, 'walvec', 'own')")
        stream.until(lambda: isinstance(stream.messages[-2:-1] and stream.messages[-2], m.LogicalMessage))
    relation = next(message.relation for message in stream.messages if isinstance(message, m.RelationMessage))
    assert (relation.namespace, relation.name) == ("public", 'Odd "näme')
    assert relation.column_names == ("id", "títle", "body", "mood", "n")
    assert relation.key_indexes == (0,)
    assert [column.type_modifier for column in relation.columns] == [-1, 24, -1, -1, -1]
    assert any(isinstance(message, m.Type) and message.name == "mood" for message in stream.messages)
    text, oid = long.encode(), relation.oid
    old = m.OldTuple(True, (b"1", None, None, None, None))
    *rows, message = changes(stream)
    assert rows == [
        m.Insert(None, oid, (b"1", "añb".encode(), text, b"fine", None)),
        m.Update(None, oid, None, (b"1", b"", UNCHANGED, b"fine", None)),
        m.Update(None, oid, old, (b"2", b"", UNCHANGED, b"fine", None)),
        m.Delete(None, oid, m.OldTuple(True, (b"2", None, None, None, None))),
        m.Truncate(None, (oid,), True, True),
    ]
    assert isinstance(message, m.LogicalMessage)
    assert (message.transactional, message.prefix, message.content) == (True, "walvec", b"own")
    decoder, keys = RowDecoder(relation, (0, 2)), route_keys(relation)
    found = [(keys[frame[ROUTE_KEY]], frame) for frame in stream.frames if frame[ROUTE_KEY] in keys]
    assert [tag for tag, _ in found] == [b"I", b"U", b"U", b"D"]
    insert, update, moved, delete = (frame for _, frame in found)
    assert decoder.insert(insert) == decoder.last_tuple(insert) == [b"1", text]
    assert decoder.update(update) == (None, [b"1", UNCHANGED])
    assert decoder.update(moved) == ([b"1", None], [b"2", UNCHANGED])
    assert decoder.delete(delete) == [b"2", None]


def test_full_identity_sends_whole_old_rows_and_a_changed_table_is_described_again(
    database: Database, db: psycopg.Connection[Any]
) -> None:
    db.execute("CREATE TABLE t (id int, body text)")
    db.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    db.execute("CREATE PUBLICATION p FOR TABLE t")
    cache = RelationCache()
    with streaming(database, "proto_version '1'") as stream:
        db.execute("INSERT INTO t VALUES (1, 'a')")
        db.execute("UPDATE t SET body = 'b'")
        db.execute("ALTER TABLE t ALTER id TYPE bigint")
        db.execute("DELETE FROM t")
        stream.until_message(m.Delete)
    relations = [message.relation for message in stream.messages if isinstance(message, m.RelationMessage)]
    assert relations[0].replica_identity is ReplicaIdentity.FULL
    first, last = relations[0], relations[-1]
    assert cache.learn(first) is None
    assert cache.learn(last) is first
    assert not last.same_shape(first)
    assert last.same_shape(first, ["body"])
    assert changes(stream)[1:] == [
        m.Update(None, first.oid, m.OldTuple(False, (b"1", b"a")), (b"1", b"b")),
        m.Delete(None, first.oid, m.OldTuple(False, (b"1", b"b"))),
    ]


def test_the_binary_format(database: Database, db: psycopg.Connection[Any]) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY, body text)")
    db.execute("CREATE PUBLICATION p FOR TABLE t")
    with streaming(database, "proto_version '1'", "binary 'true'") as stream:
        db.execute("INSERT INTO t VALUES (258, 'a')")
        stream.until_message(m.Insert)
    assert changes(stream) == [m.Insert(None, _oid(stream), _binary(b"\0\0\1\2", b"a"))]


def _oid(stream: Stream) -> int:
    return next(message.relation.oid for message in stream.messages if isinstance(message, m.RelationMessage))


def _binary(*cells: bytes) -> tuple[m.BinaryCell, ...]:
    return tuple(m.BinaryCell(cell) for cell in cells)


def _emit_streamed(db: psycopg.Connection[Any]) -> None:
    """A transaction too large for the walsender's memory, with a rolled-back part; and one that rolls back whole."""
    with db.transaction():
        db.execute("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 500) i")
        with db.transaction() as part:
            db.execute("INSERT INTO t SELECT i, repeat('y', 500) FROM generate_series(501, 1000) i")
            raise psycopg.Rollback(part)
    with db.transaction() as whole:
        db.execute("INSERT INTO t SELECT i, repeat('z', 500) FROM generate_series(1001, 1500) i")
        raise psycopg.Rollback(whole)


def _kept(stream: Stream) -> int:
    """Replay the blocks and count the rows that are committed in the end."""
    open_rows: dict[int, list[int]] = {}
    committed, block = 0, 0
    for message in stream.messages:
        match message:
            case m.StreamStart(xid, _):
                block = xid
            case m.Insert(xid, _, _) if xid is not None:
                open_rows.setdefault(block, []).append(xid)
            case m.StreamAbort(xid, subxid):
                open_rows[xid] = [row for row in open_rows.get(xid, []) if row != subxid and xid != subxid]
            case m.StreamCommit(xid):
                committed += len(open_rows.pop(xid, []))
    return committed


def _stream_and_count(database: Database, version: str) -> None:
    mode = "parallel" if version == "4" else "on"
    options = (f"proto_version '{version}'", f"streaming '{mode}'")
    settings = "-c logical_decoding_work_mem=64kB"
    with database.connect() as db:
        db.execute("CREATE TABLE t (id int PRIMARY KEY, body text)")
        db.execute("CREATE PUBLICATION p FOR TABLE t")
    with database.connect() as db, streaming(database, *options, settings=settings) as stream:
        _emit_streamed(db)
        db.execute("SELECT pg_logical_emit_message(true, 'end', '')")
        stream.until_message(m.LogicalMessage)
    assert _kept(stream) == 500
    aborts = [message for message in stream.messages if isinstance(message, m.StreamAbort)]
    assert aborts
    assert all((abort.abort_lsn is not None) is (version == "4") for abort in aborts)
    assert {message.xid for message in stream.messages if isinstance(message, m.RelationMessage)} != {None}


def test_streamed_transactions_and_their_aborts(database: Database) -> None:
    _stream_and_count(database, "2")


def test_transactions_streamed_for_parallel_workers(database18: Database) -> None:
    _stream_and_count(database18, "4")


def test_two_phase_transactions(database: Database, db: psycopg.Connection[Any]) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY, body text)")
    db.execute("CREATE PUBLICATION p FOR TABLE t")
    options = ("proto_version '3'", "two_phase 'on'", "streaming 'on'")
    small = "INSERT INTO t VALUES (%s, 'a')"
    large = "INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(%s + 1, %s + 500) i"
    memory = "-c logical_decoding_work_mem=64kB"
    with streaming(database, *options, slot_options="(TWO_PHASE)", settings=memory) as stream:
        for gid, statement, first in (("kept", small, 1), ("lost", small, 2), ("big", large, 100)):
            db.execute("BEGIN")
            db.execute(statement, (first,) * statement.count("%s"))
            db.execute(f"PREPARE TRANSACTION '{gid}'")
        for command in ("COMMIT PREPARED 'kept'", "ROLLBACK PREPARED 'lost'", "COMMIT PREPARED 'big'"):
            db.execute(command)
        stream.until_message(m.CommitPrepared, 2)
    kinds = (m.BeginPrepare, m.Prepare, m.StreamPrepare, m.CommitPrepared, m.RollbackPrepared)
    assert [(type(message), message.gid) for message in stream.messages if isinstance(message, kinds)] == [
        (m.BeginPrepare, "kept"),
        (m.Prepare, "kept"),
        (m.BeginPrepare, "lost"),
        (m.Prepare, "lost"),
        (m.StreamPrepare, "big"),
        (m.CommitPrepared, "kept"),
        (m.RollbackPrepared, "lost"),
        (m.CommitPrepared, "big"),
    ]


def test_a_replication_origin_is_named(database: Database, db: psycopg.Connection[Any]) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY)")
    db.execute("CREATE PUBLICATION p FOR TABLE t")
    origin = f"origin of {database.name}"
    db.execute("SELECT pg_replication_origin_create(%s)", (origin,))
    with streaming(database, "proto_version '1'") as stream:
        db.execute("SELECT pg_replication_origin_session_setup(%s)", (origin,))
        db.execute("INSERT INTO t VALUES (1)")
        stream.until_message(m.Insert)
    db.execute("SELECT pg_replication_origin_session_reset()")
    db.execute("SELECT pg_replication_origin_drop(%s)", (origin,))
    assert [message.name for message in stream.messages if isinstance(message, m.Origin)] == [origin]


def _confirmed(db: psycopg.Connection[Any]) -> Lsn:
    row = db.execute(
        "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 's' AND database = current_database()"
    ).fetchone()
    return parse_lsn(str(row[0]))


def test_wal_that_is_not_for_us_is_acknowledged_too(database: Database, db: psycopg.Connection[Any]) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY)")
    db.execute("CREATE TABLE other (body text)")
    db.execute("CREATE PUBLICATION p FOR TABLE t")
    with streaming(database, "proto_version '1'") as stream:
        db.execute("INSERT INTO other SELECT repeat('x', 200) FROM generate_series(1, 20000)")
        target = parse_lsn(str(db.execute("SELECT pg_current_wal_flush_lsn()").fetchone()[0]))
        stream.until(lambda: _confirmed(db) >= target)
        assert _confirmed(db) <= stream.session.acknowledged
    assert not any(isinstance(message, m.Insert) for message in stream.messages)
    assert not any(keepalive.reply_requested for keepalive in stream.keepalives), "all this without being asked"


def test_pending_work_holds_the_slot_back(database: Database, db: psycopg.Connection[Any]) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY)")
    db.execute("CREATE PUBLICATION p FOR TABLE t")
    with streaming(database, "proto_version '1'", acknowledge=False) as stream:
        before = _confirmed(db)
        for key in range(3):
            db.execute("INSERT INTO t VALUES (%s)", (key,))
        stream.until_message(m.Commit, 3)
        ends = [message.end_lsn for message in stream.messages if isinstance(message, m.Commit)]
        stream.turn()
        assert _confirmed(db) == before
        stream.session.acknowledge(ends[1])
        stream.until(lambda: _confirmed(db) > before)
        assert _confirmed(db) == ends[1]


def test_a_silent_server_answers_when_asked(database: Database, db: psycopg.Connection[Any]) -> None:
    db.execute("CREATE PUBLICATION p")
    with streaming(database, "proto_version '1'") as stream:
        stream.until(lambda: stream.session.silent_for(time.monotonic()) >= 0.9)
        seen = len(stream.keepalives)
        stream.until(lambda: len(stream.keepalives) > seen)
        assert stream.session.silent_for(time.monotonic()) < 0.9


@contextmanager
def _stopping(cluster: Cluster) -> Iterator[threading.Thread]:
    """Stop the server beside us; it runs again when the block ends."""
    failures: list[BaseException] = []

    def stop() -> None:
        try:
            cluster.stop("fast", timeout=PATIENCE_S)
        except BaseException as failed:
            failures.append(failed)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()
        if cluster.pid is not None:
            cluster.stop("immediate")
        cluster.start()
    assert not failures


def _until_gone(stream: Stream) -> None:
    """Read until the server hangs up."""
    with pytest.raises((AssertionError, psycopg.OperationalError), match=r"ended the stream|closed the connection"):
        stream.until(lambda: False)


def test_a_server_that_stops_waits_for_nobody_who_is_in_step(database: Database, db: psycopg.Connection[Any]) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY)")
    db.execute("CREATE PUBLICATION p FOR TABLE t")
    with streaming(database, "proto_version '1'") as stream:
        db.execute("INSERT INTO t VALUES (1)")
        stream.until_message(m.Commit)
        begin = time.monotonic()
        with _stopping(database.cluster):
            _until_gone(stream)
        assert not stream.session.server_is_shutting_down
        assert time.monotonic() - begin < PATIENCE_S


def test_a_server_that_stops_while_work_is_pending_is_noticed(database: Database, db: psycopg.Connection[Any]) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY)")
    db.execute("CREATE PUBLICATION p FOR TABLE t")
    with streaming(database, "proto_version '1'", acknowledge=False) as stream:
        db.execute("INSERT INTO t VALUES (1)")
        stream.until_message(m.Commit)
        stream.session.acknowledge(stream.session.received)  # from now on the server waits for us
        db.execute("INSERT INTO t VALUES (2)")
        stream.until_message(m.Commit, 2)
        with _stopping(database.cluster) as stopping:
            stream.until(lambda: stream.session.server_is_shutting_down)
            assert stopping.is_alive(), "it would wait for ever"
            stream.pg.finish()
            stopping.join(PATIENCE_S)
            assert not stopping.is_alive()
