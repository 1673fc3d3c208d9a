"""Rows decoded from memory per second of one core: ``python -m tests.bench.bench_decode``.

About 200 bytes a row as the walsender sends it: bigint key, title, body, timestamptz, integer; wanted are the key and
the two texts. Finding the row's table and kind is part of the time, receiving is not.
"""

from __future__ import annotations

import statistics
import time

from cdc.testing.walbytes import encode, xlog_data
from cdc.wire.messages import Insert
from cdc.wire.relations import Relation, RelationColumn, ReplicaIdentity
from cdc.wire.tuples import ROUTE_KEY, RowDecoder, route_keys

REPEATS = 5
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


def payloads(rows: int) -> list[bytes]:
    """Return the CopyData payloads of ``rows`` inserts."""
    return [
        xlog_data(
            encode(
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
            ),
            lsn=0x16_B374D848 + key * 200,
        )
        for key in range(rows)
    ]


def once(data: list[bytes]) -> float:
    """Decode every payload and return the seconds of processor time it took."""
    decoder = RowDecoder(RELATION, (0, 1, 2))
    table = {key: ("articles", tag, decoder) for key, tag in route_keys(RELATION).items()}
    find, decoded = table.get, 0
    begin = time.process_time()
    for payload in data:
        found = find(payload[ROUTE_KEY])
        if found is not None:
            _name, tag, reader = found
            if tag == b"I" and len(reader.last_tuple(payload)) == 3:
                decoded += 1
    seconds = time.process_time() - begin
    if decoded != len(data):
        raise AssertionError(f"{decoded} of {len(data)} rows were decoded")
    return seconds


def run(rows: int = 300_000) -> dict[str, float]:
    """Print and return rows and megabytes per second: the median of five runs, and the slowest and fastest."""
    data = payloads(rows)
    seconds = sorted(once(data) for _ in range(REPEATS))
    median = statistics.median(seconds)
    size = sum(map(len, data))
    result = {
        "rows": rows,
        "bytes_per_row": size / rows,
        "rows_per_second": rows / median,
        "rows_per_second_min": rows / seconds[-1],
        "rows_per_second_max": rows / seconds[0],
        "megabytes_per_second": size / median / 1e6,
    }
    print(
        f"decode: {result['rows_per_second']:,.0f} rows/s/core"
        f" ({result['rows_per_second_min']:,.0f} to {result['rows_per_second_max']:,.0f}),"
        f" {result['megabytes_per_second']:,.0f} MB/s, {result['bytes_per_row']:.0f} B a row"
    )
    return result


if __name__ == "__main__":
    run()
