"""Autotune in real databases: the target met as pgvector measures it on rows it never held, and nothing left behind."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql

from cdc.autotune import HnswTuner, autotune
from cdc.errors import ConfigError, PipelineFault, Unavailable
from cdc.jobs import AutotuneSpec
from cdc.ports.tuning import Earlier, Trial
from cdc.postgres import control
from cdc.postgres.trials import Trials
from cdc.postgres.tuning import Place, TuningSession, scratch_table
from cdc.postgres.tuning_rows import binary_rows
from cdc.rows import Table
from cdc.testing.database import Database
from inference.recall import Exact, Metric, Vectors
from tests.tuning.clusters import embeddings

DOCS = Table("public", "docs")
ROWS = 3_000
EVERYTHING = embeddings(ROWS + 1_000, seed=21)
INDEXED, UNSEEN = EVERYTHING[:ROWS], EVERYTHING[ROWS:]


def fill(db: psycopg.Connection[Any], rows: Vectors, type: str = "vector(48)", table: str = "docs") -> None:
    """Make a table of vectors."""
    if db.execute("SELECT FROM pg_available_extensions WHERE name = 'vector'").fetchone() is not None:
        db.execute("CREATE EXTENSION IF NOT EXISTS vector")
    db.execute(f"CREATE TABLE {table} (id serial PRIMARY KEY, e {type})")
    if type.startswith(("vector", "bit", "halfvec")):
        with db.cursor().copy(f"COPY {table} (e) FROM STDIN (FORMAT binary)") as copy:
            for block in binary_rows(rows, type.partition("(")[0]):
                copy.write(block)
    else:
        with db.cursor() as cursor:
            cursor.executemany(f"INSERT INTO {table} (e) VALUES (%s)", [(row.tolist(),) for row in rows])


def spec(**more: Any) -> AutotuneSpec:
    given: dict[str, Any] = {
        "column": "e", "metric": "cosine", "target_recall": 0.95, "k": 10, "create_index": False, **more
    }  # fmt: skip
    return AutotuneSpec(**given)


class Heard:
    """Notes what a search says; ``when`` is set at the first trial of ``backend``."""

    def __init__(self, backend: str = "") -> None:
        self.percent: list[int] = []
        self.trials: list[Trial] = []
        self.when = asyncio.Event()
        self._backend = backend
        self._loop = asyncio.get_running_loop()

    def progress(self, percent: int) -> None:
        self.percent.append(percent)
        if self._backend == f"{percent} %" or (self._backend == "building" and percent >= 40 and self.trials):
            self._loop.call_soon_threadsafe(self.when.set)

    def trial(self, trial: Trial, dimension: int) -> None:
        self.trials.append(trial)
        if trial.backend == self._backend:
            self._loop.call_soon_threadsafe(self.when.set)


def by_pgvector(db: psycopg.Connection[Any], ef: int, rows: Vectors, queries: Vectors, k: int = 10) -> float:
    """Recall of the docs' index, measured here: one search per query, ids compared with those of NumPy."""
    exact = Exact(queries, "cosine", k)
    exact.add(rows)
    truth = exact.truth()
    db.execute("SET enable_seqscan = off")
    db.execute(sql.SQL("SET hnsw.ef_search = {}").format(ef))
    hits = 0
    for at, query in enumerate(queries):
        text = "[" + ",".join(map(str, query.tolist())) + "]"
        found = db.execute("SELECT id - 1 FROM docs ORDER BY e <=> %s::vector LIMIT %s", (text, k)).fetchall()
        hits += len({i for (i,) in found} & set(truth.ids[at].tolist()))
    return hits / (k * len(queries))


def indexes(db: psycopg.Connection[Any]) -> list[tuple[str, bool, str]]:
    return db.execute(
        "SELECT c.relname::text, i.indisvalid, coalesce(obj_description(c.oid, 'pg_class'), '') FROM pg_index i "
        "JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'hnsw' ORDER BY 1"
    ).fetchall()


def scratch(db: psycopg.Connection[Any]) -> list[Any]:
    return db.execute("SELECT relname FROM pg_class WHERE relname LIKE 'autotune_scratch%'").fetchall()


async def test_the_index_reaches_the_target_on_rows_it_never_saw(database18: Database) -> None:
    with database18.connect() as db:
        fill(db, INDEXED)
        say = Heard()
        result = await autotune(database18.url, DOCS, spec(create_index=True), say=say)
        assert result.reached
        name, valid, comment = indexes(db)[0]
        assert (name, valid) == ("walvec_autotune_docs_e_cosine", True)
        assert result.index == Table("public", name)
        assert f"SET hnsw.ef_search = {result.best.ef};" in comment
        assert result.best.recall >= 0.95
        measured = by_pgvector(db, result.best.ef, INDEXED, UNSEEN)
        assert 0.93 <= measured <= 0.985, (measured, result.summary)
        assert scratch(db) == []
        assert say.percent == sorted(say.percent)
        assert say.trials == list(result.trials)
        assert {t.backend for t in say.trials} == {"hnswlib", "pgvector"}
        last = result.best
        assert last.build_s and last.size_bytes > 100_000 and 0 < last.p50_ms <= last.p99_ms and last.rows == ROWS
        for words in (f"m {last.m} ", f"ef_search = {last.ef}", "wanted: 0.95"):
            assert words in result.summary
        assert result.summary.count(". ") == 0

        # Once more, and the index is there already; for another graph it is replaced, and the table is never without.
        earlier = [Earlier(last.m, last.ef_construction, last.ef, "pgvector", 0.96, "cosine", 10, ROWS, 48)]
        again = await autotune(database18.url, DOCS, spec(create_index=True, model="m"), earlier=earlier)
        assert again.best.build_s is None and again.reached
        other = [Earlier(8, 40, 20, "pgvector", 0.96, "cosine", 10, ROWS, 48)]
        third = await autotune(database18.url, DOCS, spec(create_index=True, model="m"), earlier=other)
        assert (third.best.m, third.best.ef_construction) == (8, 40)
        assert [(n, v) for n, v, _ in indexes(db)] == [(name, True)]


async def test_a_scratch_copy_is_measured_and_dropped(database18: Database) -> None:
    """Nothing is built on the table; what is recommended holds for an index built later by hand."""
    with database18.connect() as db:
        fill(db, INDEXED)
        result = await autotune(database18.url, DOCS, spec())
        assert result.reached and result.index is None and result.best.query_kind == "held out"
        assert indexes(db) == [] and scratch(db) == []
        assert db.execute("SELECT FROM pg_namespace WHERE nspname = 'walvec'").fetchone() is None
        best = result.best
        db.execute("SET maintenance_work_mem = '128MB'")
        db.execute(
            f"CREATE INDEX ON docs USING hnsw (e vector_cosine_ops) "
            f"WITH (m = {best.m}, ef_construction = {best.ef_construction})"
        )
        measured = by_pgvector(db, best.ef, INDEXED, UNSEEN)
        assert abs(measured - 0.95) < 0.02, (measured, result.summary)


async def test_unreachable_says_so(database18: Database) -> None:
    """Recall of 10 neighbours out of 10 by every query, of 8-dimensional bits full of ties broken at random: no."""
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((6_000, 96)).astype(np.float32)
    with database18.connect() as db:
        fill(db, rows, "vector(96)")
        result = await autotune(
            database18.url, DOCS, spec(target_recall=1.0, k=100, model="m"),
            earlier=[Earlier(2, 4, 100, "pgvector", 1.0, "cosine", 100, 6_000, 96)],
        )  # fmt: skip
        assert not result.reached
        assert result.summary.startswith("Recall@100 1 was not reached; the best is m 2 ")
        assert result.best.recall == max(t.recall for t in result.trials)
        assert scratch(db) == []


async def test_without_pgvector_hnswlib_answers(database15: Database) -> None:
    with database15.connect() as db:
        fill(db, INDEXED[:2_000], "real[]")
        result = await autotune(database15.url, DOCS, spec())
        assert result.reached and {t.backend for t in result.trials} == {"hnswlib"}
        assert "no pgvector" in result.summary
        with pytest.raises(PipelineFault, match="no pgvector"):
            await autotune(database15.url, DOCS, spec(create_index=True))


@pytest.mark.parametrize(
    ("type", "metric"), [("real[]", "l2"), ("vector", "ip"), ("bit(64)", "hamming"), ("halfvec(48)", "cosine")]
)
async def test_every_metric_and_type(database18: Database, type: str, metric: Metric) -> None:
    """Arrays and columns of no declared dimension are indexed by an expression."""
    with database18.connect() as db:
        rows = INDEXED[:1_500]
        if metric == "hamming":
            rows = (embeddings(1_500, 3, 64) > 0).astype(np.float32)
        fill(db, rows, type)
        result = await autotune(database18.url, DOCS, spec(metric=metric, target_recall=0.9, create_index=True))
        assert result.reached, result.summary
        [(_, valid, _)] = indexes(db)
        assert valid


async def test_logged_queries_are_asked(database18: Database) -> None:
    with database18.connect() as db:
        fill(db, INDEXED)
        fill(db, UNSEEN[:300], table="asked")
        logged = spec(query_table="asked", query_column="e")
        result = await autotune(database18.url, DOCS, logged)
        assert (result.best.query_kind, result.best.queries, result.best.rows) == ("logged", 300, ROWS)
        assert "logged queries" in result.summary
        with pytest.raises(PipelineFault, match=r"public\.nowhere"):
            await autotune(database18.url, DOCS, spec(query_table="nowhere", query_column="e"))


async def test_an_earlier_winner_is_only_verified(database18: Database) -> None:
    with database18.connect() as db:
        fill(db, INDEXED)
        fits = Earlier(12, 48, 30, "pgvector", 0.96, "cosine", 20, ROWS, 48)
        others = [
            Earlier(16, 64, 30, "pgvector", 0.96, "l2", 10, ROWS, 48),
            Earlier(16, 64, 30, "pgvector", 0.96, "cosine", 5, ROWS, 48),
            Earlier(16, 64, 30, "pgvector", 0.96, "cosine", 10, 100, 48),
            Earlier(16, 64, 30, "pgvector", 0.96, "cosine", 10, ROWS, 384),
            Earlier(16, 64, 30, "pgvector", 0.90, "cosine", 10, ROWS, 48),
        ]
        result = await autotune(database18.url, DOCS, spec(model="m"), earlier=[*others, fits])
        assert {(t.backend, t.m) for t in result.trials} == {("pgvector", 12)}
        assert "earlier search" in result.summary


async def test_a_sample_of_a_large_table(database18: Database) -> None:
    """Where memory holds a part, an index on the table is still measured against all rows."""
    with database18.connect() as db:
        fill(db, INDEXED)
        small = HnswTuner(row_bytes=1_500 * 48 * 4)
        result = await small.tune(database18.url, DOCS, spec(), owner="a", earlier=(), say=Heard())
        assert result.best.rows < 1_500 and "a random sample of 1,500 of the 3,000 rows" in result.summary
        made = await small.tune(database18.url, DOCS, spec(create_index=True), owner="a", earlier=(), say=Heard())
        assert made.best.rows == ROWS and "sample" not in made.summary
        assert 0.92 <= by_pgvector(db, made.best.ef, INDEXED, UNSEEN[:500]) <= 0.99


@pytest.mark.parametrize("at", ["1 %", "hnswlib", "building", "pgvector"])
@pytest.mark.parametrize("create_index", [False, True], ids=["scratch", "table"])
@pytest.mark.parametrize("schema", [False, True], ids=["temporary", "control schema"])
async def test_cancelled_at_any_moment_nothing_stays(
    database18: Database, at: str, create_index: bool, schema: bool
) -> None:
    with database18.connect() as db:
        if schema:
            control.ensure(db, "walvec")
        fill(db, INDEXED)
        say = Heard(at)
        task = asyncio.create_task(autotune(database18.url, DOCS, spec(create_index=create_index), say=say))
        waiting = asyncio.create_task(say.when.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=0.05)
        assert task.cancelled()
        assert scratch(db) == [] and indexes(db) == []
        busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%autotune' AND state = 'active'"
        assert db.execute(busy).fetchone() == (0,)


async def test_leftovers_of_a_killed_run_go(database18: Database) -> None:
    """A scratch table that no session holds is dropped by the next run, one in use is not; so are invalid indexes."""
    with database18.connect() as db:
        fill(db, INDEXED[:500])
        control.ensure(db, "walvec")
        dead, alive = scratch_table("walvec", "dead"), scratch_table("walvec", "alive")
        for table in (dead, alive):
            db.execute(f"CREATE UNLOGGED TABLE {table} (v vector(48))")
        db.execute("CREATE INDEX walvec_autotune_docs_e_cosine_new ON docs USING hnsw (e vector_cosine_ops)")
        db.execute("CREATE INDEX walvec_autotune_docs_e_cosine ON docs USING hnsw (e vector_cosine_ops)")
        db.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'walvec_autotune_docs_e_cosine'::regclass"
        )
        with database18.connect() as other:
            other.execute("SELECT pg_advisory_lock(hashtextextended('walvec autotune ' || %s, 0))", (alive.name,))
            result = await autotune(database18.url, DOCS, spec(create_index=True, target_recall=0.8))
            assert result.reached
            assert scratch(db) == [(alive.name,)]
            assert [(n, v) for n, v, _ in indexes(db)] == [("walvec_autotune_docs_e_cosine", True)]
            with pytest.raises(Unavailable, match="same job"):
                await HnswTuner().discard(database18.url, DOCS, spec(), owner="alive")
        await HnswTuner().discard(database18.url, DOCS, spec(), owner="alive")
        assert scratch(db) == []
        assert [n for n, _, _ in indexes(db)] == ["walvec_autotune_docs_e_cosine"], "what was finished stays"


@pytest.mark.parametrize("schema", [False, True], ids=["temporary", "control schema"])
def test_a_connection_lost_mid_way_leaves_nothing(database18: Database, schema: bool) -> None:
    with database18.connect() as db:
        if schema:
            control.ensure(db, "walvec")
        fill(db, INDEXED[:100])
        with TuningSession(Place(database18.url), "walvec", "x") as tuning:
            trials = Trials(tuning, tuning.subject(DOCS, "e"), "cosine", 48)
            trials.make_scratch(INDEXED[:100], lambda: None)
            assert len(scratch(db)) == 1 and tuning.temporary is not schema
            pid = tuning.connection.info.backend_pid
            db.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        assert scratch(db) == []


REFUSED: Sequence[tuple[dict[str, Any], type[Exception], str]] = [
    ({"target_recall": 1.2}, ConfigError, "120 %"),
    ({"target_recall": 0.0}, ConfigError, "recall of 0 %"),
    ({"k": 0}, ConfigError, "k is 0"),
    ({"metric": "manhattan"}, ConfigError, "manhattan"),
    ({"sample": -1}, ConfigError, "-1"),
    ({"query_table": "docs"}, ConfigError, "query_table without a query_column"),
    ({"query_column": "e"}, ConfigError, "query_column without a query_table"),
    ({"column": "nope"}, PipelineFault, "no column nope"),
    ({"column": "id"}, PipelineFault, "column|Column id"),
    ({"metric": "hamming"}, PipelineFault, "hamming"),
]


@pytest.mark.parametrize(("wrong", "kind", "words"), REFUSED)
async def test_refusals(database18: Database, wrong: dict[str, Any], kind: type[Exception], words: str) -> None:
    with database18.connect() as db:
        fill(db, INDEXED[:50])
        with pytest.raises(kind, match=words):
            await autotune(database18.url, DOCS, spec(**wrong))


async def test_few_rows_and_other_indexes_are_refused(database18: Database) -> None:
    with database18.connect() as db:
        fill(db, INDEXED[:15])
        with pytest.raises(PipelineFault, match="holds 15 vectors"):
            await autotune(database18.url, DOCS, spec())
        with pytest.raises(PipelineFault, match=r"no table public\.missing"):
            await autotune(database18.url, Table("public", "missing"), spec())
        db.execute("CREATE VIEW seen AS SELECT * FROM docs")
        with pytest.raises(PipelineFault, match=r"public\.seen is a view"):
            await autotune(database18.url, Table("public", "seen"), spec())
        db.execute("CREATE INDEX theirs ON docs USING hnsw (e vector_cosine_ops)")
        with pytest.raises(PipelineFault, match="vector index theirs already"):
            await autotune(database18.url, DOCS, spec(create_index=True))
        db.execute("CREATE TABLE parts (id int, e vector(48)) PARTITION BY RANGE (id)")
        with pytest.raises(PipelineFault, match="partitioned"):
            await autotune(database18.url, Table("public", "parts"), spec(create_index=True))


def mixed(db: psycopg.Connection[Any], type: str) -> None:
    """Make a table of 900 vectors, a seventh of them, the first too, of 24 dimensions and all others of 48."""
    db.execute("CREATE EXTENSION IF NOT EXISTS vector")
    db.execute(f"CREATE TABLE docs (id serial PRIMARY KEY, e {type})")
    with db.cursor() as cursor:
        rows = [row[:24] if at % 7 == 0 else row for at, row in enumerate(INDEXED[:900])]
        cursor.executemany("INSERT INTO docs (e) VALUES (%s::real[])", [(row.tolist(),) for row in rows])


@pytest.mark.parametrize("type", ["real[]", "vector"])
async def test_of_mixed_widths_the_commonest_counts_and_the_others_are_told(database18: Database, type: str) -> None:
    with database18.connect() as db:
        mixed(db, type)
        result = await autotune(database18.url, DOCS, spec(target_recall=0.9))
        assert result.dimension == 48 and "129 of 900 rows were left out" in result.summary
        assert result.best.rows + result.best.queries == 771
        part = await autotune(database18.url, DOCS, spec(target_recall=0.9, sample=300))
        assert part.dimension == 48 and "a random sample of 300 of the 771 rows" in part.summary, part.summary
        say = Heard()
        with pytest.raises(PipelineFault, match=r"several dimensions \(771 of 48, 129 of 24\)"):
            await autotune(database18.url, DOCS, spec(create_index=True), say=say)
        assert max(say.percent) == 1 and not say.trials and indexes(db) == []


@pytest.fixture
def reader(database18: Database) -> Iterator[str]:
    """A role that may log in, and nothing else."""
    name = f"r_{secrets.token_hex(4)}"
    with database18.connect() as db:
        db.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{name}'")
        yield name
        db.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_a_role_that_may_only_read_can_tune(database18: Database, reader: str) -> None:
    """Whoever the control schema belongs to; and nothing of theirs is touched."""
    url = database18.dsn(user=reader, password=reader)
    with database18.connect() as db:
        fill(db, INDEXED[:1_000])
        db.execute(f"GRANT SELECT ON docs TO {reader}")
        control.ensure(db, "walvec")
        leftover = scratch_table("walvec", "dead")
        db.execute(f"CREATE UNLOGGED TABLE {leftover} (v vector(48))")
        assert (await autotune(url, DOCS, spec())).reached
        db.execute(f"GRANT USAGE, CREATE ON SCHEMA walvec TO {reader}")
        assert (await autotune(url, DOCS, spec())).reached
        assert scratch(db) == [(leftover.name,)]


async def test_without_temporary_tables_it_is_refused_before_anything_is_read(
    database18: Database, reader: str
) -> None:
    with database18.connect() as db:
        fill(db, INDEXED[:1_000])
        db.execute(f"GRANT SELECT ON docs TO {reader}; REVOKE TEMPORARY ON DATABASE {database18.name} FROM PUBLIC")
        say = Heard()
        with pytest.raises(ConfigError, match=f'GRANT TEMPORARY ON DATABASE "{database18.name}" TO "{reader}"'):
            await autotune(database18.dsn(user=reader, password=reader), DOCS, spec(), say=say)
        assert max(say.percent) == 1
