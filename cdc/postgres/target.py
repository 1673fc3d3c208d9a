"""One pipeline's source and destination: reads by key and by page, and the versioned, fenced write-back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import psycopg
from psycopg import sql
from psycopg_pool import PoolTimeout

from cdc.errors import AnswerNotCast, ConfigError, Fenced, PipelineFault, RowRefused, Unavailable, WalvecError
from cdc.flow.counts import Counted
from cdc.flow.dirty import Work
from cdc.flow.snapshots import Snapshot
from cdc.lsn import format_lsn, parse_lsn
from cdc.ports import Difference, Page, Reread, Results, Write, Written
from cdc.postgres import binary
from cdc.postgres.connect import classify
from cdc.postgres.pool import Pool, WorkPools
from cdc.postgres.statements import ANSWER, Definition, Statements
from cdc.rows import Column, Key, key_cells

Row = tuple[bytes | None, ...]

_NUMBERS = frozenset({"int2", "int4", "int8", "oid"})
_BUILDERS = {"vector": binary.vectors, "halfvec": binary.half_vectors, "real[]": binary.real_arrays}


def key_text(key: Key) -> str:
    """Return the key as the durable queue stores it: a JSON array of the cells in the server's text form."""
    return json.dumps([cell.decode("utf-8", "replace") for cell in key_cells(key)], ensure_ascii=False)


def key_of_text(text: str) -> Key:
    """Return the key that :func:`key_text` wrote."""
    cells = [cell.encode() for cell in json.loads(text)]
    return cells[0] if len(cells) == 1 else tuple(cells)


def key_object(columns: Sequence[Column], cells: Sequence[bytes]) -> dict[str, Any]:
    """Return the key as people read it: column names to values, integers as numbers."""
    return {
        column.name: int(cell) if column.base_type in _NUMBERS else cell.decode("utf-8", "replace")
        for column, cell in zip(columns, cells, strict=True)
    }


async def run(pool: Pool, statement: sql.SQL, params: dict[str, Any], *, whole: bool = False) -> list[Row]:
    """Run one statement, a transaction of its own, and return its rows as the server printed them.

    Args:
        pool: Sessions whose plans keep to indexes.
        statement: The statement.
        params: Its parameters.
        whole: It reads a table from end to end, and may.

    Raises:
        WalvecError: what the failure means for a pipeline.
    """
    try:
        async with AsyncExitStack() as stack:
            connection = await stack.enter_async_context(pool.connection())
            if whole:
                await stack.enter_async_context(connection.transaction())
                await connection.execute("SET LOCAL enable_seqscan = on")
            try:
                cursor = await connection.execute(statement, params, prepare=True)
            except psycopg.errors.FeatureNotSupported as exc:
                # The plan was cached before a column changed its type: this session's plans are of no use any more.
                await connection.close()
                raise Unavailable("A table changed its columns while a statement was prepared for it.") from exc
            result = cursor.pgresult
            if result is None:
                return []
            columns = range(result.nfields)
            return [tuple(result.get_value(row, column) for column in columns) for row in range(result.ntuples)]
    except PoolTimeout:
        raise Unavailable("No connection to the database was to be had in time.") from None
    except psycopg.Error as exc:
        raise _meaning(exc) from exc


class _SameRow(PipelineFault):
    """Keys of one write that print differently, as 1.0 and 1.00 do, name the same row."""


def _meaning(exc: psycopg.Error) -> WalvecError:
    if exc.sqlstate == "21000":  # cardinality_violation: ON CONFLICT cannot affect a row a second time
        return _SameRow("Several keys of one write name the same row.")
    if exc.sqlstate is not None and exc.sqlstate[:2] in ("22", "23", "54"):
        return RowRefused(f"The database refused a row (SQLSTATE {exc.sqlstate}).")
    error = classify(exc)
    if isinstance(error, ConfigError):  # a grant that is missing concerns this pipeline alone
        return PipelineFault(error.message, error.remedy)
    return error


class PostgresTarget:
    """Implements :class:`cdc.ports.Target` over pools of ordinary sessions in autocommit.

    Args:
        pools: The sessions.
        definition: The pipeline.
        turn: Held by whoever writes into the source's own rows. Two who do so at once move each other's rows away, and
            what does not find its row must be embedded again.
    """

    def __init__(self, pools: WorkPools, definition: Definition, turn: asyncio.Lock) -> None:
        self._pools = pools
        self._turn = turn
        self._definition = definition
        self._sql = Statements(definition)
        self._width = len(definition.source.key)
        self._queue_used = False
        self._letters_used = False
        self.in_place = definition.column is not None
        self.fingerprint = definition.fingerprint
        self.mark = f"own {definition.id}".encode()  # as write_in_place has it

    # -- reading ----------------------------------------------------------------------------------------------------

    async def snapshot(self) -> Snapshot:
        """Return what a query would see now."""
        rows = await self._run(sql.SQL("SELECT pg_catalog.pg_current_snapshot()::text"), {})
        return Snapshot.parse(_text(rows[0][0]))

    async def read(self, keys: Sequence[Key], text_bytes: int) -> list[Reread]:
        """Return the rows of ``keys`` as they are now, in order, with up to about ``text_bytes`` of text."""
        rows = await self._run(self._sql.read_keys, {**self._sql.keys("g", keys), "bytes": text_bytes})
        return [
            Reread(
                found=_true(found),
                hash=_bytea(digest),
                embedded=_true(has),
                same=_true(same),
                text=text,
                deferred=_true(deferred),
                lsn=parse_lsn(_text(lsn)),
            )
            for found, digest, has, same, text, deferred, lsn in rows
        ]

    async def unchanged(self, works: Sequence[Work]) -> set[int]:
        """Return the indexes of the works whose embedding stands already, by hash."""
        return set(await self._indexes(self._sql.unchanged, self._hashed(works)))

    async def set_aside(self, works: Sequence[Work]) -> set[int]:
        """Return the indexes of the works whose row was set aside for this very text, by hash."""
        if not self._letters_used or not works:
            return set()
        params = {
            "pipeline": self._definition.id,
            "cells": [key_text(work.key) for work in works],
            "hashes": binary.hashes([work.hash for work in works]),
        }
        return set(await self._indexes(self._sql.set_aside, params))

    async def count_source(self) -> tuple[int, Snapshot, int]:
        """Count the source's rows, once; return them, what the count could see, and where the log ends by then."""
        ((rows, snapshot, end),) = await self._run(self._sql.count_source, {}, whole=True)
        return _int(rows), Snapshot.parse(_text(snapshot)), parse_lsn(_text(end))

    async def scan(self, after: tuple[str, ...] | None, rows: int, text_bytes: int) -> Page:
        """Return the keyset page of the source that follows the key ``after``."""
        statement = self._sql.scan_first if after is None else self._sql.scan_after
        result = await self._page_rows(statement, {"limit": rows, "bytes": text_bytes, **self._sql.cursor(after)})
        width = self._width
        differences = tuple(Difference(_key(row[:width]), row[width + 2]) for row in result if _true(row[width + 1]))
        return self._page(result, differences, total=width + 4)

    async def orphans(self, after: tuple[str, ...] | None, rows: int) -> Page:
        """Return the keyset page of the destination that follows ``after``; its differences are orphans."""
        statement = self._sql.orphans_first if after is None else self._sql.orphans_after
        result = await self._page_rows(statement, {"limit": rows, **self._sql.cursor(after)})
        width = self._width
        differences = tuple(Difference(_key(row[:width]), None) for row in result if _true(row[width]))
        return self._page(result, differences, total=width + 1)

    def _page(self, result: Sequence[Row], differences: tuple[Difference, ...], *, total: int) -> Page:
        if not result:
            return Page(0, None, (), 0)
        final = result[-1]
        last = tuple(_text(cell) for cell in final[: self._width])
        return Page(_int(final[total]), last, differences, parse_lsn(_text(final[total + 1])))

    # -- writing ----------------------------------------------------------------------------------------------------

    async def write(self, write: Write, counted: Counted) -> Written:
        """Carry out ``write`` in one transaction, with the count of source rows beside it.

        Raises:
            Fenced: another consumer has taken over.
            Unavailable: the database is out of reach, or a lock was not to be had.
            RowRefused: the database refused a value of the batch; AnswerNotCast: it is no value of the column's type.
            PipelineFault: source or destination are not what they were.
        """
        gone = write.removals or [letter.work for letter in write.dead]
        guarded = write.guarded or self.in_place
        params = {
            **self._hashed(write.upserts),
            **self._sql.keys("g", [work.key for work in gone]),
            "vectors": self._vectors(write.vectors),
            "lsns": binary.lsns(work.lsn for work in write.upserts),
            "gone_lsns": binary.lsns(work.lsn for work in gone),
            "force": bool(write.dead),
            "model": self._definition.model,
            "written_lsn": format_lsn(max((work.lsn for work in write.works), default=0)),
            **self._queue_params(write),
            **self._letter_params(write),
            **self._count_params(counted),
        }
        try:
            async with AsyncExitStack() as stack:
                if self.in_place:
                    await stack.enter_async_context(self._turn)
                rows = await self._write(params, guarded)
        except RowRefused as exc:
            if self._definition.vector.name == ANSWER and isinstance(exc.__cause__, psycopg.DataError):
                raise AnswerNotCast(f"The model's answer is no value of type {self._definition.vector.sql}.") from exc
            raise
        ((embeddings, written, removed, dequeued),) = rows
        self._check_fence(embeddings)
        refused: list[Work] = []
        if _int(written) != len(write.upserts):
            late = await self._indexes(self._sql.refused, self._hashed(write.upserts))
            refused += [write.upserts[index] for index in late]
        if write.removals and _int(removed) != len(write.removals):
            kept = await self._indexes(self._sql.surviving, self._sql.keys("g", [w.key for w in write.removals]))
            refused += [write.removals[index] for index in kept]
        return Written(_int(embeddings), tuple(refused), _int(dequeued))

    async def _write(self, params: dict[str, Any], guarded: bool) -> list[Row]:
        statements = self._sql
        try:
            return await self._run(statements.write_guarded if guarded else statements.write_versioned, params)
        except _SameRow:
            once = statements.write_guarded_once if guarded else statements.write_versioned_once
            return await self._run(once, params)

    async def truncate(self, lsn: int) -> Written:
        """Remove the embeddings of all that was in the source before ``lsn``."""
        ((embeddings, _, dequeued),) = await self._run(self._sql.truncate, {**self._fence(), "lsn": format_lsn(lsn)})
        self._check_fence(embeddings)
        return Written(_int(embeddings), (), _int(dequeued))

    async def save_count(self, counted: Counted) -> None:
        """Make the count of source rows durable."""
        await self._fenced(self._sql.save_count, self._count_params(counted))

    async def recount_embeddings(self) -> int:
        """Count the destination's rows, once, correct the count that writes keep, and return it."""
        rows = await self._run(self._sql.miscounted, {"pipeline": self._definition.id}, whole=True)
        difference = _int(rows[0][0]) if rows else 0
        return await self._fenced(self._sql.correct_count, {**self._fence(), "difference": difference})

    async def save_scan(
        self, reason: str | None, phase: str, cursor: tuple[str, ...] | None, done: int, total: int
    ) -> None:
        """Make the scan's progress durable. No reason: it is complete."""
        params = {"reason": reason, "phase": phase, "cursor": list(cursor) if cursor else None}
        await self._fenced(self._sql.save_scan, {**self._fence(), **params, "done": done, "total": total})

    # -- the durable queue ------------------------------------------------------------------------------------------

    async def enqueue(self, works: Sequence[Work], counted: Counted) -> int:
        """Queue the works' keys durably; return how many keys the queue gained."""
        params = {
            **self._count_params(counted),
            "keys": [key_text(work.key) for work in works],
            "lsns": binary.lsns(work.lsn for work in works),
            "written_lsn": format_lsn(max((work.lsn for work in works), default=0)),
        }
        ((embeddings, gained),) = await self._run(self._sql.enqueue, params)
        self._check_fence(embeddings)
        self._queue_used = True
        return _int(gained)

    async def dequeue(self, rows: int) -> list[tuple[Key, int]]:
        """Lease up to ``rows`` keys of the durable queue, each with its version."""
        result = await self._run(self._sql.dequeue, {"pipeline": self._definition.id, "limit": rows})
        return [(key_of_text(_text(key)), parse_lsn(_text(lsn))) for key, lsn in result]

    async def queued(self) -> int:
        """Return how many keys the durable queue holds. Call it once before the first write."""
        ((keys, letters),) = await self._run(self._sql.queued, {"pipeline": self._definition.id})
        self._queue_used = self._queue_used or _int(keys) > 0
        self._letters_used = self._letters_used or _int(letters) > 0
        return _int(keys)

    @property
    def keeps_books(self) -> bool:
        """Whether works with nothing to write must be written all the same, to leave the queue or the dead letters."""
        return self._queue_used or self._letters_used

    # -- parameters -------------------------------------------------------------------------------------------------

    def _hashed(self, works: Sequence[Work]) -> dict[str, Any]:
        return {**self._sql.keys("k", [w.key for w in works]), "hashes": binary.hashes([w.hash for w in works])}

    def _vectors(self, parts: Sequence[Results]) -> binary.BinaryArray | binary.ArrayLiteral:
        vector = self._definition.vector
        if vector.name == ANSWER:
            return binary.literal(str(answer).encode("utf-8", "replace") for part in parts for answer in part)
        array = np.concatenate(parts) if parts else np.empty((0, self._definition.dimension), np.float32)
        return _BUILDERS[vector.name](array, vector.element)

    def _fence(self) -> dict[str, Any]:
        return {"pipeline": self._definition.id, "epoch": self._definition.epoch}

    def _queue_params(self, write: Write) -> dict[str, Any]:
        done = write.works if self._queue_used else []
        return {"done_keys": [key_text(w.key) for w in done], "done_lsns": binary.lsns(w.lsn for w in done)}

    def _letter_params(self, write: Write) -> dict[str, Any]:
        columns, dead = self._definition.source.key, write.dead
        self._letters_used = self._letters_used or bool(dead)
        mended = [*write.upserts, *write.removals, *write.settled] if self._letters_used else []
        return {
            "mended": [key_text(work.key) for work in mended],
            "dead_keys": [json.dumps(key_object(columns, key_cells(letter.work.key))) for letter in dead],
            "dead_cells": [key_text(letter.work.key) for letter in dead],
            "dead_steps": [letter.step for letter in dead],
            "dead_categories": [letter.category for letter in dead],
            "dead_messages": [letter.message for letter in dead],
            "dead_attempts": [letter.attempts for letter in dead],
            "dead_hashes": binary.hashes([letter.work.hash for letter in dead]),
        }

    def _count_params(self, counted: Counted) -> dict[str, Any]:
        return {
            **self._fence(),
            "records": counted.rows,
            "counted_lsn": format_lsn(counted.lsn),
            "count_snapshot": None if counted.snapshot is None else str(counted.snapshot),
        }

    # -- running ----------------------------------------------------------------------------------------------------

    async def _run(self, statement: sql.SQL, params: dict[str, Any], *, whole: bool = False) -> list[Row]:
        return await run(self._pools.slow if whole else self._pools.quick, statement, params, whole=whole)

    async def _page_rows(self, statement: sql.SQL, params: dict[str, Any]) -> list[Row]:
        """Run a statement over a page of a table: by key, and not quick."""
        return await run(self._pools.slow, statement, params)

    async def _indexes(self, statement: sql.SQL, params: dict[str, Any]) -> list[int]:
        return [_int(row[0]) for row in await self._run(statement, params)]

    async def _fenced(self, statement: sql.SQL, params: dict[str, Any]) -> int:
        rows = await self._run(statement, params)
        self._check_fence(rows[0][0] if rows else None)
        return _int(rows[0][0])

    def _check_fence(self, embeddings: bytes | None) -> None:
        if embeddings is None:
            raise Fenced(
                f"Another consumer has taken over pipeline {self._definition.name}.",
                "This one stops; what it had not acknowledged, the other one does.",
            )


def _text(cell: bytes | None) -> str:
    return "" if cell is None else cell.decode()


def _int(cell: bytes | None) -> int:
    return int(cell) if cell is not None else 0


def _true(cell: bytes | None) -> bool:
    return cell == b"t"


def _bytea(cell: bytes | None) -> bytes | None:
    return None if cell is None else bytes.fromhex(cell[2:].decode())


def _key(cells: Sequence[bytes | None]) -> Key:
    return cells[0] or b"" if len(cells) == 1 else tuple(cell or b"" for cell in cells)
