"""What is looked up by key goes through an index, also where the plan was made while the tables were empty."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from cdc.postgres import binary
from cdc.postgres.expressions import Source
from cdc.postgres.pool import PLANNER_OFF
from cdc.postgres.statements import Definition, Statements, VectorType
from cdc.rows import Column, Table
from cdc.testing.cluster import Cluster
from cdc.testing.consumer import Consumer

KEYS = [b"%d" % key for key in range(1000, 2000)]
COLUMNS = (Column("title", "text", "text"), Column("body", "text", "text"))
KEY_OF = {"docs": "id", "docs_embeddings": "id", "dirty": "key", "dead_letters": "cells"}
KEYED_ONLY = (
    "write_versioned", "write_guarded", "refused", "surviving", "unchanged", "set_aside", "read_keys", "enqueue",
)  # fmt: skip
PAGE_OF = {
    "scan_first": "docs",
    "scan_after": "docs",
    "orphans_first": "docs_embeddings",
    "orphans_after": "docs_embeddings",
    "dequeue": "dirty",
}
"""Statements that read the next page of one table, in the order of its index."""


def parameters(statements: Statements, vector: bytes) -> dict[str, Any]:
    rows = len(KEYS)
    dead = ("keys", "cells", "steps", "categories", "messages", "attempts", "hashes")
    texts = [f'["{key.decode()}"]' for key in KEYS]
    lsns = binary.lsns([16] * rows)
    return {
        **{f"dead_{what}": [] for what in dead}, **statements.keys("k", KEYS), **statements.keys("g", KEYS),
        "hashes": binary.hashes([b"h" * 16] * rows),
        "vectors": binary.ArrayLiteral(b"{" + b",".join([vector] * rows) + b"}"), "lsns": lsns, "gone_lsns": lsns,
        "force": False, "model": "m", "written_lsn": "0/10", "pipeline": 1, "epoch": 1, "done_keys": texts,
        "done_lsns": lsns, "mended": texts, "records": 1, "counted_lsn": "0/10", "count_snapshot": None,
        "bytes": 1 << 20, "limit": 1000, "c0": "1000", "keys": texts, "cells": texts,
    }  # fmt: skip


def scans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every node that reads a relation; an index scan below a bitmap scan is told with its table."""
    for child in plan.get("Plans", ()):
        if plan["Node Type"] == "Bitmap Heap Scan":
            child = {**child, "Relation Name": plan["Relation Name"]}
        yield from scans(child)
    if "Scan" in plan["Node Type"] and "Relation Name" in plan and plan["Node Type"] != "Bitmap Heap Scan":
        yield plan


@pytest.fixture(scope="module", params=["empty", "full"])
def session(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[psycopg.Connection[Any]]:
    """A session that plans as the pool's do, over tables that are empty, and known to be, or hold 50,000 rows."""
    database = cluster.create_database(f"plans_{request.param}")
    with database.connect() as db:
        db.execute("CREATE TABLE docs (id bigint PRIMARY KEY, title text, body text)")
        db.execute("CREATE PUBLICATION walvec FOR TABLE docs")
        with Consumer(database.url, WALVEC_MODEL="hash-2") as consumer:
            consumer.wait_for("reconcile_finished")
            consumer.stop()
        if request.param == "full":
            db.execute("INSERT INTO docs SELECT i, 'title', 'body ' || i FROM generate_series(1, 50000) AS i")
            db.execute("INSERT INTO docs_embeddings (id, source_lsn) SELECT id, '0/8' FROM docs")
            db.execute(
                "INSERT INTO walvec.dead_letters (pipeline_id, key, cells, step, category, message, attempts)"
                "SELECT p.id, '{}', '[\"' || d.id || '\"]', 's', 'c', 'm', 1 FROM walvec.pipelines AS p, docs AS d"
            )
            db.execute(
                "INSERT INTO walvec.dirty (pipeline_id, key, lsn) "
                "SELECT p.id, '[\"' || d.id || '\"]', '0/8' FROM walvec.pipelines AS p, docs AS d"
            )
        for table in ("docs", "docs_embeddings", "walvec.dirty", "walvec.dead_letters", "walvec.progress"):
            db.execute(sql.SQL("VACUUM ANALYZE {}").format(sql.Identifier(*table.split("."))))
        db.adapters.register_dumper(binary.BinaryArray, binary.BinaryArrayDumper)
        db.adapters.register_dumper(binary.ArrayLiteral, binary.ArrayLiteralDumper)
        for method in PLANNER_OFF:
            db.execute(f"SET {method} = off")
        yield db
    database.drop()


def statements(session: psycopg.Connection[Any]) -> tuple[Statements, bytes]:
    """The pipeline's statements, and a vector as its array literal has it."""
    row = session.execute("SELECT to_regtype('public.vector')::oid::bigint").fetchone()
    vector = VectorType("vector", "public.vector(2)", "public.vector[]", row[0], "public")
    text = b'"[1,2]"'
    if row[0] is None:
        vector, text = VectorType("real[]", "real[]", "walvec.real_vector[]", 0, ""), b'"{1,2}"'
    source = Source(Table("public", "docs"), (Column("id", "bigint", "int8"),), COLUMNS)
    target = Table("public", "docs_embeddings")
    definition = Definition(1, "public.docs", source, target, None, vector, "m", 2, b"f" * 16, 1, "walvec")
    return Statements(definition), text


@pytest.mark.parametrize("name", [*KEYED_ONLY, *PAGE_OF])
def test_keys_are_looked_up_in_an_index(session: psycopg.Connection[Any], name: str):
    made, vector = statements(session)
    explain = sql.SQL("EXPLAIN (FORMAT JSON) ") + getattr(made, name)
    row = session.execute(explain, parameters(made, vector)).fetchone()
    seen = 0
    for scan in scans(row[0][0]["Plan"]):
        table = scan["Relation Name"]
        if table in KEY_OF and (table != "dead_letters" or name == "set_aside"):  # a write clears the few there are
            seen += 1
            by_place = scan["Node Type"] == "Tid Scan"
            assert by_place or scan["Node Type"].startswith(("Index", "Bitmap Index")), scan
            if not by_place and PAGE_OF.get(name) != table:
                assert KEY_OF[table] in scan.get("Index Cond", ""), scan
    assert seen or name == "enqueue"
