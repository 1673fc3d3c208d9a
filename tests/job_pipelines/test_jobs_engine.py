"""Jobs as pipelines: a model each, any number on a table, their columns made, detached and attached again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psycopg
import pytest

from cdc import app
from cdc.errors import ConfigError
from cdc.flow.disposition import Failure
from cdc.jobs import JobKind
from cdc.ports import EmbedFailed
from cdc.postgres import columns
from cdc.postgres import job_pipelines as jobs
from cdc.postgres.admin import Admin
from cdc.postgres.search import searchable
from cdc.rows import Table
from cdc.services import fleet
from cdc.status import PipelineState
from cdc.testing.database import Database
from inference.hashing import hash_vectors
from tests.job_pipelines.scene import Scene, Twin, misconfigured

Connection = psycopg.Connection[Any]


def docs(db: Connection, rows: int = 40) -> None:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, title text, body text, other int DEFAULT 0)")
    db.execute(
        "INSERT INTO docs SELECT i, 'title ' || i, CASE WHEN i %% 10 > 0 THEN 'body ' || i END"
        " FROM generate_series(1, %s) AS i",
        [rows],
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What failed is tried again soon, and a lock is not waited for long."""
    monkeypatch.setattr(fleet, "RETRY_S", 0.3)
    monkeypatch.setattr(columns, "LOCK_TIMEOUT", "300ms")


@pytest.fixture
def db18(database18: Database) -> Iterator[Connection]:
    with database18.connect() as db:
        docs(db)
        yield db


@pytest.fixture
def scene18(database18: Database, db18: Connection) -> Iterator[Scene]:
    with Scene(database18.url) as scene:
        yield scene


def assert_exact(db: Connection, source: str, target: str, dimension: int) -> None:
    """Every row has the vector of its text now, and none where it has no text."""
    for key, text, vector in db.execute(f"SELECT id, {source}, {target}::real[] FROM docs").fetchall():
        if text is None or not text.strip():
            assert vector is None, f"row {key} has no text, but a vector in {target}"
        else:
            assert vector is not None, f"row {key} has no vector in {target}"
            np.testing.assert_allclose(vector, hash_vectors([text], dimension)[0], atol=1e-6)


def type_of(db: Connection, column: str) -> str | None:
    row = db.execute(
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'docs'::regclass AND attname = %s",
        [column],
    ).fetchone()
    return None if row is None else str(row[0])


def test_two_jobs_on_one_table_each_with_its_model(scene18, db18):
    """Different columns, different widths; the columns are made; changes, deletes and truncates reach both."""
    db18.execute("CREATE EXTENSION vector")
    one = scene18.job("title", "title_vec", Twin(8))
    two = scene18.job("body", "body_vec", Twin(16), job="2")
    assert scene18.ensured == "made"
    scene18.start()
    scene18.backfilled(one, two)
    assert (type_of(db18, "title_vec"), type_of(db18, "body_vec")) == ("vector(8)", "vector(16)")
    db18.execute("UPDATE docs SET title = 'changed ' || id WHERE id % 3 = 0")
    db18.execute("UPDATE docs SET body = '' WHERE id % 4 = 0")
    db18.execute("INSERT INTO docs VALUES (1000, 'new', 'new as well')")
    db18.execute("DELETE FROM docs WHERE id % 7 = 0")
    scene18.sync()
    assert_exact(db18, "title", "title_vec", 8)
    assert_exact(db18, "body", "body_vec", 16)
    (rows,) = db18.execute("SELECT count(*) FROM docs").fetchone()
    shown = db18.execute(
        "SELECT pipeline, kind, job, model, status, source_records FROM walvec.pipeline_metrics ORDER BY job"
    ).fetchall()
    assert shown == [
        (one, "embedding_generation", "1", "twin-8", "ready", rows),
        (two, "embedding_generation", "2", "twin-16", "ready", rows),
    ]
    db18.execute("TRUNCATE docs")
    db18.execute("INSERT INTO docs VALUES (5, 'after', 'the truncation')")
    scene18.sync()
    assert_exact(db18, "title", "title_vec", 8)
    assert_exact(db18, "body", "body_vec", 16)


def test_jobs_on_one_table_do_not_get_in_each_others_way(scene18, db18):
    """Each write-back moves the row for the others: they must take turns, or texts are embedded again for nothing."""
    db18.execute("INSERT INTO docs SELECT i, 'title ' || i FROM generate_series(41, 3000) AS i")
    models = [Twin(8), Twin(8), Twin(8)]
    names = [scene18.job("title", f"vec{i}", model, job=str(i)) for i, model in enumerate(models)]
    scene18.start()
    scene18.backfilled(*names)
    scene18.sync()
    assert [len(model.asked) for model in models] == [3000] * 3
    for i in range(3):
        assert_exact(db18, "title", f"vec{i}", 8)


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
@pytest.mark.parametrize("kind", [JobKind.EMBEDDING, JobKind.COMPLETION])
def test_what_is_made_is_scanned_once(scene18, db18, kind, identity):
    """Neither the column that is added nor the write-backs look like a change that calls for another backfill."""
    db18.execute(f"ALTER TABLE docs REPLICA IDENTITY {identity}")
    model = Twin(answer=str.upper) if kind is JobKind.COMPLETION else Twin(8)
    name = scene18.job("title", "vec", model, kind=kind)
    scene18.start()
    scene18.until(lambda: (found := scene18.status(name)) is not None and found.backfill_total)
    first = scene18.engine.fleet.members[name].pipeline
    scene18.backfilled(name)
    scene18.sync()
    assert sorted(model.asked) == sorted(f"title {i}" for i in range(1, 41)), "each text was embedded once"
    looks = scene18.count_looks()
    scene18.until(lambda: looks() >= 2)
    assert scene18.engine.fleet.members[name].pipeline is first and first.progress.reason is None
    (listed,) = db18.execute("SELECT attnames FROM pg_publication_tables WHERE pubname = 'walvec_jobs'").fetchone()
    everything = ["id", "title", "body", "other", "vec"]
    assert listed == (everything if identity == "FULL" else ["id", "title"]), "vectors do not come through the WAL"


@pytest.mark.parametrize("kept", ["real[]", "vector(8)", "halfvec(8)"])
def test_a_column_that_is_there_keeps_its_type(scene18, db18, kept):
    db18.execute(f"CREATE EXTENSION vector; ALTER TABLE docs ADD vec {kept}")
    name = scene18.job("title", "vec", Twin(8))
    scene18.start()
    scene18.backfilled(name)
    assert type_of(db18, "vec") == ("real[]" if kept == "real[]" else kept)
    if kept != "halfvec(8)":
        assert_exact(db18, "title", "vec", 8)


def test_without_pgvector_the_column_is_an_array(database15):
    """PostgreSQL 15, no pgvector; a second job's column joins the publication's list."""
    with database15.connect() as db, Scene(database15.url) as scene:
        docs(db)
        one = scene.job("title", "vec", Twin(8))
        scene.start()
        scene.backfilled(one)
        two = scene.job("body", "vec2", Twin(8), job="2")
        scene.backfilled(two)
        db.execute("UPDATE docs SET title = 'x ' || id, body = 'y ' || id WHERE id < 20")
        scene.sync()
        assert type_of(db, "vec") == "real[]"
        assert_exact(db, "title", "vec", 8)
        assert_exact(db, "body", "vec2", 8)


def test_a_broken_model_is_an_error_of_its_pipelines_alone(scene18, db18):
    good, bad = Twin(8), Twin(16)
    bad.broken = misconfigured("There is no model twin-16.")
    one = scene18.job("title", "good_vec", good)
    two = scene18.job("body", "bad_vec", bad, job="2")
    three = scene18.job("body", "none_vec", None, job="3")
    scene18.start()
    scene18.backfilled(one)
    scene18.until(lambda: scene18.status(two).state is PipelineState.ERROR)
    assert scene18.status(two).reason == "There is no model twin-16."
    assert scene18.status(three).reason == "No model was chosen for public.docs.none_vec."
    failed = "SELECT count(*) FROM walvec.pipeline_metrics WHERE status = 'error'"
    scene18.until(lambda: db18.execute(failed).fetchone() == (2,))
    assert db18.execute("SELECT walvec.wait('5 s')").fetchone() == (True,), "who waits for the good one need not wait"
    db18.execute("INSERT INTO docs VALUES (1000, 'new', 'new')")
    scene18.until(lambda: db18.execute("SELECT good_vec FROM docs WHERE id = 1000").fetchone() != (None,))
    checks = {check.name: check for check in scene18.engine.status().checks}
    assert "There is no model twin-16." in checks["model"].message
    bad.broken = None
    scene18.models.models[three] = good
    scene18.backfilled(two, three)
    scene18.sync()
    for source, target, dimension in (("title", "good_vec", 8), ("body", "bad_vec", 16), ("body", "none_vec", 8)):
        assert_exact(db18, source, target, dimension)


def test_a_model_that_is_broken_later_is_an_error_and_one_that_is_away_is_none(scene18, db18):
    model = Twin(8)
    name = scene18.job("title", "vec", model)
    scene18.start()
    scene18.backfilled(name)
    model.broken = EmbedFailed(Failure.UNAVAILABLE, "away", "The server is away.")
    db18.execute("INSERT INTO docs VALUES (1000, 'new', 'new')")
    scene18.until(lambda: scene18.status(name).unprocessed_rows == 1 and not scene18.engine.gates.gates[0].is_up)
    assert scene18.status(name).state is PipelineState.READY, "it merely waits"
    model.broken = misconfigured("The key is wrong.")
    scene18.until(lambda: scene18.status(name).state is PipelineState.ERROR)
    assert scene18.status(name).reason == "The key is wrong."
    said = "SELECT state, reason FROM walvec.progress"
    scene18.until(lambda: db18.execute(said).fetchone() == ("error", "The key is wrong."))
    model.broken = None
    scene18.sync()
    assert scene18.status(name).state is PipelineState.READY
    assert_exact(db18, "title", "vec", 8)


def test_an_edit_of_the_model_embeds_everything_anew(scene18, db18):
    name = scene18.job("title", "vec", Twin(8))
    db18.execute("ALTER TABLE docs ADD vec real[]")
    scene18.start()
    scene18.backfilled(name)
    scene18.models.models[name] = Twin(16)
    scene18.until(lambda: db18.execute("SELECT min(cardinality(vec)) FROM docs").fetchone() == (16,))
    scene18.sync()
    assert_exact(db18, "title", "vec", 16)


def test_detached_and_attached_again_it_embeds_what_changed_meanwhile(scene18, db18):
    model = Twin(8)
    stays = scene18.job("body", "other_vec", Twin(8), job="2")
    name = scene18.job("title", "vec", model)
    scene18.start()
    scene18.backfilled(name, stays)
    scene18.sync()
    assert scene18.detach(name) and not scene18.detach(name)
    began = time.monotonic()
    scene18.until(lambda: scene18.status(name) is None, 5)
    assert time.monotonic() - began < 2, "the engine was told"
    model.asked.clear()
    db18.execute("UPDATE docs SET title = 'changed' WHERE id = 7")
    db18.execute("UPDATE docs SET title = NULL WHERE id = 8")
    db18.execute("DELETE FROM docs WHERE id = 9")
    db18.execute("INSERT INTO docs (id, title) VALUES (1000, 'new')")
    scene18.sync()
    assert model.asked == [], "nobody follows it"
    scene18.job("title", "vec", model)
    assert scene18.ensured == "attached"
    scene18.until(lambda: (found := scene18.status(name)) is not None and found.state is PipelineState.READY)
    scene18.sync()
    assert sorted(model.asked) == ["changed", "new"], "what had not changed is not embedded again"
    assert_exact(db18, "title", "vec", 8)
    assert_exact(db18, "body", "other_vec", 8)


def test_one_that_comes_back_before_anybody_saw_it_go_is_compared_all_the_same(scene18, db18, monkeypatch):
    """The table's place in the publication tells nothing of it: another job reads the table too."""
    name = scene18.job("title", "vec", model := Twin(8))
    other = scene18.job("title", "vec2", Twin(8), job="2")
    scene18.start()
    scene18.backfilled(name, other)
    scene18.sync()
    first = scene18.engine.fleet.members[name].pipeline
    with monkeypatch.context() as silent:
        silent.setattr(jobs, "_wake", lambda conn: None)
        scene18.detach(name)
        scene18.job("title", "vec", model)
    due = "SELECT count(*) FROM walvec.progress WHERE scan_reason IS NOT NULL"
    scene18.until(lambda: (found := scene18.engine.fleet.members.get(name)) and found.pipeline not in (None, first))
    scene18.until(lambda: db18.execute(due).fetchone() == (0,))
    assert len(model.asked) == 40


def test_a_reconcile_is_asked_of_the_daemon_and_refused_without_one(scene18, db18):
    name = scene18.job("title", "vec", Twin(8))
    with pytest.raises(ConfigError, match="No daemon runs"):
        scene18.with_control(lambda conn: Admin(conn, scene18.settings).ask_reconcile([name]))
    scene18.start()
    scene18.backfilled(name)
    (hashes,) = db18.execute("SELECT target_table FROM walvec.pipelines").fetchone()
    db18.execute(f'DELETE FROM walvec."{hashes}" WHERE id = 5; UPDATE docs SET vec = NULL WHERE id = 5')
    elsewhere = replace(scene18.settings, slot="walvec", publication="walvec")  # as somebody at a shell has them
    app.reconcile(elsewhere, name, dry_run=False, progress=lambda *_: None)
    scene18.sync()
    assert_exact(db18, "title", "vec", 8)
    assert db18.execute("SELECT slot_name FROM pg_replication_slots").fetchall() == [("walvec_jobs",)]


def test_the_last_one_gone_the_slot_goes_and_all_comes_back(scene18, db18):
    model = Twin(8)
    name = scene18.job("title", "vec", model)
    scene18.start()
    scene18.backfilled(name)
    scene18.detach(name)
    scene18.until(lambda: scene18.status(name) is None)
    scene18.stop()
    scene18.with_control(lambda conn: jobs.release_jobs(conn, scene18.settings))
    assert db18.execute("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walvec_jobs'").fetchone() == (0,)
    model.asked.clear()
    db18.execute("UPDATE docs SET title = 'while nobody looked' WHERE id = 7")
    scene18.job("title", "vec", model)
    scene18.start()
    scene18.until(lambda: (found := scene18.status(name)) is not None and found.state is PipelineState.READY)
    scene18.sync()
    assert model.asked == ["while nobody looked"]
    assert_exact(db18, "title", "vec", 8)
    scene18.detach(name)
    scene18.until(lambda: scene18.status(name) is None)
    assert scene18.with_control(lambda conn: jobs.remove_job_pipeline(conn, scene18.settings, name))
    assert scene18.with_control(lambda conn: jobs.job_pipelines(conn, scene18.settings)) == {}


def test_a_table_that_no_row_names_is_no_pipeline(scene18, db18):
    name = scene18.job("title", "vec", Twin(8))
    db18.execute("CREATE TABLE strangers (id int PRIMARY KEY, body text)")
    db18.execute("ALTER PUBLICATION walvec_jobs ADD TABLE strangers")
    scene18.start()
    scene18.backfilled(name)
    assert [p.pipeline for p in scene18.engine.status().pipelines] == [name]
    db18.execute("DROP TABLE docs")
    scene18.until(lambda: scene18.status(name).state is PipelineState.ERROR)
    assert "public.docs is not in the publication" in scene18.status(name).reason


def test_a_column_that_is_dropped_is_made_and_filled_again(scene18, db18):
    name = scene18.job("title", "vec", Twin(8))
    scene18.start()
    scene18.backfilled(name)
    scene18.sync()
    db18.execute("ALTER TABLE docs DROP COLUMN vec")
    db18.execute("UPDATE docs SET title = 'noticed' WHERE id = 1")
    scene18.until(lambda: type_of(db18, "vec") is not None)
    scene18.until(lambda: db18.execute("SELECT count(*) FROM docs WHERE vec IS NULL").fetchone() == (0,))
    scene18.sync()
    assert_exact(db18, "title", "vec", 8)


def test_what_cannot_run_is_refused_in_a_sentence(scene18, db18):
    db18.execute("CREATE TABLE keyless (id int, body text)")
    for source, target, words in (
        ("nothing", "vec", "public.docs has no column nothing."),
        ("other", "vec", "is of type integer"),
        ("id", "vec", "part of its key"),
        ("title", "title", "read and written by one job"),
    ):
        with pytest.raises(ConfigError, match=words):
            scene18.job(source, target, Twin(8))
    scene18.job("title", "vec", Twin(8), job="1")
    with pytest.raises(ConfigError, match="written by job 1 already"):
        scene18.job("body", "vec", Twin(8), job="2")
    scene18.job("title", "vec", Twin(8), job="1")
    assert scene18.ensured == "unchanged"


def test_a_lock_that_is_not_to_be_had_is_waited_for(scene18, db18, database18):
    name = scene18.job("title", "vec", Twin(8))
    with database18.connect() as other:
        other.execute("BEGIN; LOCK TABLE docs IN ACCESS SHARE MODE")
        scene18.start()
        scene18.until(lambda: (found := scene18.status(name)) is not None and "while others use" in found.reason)
        assert scene18.status(name).state is PipelineState.WAITING
        other.execute("ROLLBACK")
    scene18.backfilled(name)


def test_columns_that_may_not_be_written_are_said_so(scene18, db18, database18):
    """The engine's role owns nothing: it may neither add a column nor update one, until it is granted."""
    role = f"jobs_{database18.name}"
    db18.execute(f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD '{role}'")
    db18.execute(f"GRANT CREATE ON DATABASE {database18.name} TO {role}; GRANT SELECT ON docs TO {role}")
    db18.execute("ALTER TABLE docs ADD kept real[], ADD strict real[] NOT NULL DEFAULT '{}'")
    try:
        with Scene(database18.url) as scene:
            missing = scene.job("title", "vec", Twin(8))
            kept = scene.job("title", "kept", Twin(8), job="2")
            strict = scene.job("title", "strict", Twin(8), job="3")
            db18.execute(f"GRANT USAGE ON SCHEMA walvec TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA walvec TO {role}")
            db18.execute(f"GRANT CREATE ON SCHEMA walvec TO {role}")
            scene.settings = _as_role(scene.settings, role)
            scene.start()
            scene.until(lambda: all((s := scene.status(n)) and s.state is PipelineState.ERROR for n in (missing, kept)))
            assert "may not add it" in scene.status(missing).reason and "ADD COLUMN" in scene.status(missing).reason
            assert "may not update column kept" in scene.status(kept).reason
            db18.execute(f"GRANT UPDATE ON docs TO {role}")
            scene.backfilled(kept)
            scene.until(lambda: "NOT NULL" in scene.status(strict).reason)
    finally:
        db18.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def _as_role(settings: Any, role: str) -> Any:
    parts = urlsplit(settings.database_url)
    place = parts.netloc.split("@")[-1]
    return replace(settings, database_url=parts._replace(netloc=f"{role}:{role}@{place}").geturl())


def test_any_key_and_bytes_too(scene18, db18):
    """A key of two columns, a uuid among them; bytes are embedded as the server prints them, by scan and by stream."""
    db18.execute("DROP TABLE docs; CREATE TABLE docs (a uuid, b text, raw bytea, PRIMARY KEY (b, a))")
    put = "INSERT INTO docs SELECT gen_random_uuid(), %s || i, ('bytes ' || i)::bytea FROM generate_series(1, 5) AS i"
    db18.execute(put, ["it's:"])
    model = Twin(8)
    name = scene18.job("raw", "vec", model)
    scene18.start()
    scene18.backfilled(name)
    db18.execute(put, ["later:"])
    db18.execute("UPDATE docs SET raw = NULL WHERE b LIKE '%3'")
    scene18.sync()
    wanted = {f"\\x{f'bytes {i}'.encode().hex()}" for i in range(1, 6)}
    assert set(model.asked) == wanted
    rows = db18.execute("SELECT raw::text, vec::real[] FROM docs").fetchall()
    assert len(rows) == 10
    for text, vector in rows:
        if text is None:
            assert vector is None
        else:
            np.testing.assert_allclose(vector, hash_vectors([text], 8)[0], atol=1e-6)
    (seen,) = scene18.with_control(lambda conn: jobs.job_pipelines(conn, scene18.settings)).items()
    assert seen == (name, ("1", True))


def test_a_partition_of_a_published_table_says_whose_changes_its_changes_are(scene18, db18):
    db18.execute("CREATE TABLE part (id int PRIMARY KEY, body text) PARTITION BY RANGE (id)")
    db18.execute("CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (1) TO (9)")
    whole = scene18.job("body", "v", Twin(8), table=Table("public", "part"))
    one = scene18.job("body", "w", Twin(8), job="2", table=Table("public", "part1"))
    scene18.start()
    scene18.backfilled(whole)
    scene18.until(lambda: (found := scene18.status(one)) is not None and found.state is PipelineState.ERROR)
    reason = scene18.status(one).reason
    assert "public.part1 is a partition of public.part, which is in the publication" in reason
    assert "published as those of public.part." in reason and "dropped" not in reason


# -- completions ----------------------------------------------------------------------------------------------------


def test_answers_are_cast_and_those_that_cannot_be_are_set_aside(scene18, db18):
    """A number per row, in a column made for it; junk is found by halving, and told of with its answer."""
    model = Twin(answer=lambda text: "no number" if text.endswith(("3", "17")) else text.split()[-1])
    name = scene18.job("title", "rating", model, kind=JobKind.COMPLETION, value_type="int")
    scene18.start()
    scene18.backfilled(name)
    scene18.sync()
    assert type_of(db18, "rating") == "integer"
    bad = {i for i in range(1, 41) if str(i).endswith(("3", "17"))}
    rows = dict(db18.execute("SELECT id, rating FROM docs").fetchall())
    assert rows == {i: None if i in bad else i for i in range(1, 41)}
    letters = db18.execute("SELECT (key->>'id')::int, step, category, message FROM walvec.pipeline_errors").fetchall()
    assert {key for key, *_ in letters} == bad
    assert {tuple(rest) for _, *rest in letters} == {
        ("write", "not castable", "The model's answer is no value of type integer.")
    }
    assert {(pipeline, letter.row_id, letter.answer) for pipeline, letter in scene18.heard.letters} == {
        (name, str(key), "no number") for key in bad
    }
    assert "no number" not in repr(scene18.heard.letters) and "no number" not in str(scene18.engine.status())
    db18.execute("UPDATE docs SET title = 'now 99' WHERE id = 3")
    db18.execute("UPDATE docs SET title = NULL WHERE id = 4")
    db18.execute("UPDATE docs SET title = '' WHERE id = 5")
    db18.execute("UPDATE docs SET title = 'no more 17' WHERE id = 6")
    scene18.sync()
    found = dict(db18.execute("SELECT id, rating FROM docs WHERE id BETWEEN 3 AND 6").fetchall())
    assert found == {3: 99, 4: None, 5: None, 6: None}
    assert scene18.status(name).state is PipelineState.READY and scene18.status(name).model == "twin-8"
    with pytest.raises(ConfigError, match="answers in words"):
        searchable(db18, "walvec", name)


def test_a_row_set_aside_waits_for_another_text_or_a_person(scene18, db18):
    """Neither a sibling's write-back nor any other change of the row asks the model again."""

    def attempts():
        return dict(db18.execute("SELECT (key->>'id')::int, attempts FROM walvec.pipeline_errors").fetchall())

    model = Twin(answer=lambda text: text.removeprefix("poison "))
    name = scene18.job("title", "rating", model, kind=JobKind.COMPLETION, value_type="int")
    beside = scene18.job("title", "vec", Twin(8), job="2")
    db18.execute("UPDATE docs SET title = id::text")
    scene18.start()
    scene18.backfilled(name, beside)
    db18.execute("INSERT INTO docs (id, title) VALUES (100, 'poison x'), (101, '101')")
    scene18.sync()
    for change in ("other = 1", "other = 2, body = 'b'", "title = title"):
        db18.execute(f"UPDATE docs SET {change} WHERE id >= 100")
        scene18.sync()
    assert attempts() == {100: 1} and model.asked.count("poison x") == 1 and len(scene18.heard.letters) == 1
    scene18.stop()
    scene18.start()  # what is set aside is known again
    scene18.until(lambda: scene18.status(name) is not None and scene18.status(name).state is PipelineState.READY)
    db18.execute("UPDATE docs SET other = 3 WHERE id >= 100")
    scene18.sync()
    assert attempts() == {100: 1} and scene18.status(name).errors == 1
    assert scene18.with_control(lambda conn: Admin(conn, scene18.settings).requeue_errors(name)) == 1
    scene18.until(lambda: model.asked.count("poison x") == 2)
    scene18.until(lambda: attempts() == {100: 1})
    scene18.with_control(lambda conn: Admin(conn, scene18.settings).ask_reconcile([name]))
    scene18.until(lambda: attempts() == {100: 2})
    db18.execute("UPDATE docs SET title = 'poison 7' WHERE id = 100")
    scene18.sync()
    assert attempts() == {} and db18.execute("SELECT rating FROM docs WHERE id = 100").fetchone() == (7,)


def test_answers_into_text_follow_one_another(scene18, db18):
    """A completion's answer is the source of an embedding: each write-back is a change to the next."""
    shout = scene18.job("title", "loud", Twin(answer=str.upper), kind=JobKind.COMPLETION)
    scene18.start()
    scene18.backfilled(shout)
    assert type_of(db18, "loud") == "text"
    vector = scene18.job("loud", "vec", Twin(8), job="2")
    scene18.backfilled(vector)
    db18.execute("UPDATE docs SET title = 'quietly, with \"quotes\", {braces} and a \\' WHERE id = 1")
    scene18.sync()
    scene18.until(
        lambda: (
            db18.execute("SELECT loud, vec IS NOT NULL FROM docs WHERE id = 1").fetchone()
            == ('QUIETLY, WITH "QUOTES", {BRACES} AND A \\', True)
        )
    )
    scene18.sync()
    assert_exact(db18, "loud", "vec", 8)
    assert db18.execute("SELECT count(*) FROM walvec.dead_letters").fetchone() == (0,)


@pytest.mark.parametrize("type", ["nonsense", "int; DROP TABLE docs", "int) --"])
def test_a_type_that_does_not_exist_is_said_so(scene18, db18, type):
    name = scene18.job("title", "answer", Twin(answer=str.upper), kind=JobKind.COMPLETION, value_type=type)
    scene18.start()
    scene18.until(lambda: (found := scene18.status(name)) is not None and found.state is PipelineState.ERROR)
    assert "There is no type" in scene18.status(name).reason
    assert type_of(db18, "answer") is None
