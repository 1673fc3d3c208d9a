"""The indexes that autotune leaves on tables: one for each distance, and the old one kept until the new is finished."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import psycopg
import pytest

from cdc.autotune import HnswTuner, autotune
from cdc.errors import PipelineFault
from cdc.ports.tuning import Earlier
from cdc.postgres.trials import Trials
from cdc.postgres.tuning import Place, TuningSession
from cdc.postgres.tuning_indexes import hold, index_name, settle
from cdc.rows import Table
from cdc.testing.database import Database
from tests.tuning.clusters import embeddings
from tests.tuning.test_autotune import DOCS, Heard, fill, indexes, scratch, spec

ROWS = 1_200
INDEXED = embeddings(ROWS, seed=31)
NAME = "walvec_autotune_docs_e_cosine"


def earlier(m: int, ef_construction: int) -> list[Earlier]:
    """What has a search build this graph and no other."""
    return [Earlier(m, ef_construction, 30, "pgvector", 0.97, "cosine", 10, ROWS, 48)]


def made(**more: Any) -> Any:
    return spec(create_index=True, model="m", target_recall=0.9, **more)


def options(db: psycopg.Connection[Any], name: str = NAME) -> tuple[int, list[str]] | None:
    """Return oid and parameters of an index."""
    return db.execute(
        "SELECT oid::bigint, reloptions FROM pg_class WHERE relname = %s AND relkind = 'i'", (name,)
    ).fetchone()


async def test_one_index_for_each_distance(database18: Database) -> None:
    with database18.connect() as db:
        fill(db, INDEXED)
        for metric in ("cosine", "l2sq"):
            assert (await autotune(database18.url, DOCS, made(metric=metric))).reached
        assert [(n, v) for n, v, _ in indexes(db)] == [(NAME, True), ("walvec_autotune_docs_e_l2", True)]


async def test_only_an_index_that_serves_the_same_queries_is_in_the_way(database18: Database) -> None:
    with database18.connect() as db:
        fill(db, INDEXED)
        db.execute("CREATE INDEX half ON docs USING hnsw ((e::halfvec(48)) halfvec_cosine_ops)")
        db.execute("CREATE INDEX other ON docs USING hnsw (e vector_l2_ops)")
        assert (await autotune(database18.url, DOCS, made())).reached
        assert [n for n, _, _ in indexes(db)] == ["half", "other", NAME]
        db.execute('CREATE INDEX "My Idx" ON docs USING hnsw (e vector_cosine_ops)')
        with pytest.raises(PipelineFault, match=r'CONCURRENTLY "public"\."My Idx"; or'):
            await autotune(database18.url, DOCS, made())


def test_the_planners_choice_is_named_so_that_it_can_be_dropped(database18: Database) -> None:
    with database18.connect() as db:
        fill(db, INDEXED)
        db.execute('CREATE INDEX "My Idx" ON docs USING hnsw (e vector_cosine_ops)')
        with TuningSession(Place(database18.url), "walvec", "x") as session:
            trials = Trials(session, session.subject(DOCS, "e"), "cosine", 48)
            trials.ask(INDEXED[:3], lambda: None)
            with pytest.raises(PipelineFault, match=r'CONCURRENTLY "public"\."My Idx";'):
                trials.prepare(trials.table, Table("public", "another"))


@pytest.mark.parametrize("old", [(8, 32), (24, 64)], ids=["sparser", "denser"])
async def test_a_replacement_is_measured_and_not_the_index_that_it_replaces(
    database18: Database, old: tuple[int, int]
) -> None:
    """Whichever of the two the planner would take: every trial is of the new parameters, on an index of them."""
    with database18.connect() as db:
        fill(db, INDEXED)
        await autotune(database18.url, DOCS, made(), earlier=earlier(*old))
        before = options(db)
        result = await autotune(database18.url, DOCS, made(), earlier=earlier(12, 48))
        after = options(db)
        assert before is not None and after is not None and before[0] != after[0]
        assert sorted(after[1]) == ["ef_construction=48", "m=12"]
        [(name, valid, comment)] = indexes(db)
        assert (name, valid) == (NAME, True) and f"ef_search = {result.best.ef};" in comment
        size = db.execute("SELECT pg_relation_size(%s::regclass)", (NAME,)).fetchone()
        assert size == (result.best.size_bytes,) and result.best.rows == ROWS
        assert scratch(db) == []


@pytest.mark.parametrize("at", ["building", "85 %", "trial"])
async def test_a_search_that_is_cancelled_leaves_the_index_that_it_was_to_replace(
    database18: Database, at: str
) -> None:
    with database18.connect() as db:
        fill(db, INDEXED)
        await autotune(database18.url, DOCS, made(), earlier=earlier(8, 32))
        before, said = options(db), indexes(db)
        when, loop = asyncio.Event(), asyncio.get_running_loop()

        class Say(Heard):
            def progress(self, percent: int) -> None:
                if percent >= {"building": 68, "85 %": 84, "trial": 101}[at]:
                    loop.call_soon_threadsafe(when.set)

            def trial(self, trial: Any, dimension: int) -> None:
                if at == "trial" and trial.query_kind == "carried over":
                    loop.call_soon_threadsafe(when.set)

        search = autotune(database18.url, DOCS, made(), earlier=earlier(24, 100), say=Say())
        task = asyncio.create_task(search)
        await asyncio.wait_for(when.wait(), 60)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert (options(db), indexes(db), scratch(db)) == (before, said, [])


async def test_searches_side_by_side_do_not_take_each_others_build_for_a_leftover(database18: Database) -> None:
    with database18.connect() as db:
        fill(db, INDEXED)
        tuner, wanted = HnswTuner(), [(12, 48), (16, 64), (8, 32)]
        results = await asyncio.gather(
            *(
                tuner.tune(
                    database18.url, DOCS, made(metric="l2sq" if at == 2 else "cosine"), owner=str(at),
                    earlier=[Earlier(m, efc, 30, "pgvector", 0.97, "l2" if at == 2 else "cosine", 10, ROWS, 48)],
                    say=Heard(),
                )
                for at, (m, efc) in enumerate(wanted)
            )
        )  # fmt: skip
        assert [(r.best.m, r.best.ef_construction) for r in results] == wanted
        assert [(n, v) for n, v, _ in indexes(db)] == [(NAME, True), ("walvec_autotune_docs_e_l2", True)]


def test_a_held_table_is_waited_for(database18: Database) -> None:
    with database18.connect() as db, database18.connect() as other:
        assert hold(db, 42, lambda: None)
        assert not hold(other, 42, lambda: None, 0.3)
        timer = threading.Timer(0.5, db.close)
        timer.start()
        assert hold(other, 42, lambda: None, 20)
        timer.join()


async def test_an_index_without_its_comment_goes_with_the_next_run(database18: Database) -> None:
    """It is what a process leaves that was killed while it built: the server ended the build, and nobody measured."""
    with database18.connect() as db:
        fill(db, INDEXED)
        fill(db, INDEXED[:50], table="others")
        db.execute(f"CREATE INDEX {NAME} ON docs USING hnsw (e vector_cosine_ops)")
        db.execute("CREATE INDEX walvec_autotune_others_e_l2 ON others USING hnsw (e vector_l2_ops)")
        db.execute("CREATE INDEX theirs ON others USING hnsw (e vector_cosine_ops)")
        await autotune(database18.url, DOCS, spec(target_recall=0.9))
        assert [n for n, _, _ in indexes(db)] == ["theirs"]
        db.execute(f"CREATE INDEX {NAME} ON docs USING hnsw (e vector_cosine_ops)")
        await HnswTuner().discard(database18.url, DOCS, spec(), owner="whoever")
        assert [n for n, _, _ in indexes(db)] == ["theirs"]


@pytest.mark.parametrize("there", [True, False])
def test_a_replacement_that_is_finished_takes_its_place(database18: Database, there: bool) -> None:
    """A search was killed between the last comment and the new name."""
    with database18.connect() as db:
        fill(db, INDEXED[:100])
        for name in [NAME, f"{NAME}_new"][not there :]:
            db.execute(f"CREATE INDEX {name} ON docs USING hnsw (e vector_cosine_ops)")
            db.execute(f"COMMENT ON INDEX {name} IS 'walvec autotune: SET of {name}'")
        oid = db.execute("SELECT 'docs'::regclass::oid::bigint").fetchone()
        assert oid is not None
        settle(db, oid[0])
        assert indexes(db) == [(NAME, True, f"walvec autotune: SET of {NAME}_new")]


async def test_an_index_of_an_expression_is_known_again(database18: Database) -> None:
    with database18.connect() as db:
        fill(db, INDEXED, "real[]")
        first = await autotune(database18.url, DOCS, made(), earlier=earlier(12, 48))
        again = await autotune(database18.url, DOCS, made(), earlier=earlier(12, 48))
        assert first.best.build_s is not None and again.best.build_s is None


def test_names_fit() -> None:
    assert index_name(DOCS, "e", "l2") == "walvec_autotune_docs_e_l2"
    long = {index_name(Table("public", "t" * 50), "é" * 20, metric) for metric in ("l2", "ip", "cosine")}
    assert len(long) == 3 and all(len(name.encode()) <= 59 for name in long)
