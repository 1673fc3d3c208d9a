"""How many rows a second one core decodes, from memory: receiving is not part of the time.

About 200 bytes a row as the walsender sends it: bigint key, title, body, timestamptz, integer; wanted are the key and
the two texts. Two stretches of the real way are timed: the decoder alone (finding the row's table and kind included),
and the consumer's whole intake, which also composes the text, counts the row and marks its key dirty.
"""

from __future__ import annotations

import threading
import time

from cdc.app import calm_collector
from cdc.bench.figures import Figure, WrongResult
from cdc.flow.counts import SourceCount
from cdc.flow.dirty import Budget, DirtyKeys
from cdc.ports import Observer, Route
from cdc.rows import Column, Table
from cdc.services.desk import Desk
from cdc.services.intake import Intake, Lane
from cdc.telemetry.metrics import Metrics
from cdc.testing.walbytes import encode, transaction, xlog_data
from cdc.wire.messages import Insert, RelationMessage
from cdc.wire.relations import Relation, RelationColumn, ReplicaIdentity
from cdc.wire.tuples import ROUTE_KEY, RowDecoder, route_keys

TARGET = 300_000
ROWS = 300_000
FRAMES = 2000  # as many as the consumer's reader hands over at once

RELATION = Relation(
    16384,
    "public",
    "articles",
    ReplicaIdentity.DEFAULT,
    (
        RelationColumn("id", 20, -1, True),
        RelationColumn("title", 25, -1, False),
        RelationColumn("body", 25, -1, False),
        RelationColumn("changed_at", 1184, -1, False),
        RelationColumn("views", 23, -1, False),
    ),
)
ROUTE = Route(
    (Table("public", "articles"),),
    (Column("id", "bigint", "int8"),),
    (Column("title", "text", "text"), Column("body", "text", "text")),
)


def inserts(rows: int) -> list[Insert]:
    """Return ``rows`` inserts of articles."""
    return [
        Insert(
            None,
            RELATION.oid,
            (
                b"%d" % key,
                b"The title of article number %d" % key,
                b"What there is to say in a sentence or two about article %d and all that it is about" % key,
                b"2026-01-02 03:04:05.678901+00",
                b"%d" % (key % 1000),
            ),
        )
        for key in range(rows)
    ]


def decode_alone(payloads: list[bytes]) -> float:
    """Decode the payloads of inserts; return the seconds of processor time it took.

    Raises:
        WrongResult: not all of them were decoded.
    """
    decoder = RowDecoder(RELATION, (0, 1, 2))
    table = {key: (tag, decoder) for key, tag in route_keys(RELATION).items()}
    find, decoded = table.get, 0
    begin = time.process_time()
    for payload in payloads:
        found = find(payload[ROUTE_KEY])
        if found is not None and found[0] == b"I" and len(found[1].last_tuple(payload)) == 3:
            decoded += 1
    seconds = time.process_time() - begin
    if decoded != len(payloads):
        raise WrongResult(f"{decoded} of {len(payloads)} rows were decoded")
    return seconds


def intake(budget: Budget, observer: Observer) -> tuple[Intake, Desk]:
    """Return a consumer's intake that follows the articles, and the desk where their keys become dirty."""
    lock = threading.Lock()
    desk = Desk("public.articles", lock, DirtyKeys(budget), SourceCount())
    listening = Intake(lock, budget, observer, lambda: None, lambda: None)
    listening.attach([Lane(desk, ROUTE)])
    return listening, desk


def decode_and_mark(payloads: list[bytes], rows: int) -> float:
    """Feed one transaction's payloads to an intake as the reader does; return the seconds of processor time.

    Raises:
        WrongResult: not every key is dirty afterwards.
    """
    listening, desk = intake(Budget(1 << 40, 1 << 30), Metrics())
    begin = time.process_time()
    for start in range(0, len(payloads), FRAMES):
        listening.feed(payloads[start : start + FRAMES])
    seconds = time.process_time() - begin
    if desk.dirty.rows != rows or desk.count.counted.rows != rows:
        raise WrongResult(f"{desk.dirty.rows} of {rows} keys are dirty, {desk.count.counted.rows} rows are counted")
    return seconds


def run(rows: int | None, repeat: int) -> list[Figure]:
    """Measure; return rows per second of one core for both stretches."""
    rows = rows or ROWS
    changes = inserts(rows)
    payloads = [xlog_data(encode(change), lsn=0x16_B374D848 + 200 * i) for i, change in enumerate(changes)]
    whole = transaction(
        [RelationMessage(None, RELATION), *changes], xid=700, commit_lsn=0x17_0000_0000, end_lsn=0x17_0000_0030
    )
    del changes
    calm_collector()  # as the consumer does
    alone = tuple(rows / decode_alone(payloads) for _ in range(repeat))
    marked = tuple(rows / decode_and_mark(whole, rows) for _ in range(repeat))
    size = sum(map(len, payloads)) / rows
    return [
        Figure(f"decode, {size:.0f} B a row, one core", "rows/s", alone, TARGET),
        Figure("decode, compose and mark dirty, one core", "rows/s", marked, TARGET),
    ]
