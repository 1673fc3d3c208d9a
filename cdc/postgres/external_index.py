"""The database's side of an index that is kept outside it: publication, slot, snapshot, stream, and pgvector's index.

The table is in the publication before the slot is made, and the slot is made with an exported snapshot: what is read in
that snapshot and what the slot tells from there on meet exactly, with no change twice and none missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from cdc.errors import ConfigError, SlotInUse, Unavailable
from cdc.flow.keycodec import KeyCodec
from cdc.flow.vectorformat import VectorFormat
from cdc.jobs import IndexSpec, Job
from cdc.lsn import parse_lsn
from cdc.ports.indexes import Indexed, Observed, Origin, SlotPlace
from cdc.postgres import expressions
from cdc.postgres.connect import REPLICATION, classify, connect_sync, connection_params
from cdc.postgres.hnsw import build_index
from cdc.postgres.index_look import look
from cdc.postgres.queries import bound, query
from cdc.postgres.replication import Listener, PostgresStream, open_stream
from cdc.postgres.vector_copy import VectorChunk, copy_statement, copy_vectors

Conn = psycopg.Connection[TupleRow]


@dataclass(frozen=True, slots=True)
class IndexPlace:
    """Where an index's changes come from: what :func:`cdc.postgres.replication.open_stream` asks of settings."""

    database_url: str
    slot: str
    publication: str

    def __repr__(self) -> str:
        return f"<IndexPlace slot={self.slot!r}>"


def slot_name(job: Job) -> str:
    """Return the name of a job's slot and publication: its id, and a digest of the table that it is a row of.

    Slots are of a whole server, so the jobs of two books, both with the id 1, must not meet.
    """
    digest = hashlib.sha256(f"{job.id.database}\0{job.id.table}".encode()).hexdigest()[:8]
    return f"walvec_index_{job.id.id}_{digest}"


class PostgresIndexSource:
    """Implements :class:`cdc.ports.indexes.IndexSource`.

    Args:
        job: What is indexed, and where.
        spec: The job's.
    """

    def __init__(self, job: Job, spec: IndexSpec) -> None:
        self._job = job
        self._spec = spec
        self._place = IndexPlace(job.url, slot_name(job), slot_name(job))
        self._open: list[psycopg.Connection[Any]] = []  # sessions that may be blocked
        self._only = False  # what is read is without the tables that inherit from it, as the publication is
        self._reader: psycopg.Connection[Any] | None = None  # the session in the snapshot
        self._interrupted = False
        self._closing = threading.Lock()  # a session must not be closed while another thread cancels what it does

    # -- looking ----------------------------------------------------------------------------------------------------

    def observe(self) -> Observed:
        """Return the column, the publication and the slot as they are now, in one session."""
        with self._session("look") as conn:
            indexed = look(conn, self._job, self._spec)
            params = {"oid": indexed.oid, "publication": self._place.publication}
            made = conn.execute(bound("external_index", "publication"), params).fetchone()
            row = conn.execute(bound("external_index", "slot"), {"slot": self._place.slot}).fetchone()
        publication = str(made[0]) if made is not None and made[0] is not None else ""
        if row is None:
            return Observed(indexed, publication, SlotPlace(exists=False))
        _, _, pid, lost, confirmed = row
        slot = SlotPlace(True, bool(lost), pid is not None, parse_lsn(confirmed) if confirmed else 0)
        return Observed(indexed, publication, slot)

    # -- the base ---------------------------------------------------------------------------------------------------

    def begin(self, indexed: Indexed) -> Origin:
        """Make publication and slot anew, and open the snapshot that the slot begins with."""
        self._interrupted = False
        self._only = not indexed.partitioned
        self.discard()
        with self._session("setup") as conn:
            # From PostgreSQL 18 on: a vector may be generated, and a replica identity with a generated column that is
            # not published has UPDATEs refused.
            generated = ", publish_generated_columns = stored" if conn.info.server_version >= 180000 else ""
            conn.execute(
                query(
                    "external_index",
                    "make_publication",
                    publication=sql.Identifier(self._place.publication),
                    table=expressions.identifier(self._job.table),
                    generated=sql.SQL(generated),
                )
            )
            modern = conn.info.server_version >= 150000
        return self._begin_snapshot("make_slot" if modern else "make_slot_14")

    def _begin_snapshot(self, statement: str) -> Origin:
        """Make the slot, and open a session in the snapshot that it exports before the slot's session ends."""
        with self._session("slot", replication=True) as replication:
            row = replication.execute("IDENTIFY_SYSTEM").fetchone()
            assert row is not None
            system, timeline = str(row[0]), int(row[1])
            made = replication.execute(
                query("external_index", statement, slot=sql.Identifier(self._place.slot))
            ).fetchone()
            assert made is not None
            _, consistent_point, snapshot, _ = made
            reader = self._reader = connect_sync(self._place, "load")
            self._open.append(reader)
            try:
                reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                reader.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
            except psycopg.Error as exc:
                raise classify(exc) from exc
        return Origin(system, timeline, parse_lsn(consistent_point))

    def count(self) -> int:
        """Return how many vectors the snapshot holds."""
        statement = query(
            "external_index",
            "count",
            only=sql.SQL("ONLY " if self._only else ""),
            table=expressions.identifier(self._job.table),
            column=sql.Identifier(self._spec.column),
        )
        try:
            row = self._snapshot.execute(statement).fetchone()
        except psycopg.Error as exc:
            raise self._failure(exc) from exc
        return int(row[0]) if row else 0

    def chunks(self, indexed: Indexed, stop: threading.Event) -> Iterator[VectorChunk]:
        """Yield the snapshot's rows."""
        codec = KeyCodec(indexed.key)
        form = VectorFormat(indexed.base_type, self._spec.metric)
        statement = copy_statement(self._job.table, indexed.key, self._spec.column, codec, only=self._only)
        return copy_vectors(self._snapshot, statement, codec, form, indexed.dimension, stop)

    def end(self) -> None:
        """Let the snapshot go."""
        reader, self._reader = self._reader, None
        if reader is not None:
            self._close(reader)

    @property
    def _snapshot(self) -> psycopg.Connection[Any]:
        assert self._reader is not None, "begin() comes first"
        return self._reader

    def interrupt(self) -> None:
        """Make whatever blocks in another thread return or raise soon."""
        self._interrupted = True
        with self._closing:
            for connection in self._open:
                with contextlib.suppress(psycopg.Error):
                    connection.cancel_safe(timeout=2.0)

    def discard(self) -> None:
        """Drop slot and publication. Raises SlotInUse where somebody holds the slot."""
        with self._session("setup") as conn:
            slot = {"slot": self._place.slot}
            conn.execute(bound("external_index", "drop_slot"), slot)
            left = conn.execute(bound("external_index", "slot"), slot).fetchone()
            if left is not None and left[2] is None:
                raise ConfigError(
                    f'The replication slot "{self._place.slot}" is there already, in another database.',
                    "Drop it with pg_drop_replication_slot there, if nobody uses it.",
                )
            if left is not None:
                raise SlotInUse(f'Another consumer (pid {left[2]}) holds the slot "{self._place.slot}".')
            name = sql.Identifier(self._place.publication)
            conn.execute(query("external_index", "drop_publication", publication=name))

    # -- following --------------------------------------------------------------------------------------------------

    async def stream(self, listener: Listener, ended: Callable[[], None]) -> PostgresStream:
        """Attach to the slot."""
        return await open_stream(self._place, listener, ended)

    async def build(self, indexed: Indexed, progress: Callable[[int], Awaitable[None]]) -> str:
        """Build the in-database index of the job's name unless it is there; return in a sentence what was done."""
        params = connection_params(self._place, "index")
        return await build_index(params, self._job.table, indexed, self._spec, progress)

    # -- sessions ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _session(self, role: str, *, replication: bool = False) -> Iterator[Conn]:
        """Open a session for a few statements, which :meth:`interrupt` can cancel."""
        conn = connect_sync(self._place, REPLICATION if replication else role)
        self._open.append(conn)
        try:
            if not replication:
                conn.execute("SET lock_timeout = '10s'")
            yield conn
        except psycopg.Error as exc:
            raise self._failure(exc) from exc
        finally:
            self._close(conn)

    def _close(self, conn: psycopg.Connection[Any]) -> None:
        with self._closing:
            self._open.remove(conn)
            conn.close()

    def _failure(self, exc: psycopg.Error) -> Exception:
        if self._interrupted:
            return Unavailable("The work was ended.")
        return classify(exc)
