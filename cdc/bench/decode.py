"""How many rows a second one core decodes, from memory: receiving is not part of the time.

About 200 bytes a row as the walsender sends it: bigint key, title, body, timestamptz, integer; wanted are the key and
the two texts. Three stretches of the real way are timed: the decoder alone (finding the row's table and kind included);
the consumer's intake, which finds the key, counts the row and marks it dirty; and the intake together with taking the
rows from the dirty set, where their texts are read and composed.
"""

from __future__ import annotations

import threading
import time

from cdc.app import calm_collector
from cdc.bench.figures import Figure, WrongResult
from cdc.flow.counts import SourceCount
from cdc.flow.dirty import Budget, DirtyKeys, Work
from cdc.ports import Observer, Route
from cdc.rows import Column, Table
from cdc.services.desk import Desk
from cdc.services.intake import Intake
from cdc.services.lanes import Lane
from cdc.telemetry.metrics import Metrics
from cdc.testing.walbytes import encode, transaction, xlog_data
from cdc.wire.messages import Insert, RelationMessage
from cdc.wire.relations import Relation, RelationColumn, ReplicaIdentity
from cdc.wire.tuples import ROUTE_KEY, RowDecoder, route_keys

TARGET = 300_000
ROWS = 300_000
FRAMES = 2000  # as many as the consumer's reader hands over at once
WINDOW = 1024  # as many as a pipeline takes at once by default

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


def take_in(payloads: list[bytes], rows: int, *, take: bool) -> float:
    """Feed one transaction's payloads to an intake as the reader does; return the seconds of processor time.

    Args:
        payloads: Begin, Relation, ``rows`` Inserts, Commit.
        rows: How many.
        take: Whether all rows are taken to be worked on, in windows as a pipeline does.

    Raises:
        WrongResult: not every key is dirty afterwards, or not every text was had.
    """
    listening, desk = intake(Budget(1 << 40, 1 << 30), Metrics())
    works: list[Work] = []
    begin = time.process_time()
    for start in range(0, len(payloads), FRAMES):
        listening.feed(payloads[start : start + FRAMES])
    if take:
        while window := desk.dirty.take(WINDOW, 1 << 30):
            works += window
    seconds = time.process_time() - begin
    if desk.dirty.stream_rows != (0 if take else rows) or desk.count.counted.rows != rows:
        raise WrongResult(f"{desk.dirty.stream_rows} keys wait and {desk.count.counted.rows} rows are counted")
    texts = {work.text for work in works if work.text is not None and work.text.startswith(b"title: The title of")}
    if take and len(texts) != rows:
        raise WrongResult(f"{len(texts)} of {rows} texts were read")
    return seconds


def run(rows: int | None, repeat: int) -> list[Figure]:
    """Measure; return rows per second of one core for each stretch."""
    rows = rows or ROWS
    changes = inserts(rows)
    payloads = [xlog_data(encode(change), lsn=0x16_B374D848 + 200 * i) for i, change in enumerate(changes)]
    whole = transaction(
        [RelationMessage(None, RELATION), *changes], xid=700, commit_lsn=0x17_0000_0000, end_lsn=0x17_0000_0030
    )
    del changes
    calm_collector()  # as the consumer does
    alone = tuple(rows / decode_alone(payloads) for _ in range(repeat))
    marked = tuple(rows / take_in(whole, rows, take=False) for _ in range(repeat))
    taken = tuple(rows / take_in(whole, rows, take=True) for _ in range(repeat))
    size = sum(map(len, payloads)) / rows
    return [
        Figure(f"decode, {size:.0f} B a row, one core", "rows/s", alone, TARGET),
        Figure("intake: key, count, mark dirty, one core", "rows/s", marked, TARGET),
        Figure("intake, taken with text composed, one core", "rows/s", taken, TARGET),
    ]
