"""Pure decisions about jobs: rows read with defaults and checks, the state machine, and who writes a column."""

import pytest

from cdc.flow.job_rows import read
from cdc.flow.jobs import Course, Step, conflicts, control_digest, decide, slot_name
from cdc.jobs import JobKind, JobState
from cdc.rows import Table

ROW = {
    "id": 7,
    "table": "articles",
    "src_column": "title",
    "dst_column": "v",
    "embedding_model": "BAAI/bge-small-en",
}
INDEX = {"id": 1, "table": "t", "column": "v"}
TUNE = {"id": 1, "table": "t", "column": "v", "target_recall": 95}


def embedding(**columns):
    return read(JobKind.EMBEDDING, {**ROW, **columns})


def test_missing_columns_have_lanterns_defaults():
    asked = embedding()
    assert (asked.table, asked.spec.key, asked.spec.runtime) == (Table("public", "articles"), "id", "ort")
    assert (asked.kind, asked.label, asked.refusal) == (JobKind.EMBEDDING, "", "")
    assert (asked.spec.batch_rows, asked.spec.params, asked.connection) == (None, {}, "")


@pytest.mark.parametrize("nothing", [None, ""])
def test_an_empty_label_is_no_label(nothing):
    assert embedding(label=nothing).label == ""


def test_completions_know_what_their_answers_are_cast_to():
    asked = embedding(job_type="completion", runtime="openai", column_type="INT")
    assert (asked.kind, asked.spec.column_type) == (JobKind.COMPLETION, "INT")
    assert embedding(job_type="completion", runtime="openai", column_type="REAL[]").spec.column_type == ""
    assert embedding(column_type="REAL[]").spec.column_type == ""


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        ({"job_type": "poem"}, "poem"),
        ({"src_column": None}, "src_column"),
        ({"dst_column": "title"}, "overwritten"),
        ({"embedding_model": ""}, "embedding_model"),
        ({"runtime_params": "[1]"}, "runtime_params"),
        ({"runtime_params": "{broken sk-secret"}, "runtime_params"),
        ({"batch_size": "many"}, "batch_size"),
        ({"job_type": "completion", "runtime": "ort"}, "openai"),
        ({"table": None}, "table"),
    ],
)
def test_a_row_that_cannot_be_run_says_why(columns, word):
    asked = embedding(**columns)
    assert word in asked.refusal
    assert asked.spec is None
    assert "sk-secret" not in asked.refusal


def test_parameters_may_be_an_object_or_its_text():
    assert embedding(runtime_params={"a": 1}).spec.params == {"a": 1}
    assert embedding(runtime_params='{"a": 1}').spec.params == {"a": 1}
    assert "sk-1" not in repr(embedding(runtime_params={"api_token": "sk-1"}))


@pytest.mark.parametrize(
    ("operator", "metric"),
    [("dist_l2sq_ops", "l2sq"), ("dist_cos_ops", "cosine"), ("dist_hamming_ops", "hamming"), ("vector_ip_ops", "ip")],
)
def test_indexes(operator, metric):
    asked = read(JobKind.EXTERNAL_INDEX, {**INDEX, "operator": operator, "efc": 99, "ef": 50, "m": 12})
    assert (asked.spec.metric, asked.spec.ef_construction, asked.spec.ef, asked.spec.m) == (metric, 99, 50, 12)
    assert "operator" in read(JobKind.EXTERNAL_INDEX, {**INDEX, "operator": "no_ops"}).refusal
    assert "m is 1" in read(JobKind.EXTERNAL_INDEX, {**INDEX, "m": 1}).refusal


def test_autotune_recall_is_a_percentage_or_a_share():
    assert read(JobKind.AUTOTUNE, TUNE).spec.target_recall == 0.95
    assert read(JobKind.AUTOTUNE, {**TUNE, "target_recall": 0.9}).spec.target_recall == 0.9
    assert "target_recall" in read(JobKind.AUTOTUNE, {**TUNE, "target_recall": 101}).refusal
    assert read(JobKind.AUTOTUNE, {**TUNE, "metric_kind": "cos"}).spec.metric == "cosine"
    assert read(JobKind.AUTOTUNE, {**TUNE, "operator": "dist_hamming_ops"}).spec.metric == "hamming"


@pytest.mark.parametrize(
    ("columns", "state"),
    [
        ({}, JobState.QUEUED),
        ({"init_started_at": "t"}, JobState.IN_PROGRESS),
        ({"init_started_at": "t", "init_finished_at": "t"}, JobState.ENABLED),
        ({"init_finished_at": "t", "canceled_at": "t"}, JobState.CANCELED),
        ({"init_failed_at": "t", "canceled_at": "t", "init_failure_reason": "no table"}, JobState.FAILED),
        ({"init_failed_at": "t", "canceled_at": "t", "init_failure_reason": "Job cancelled"}, JobState.CANCELED),
        ({"init_failed_at": "t", "init_finished_at": "t"}, JobState.FAILED),
    ],
)
def test_the_state_in_one_word(columns, state):
    assert embedding(**columns).state is state


def test_what_a_job_does_is_no_edit_of_it():
    digest = embedding().digest
    assert embedding(init_progress=50, updated_at="t", init_failure_reason="x", canceled_at="t").digest == digest
    assert embedding(label="gpu").digest == digest
    for column in ("src_column", "dst_column", "embedding_model", "table", "runtime", "db_connection", "pk"):
        assert embedding(**{column: "other"}).digest != digest, column


def step(course=None, label="", now=0.0, **columns):
    return decide(embedding(**columns), label, course or Course(), now)


def ran(**fields):
    return Course(**{"digest": embedding().digest, **fields})


def test_labels_are_strictly_equal():
    assert step() is Step.START
    assert step(label="gpu") is Step.REST
    assert decide(embedding(label="gpu"), "gpu", Course(), 0) is Step.START
    assert decide(embedding(label="gpu"), "", Course(), 0) is Step.REST


def test_a_label_that_moves_takes_the_job_along():
    moved = embedding(label="gpu")
    assert decide(moved, "", ran(running=True), 0) is Step.DISCARD
    assert decide(moved, "", ran(discarded=True), 0) is Step.REST
    assert decide(embedding(), "", ran(discarded=True), 0) is Step.START


def test_running_jobs_go_on_until_edited_canceled_or_deleted():
    assert step(ran(running=True)) is Step.KEEP
    assert step(ran(running=True), init_progress=5) is Step.KEEP
    assert step(ran(running=True), src_column="other") is Step.RESTART
    assert step(ran(running=True), canceled_at="t") is Step.DISCARD
    assert decide(None, "", ran(running=True), 0) is Step.DISCARD


def test_what_was_canceled_is_cleared_away_once_and_resumes():
    assert step(canceled_at="t") is Step.DISCARD  # while no daemon ran
    assert step(ran(discarded=True), canceled_at="t") is Step.REST
    assert step(ran(clear_at=5.0), canceled_at="t", now=4.0) is Step.WAIT
    assert step(ran(clear_at=5.0), canceled_at="t", now=6.0) is Step.DISCARD
    assert step(ran(discarded=True)) is Step.START
    assert decide(embedding(canceled_at="t", label="gpu"), "", Course(), 0) is Step.REST  # another daemon's


def test_failures_are_tried_again_later_and_edits_at_once():
    course = ran()
    course.failed(now=100.0)
    course.told_failed = True
    assert step(course, now=100.5, init_failed_at="t") is Step.WAIT
    assert step(course, now=101.1, init_failed_at="t") is Step.START
    assert step(course, now=100.5, init_failed_at="t", src_column="other") is Step.START
    assert step(course, now=100.5) is Step.START  # somebody struck the failure out by hand


def test_pauses_double_from_a_second_to_five_minutes():
    course, pauses = Course(), []
    for _ in range(12):
        course.failed(now=0.0)
        pauses.append(course.retry_at)
    assert pauses[:5] == [1, 2, 4, 8, 16]
    assert pauses[-1] == 300
    course.going()
    course.failed(now=0.0)
    assert course.retry_at == 1


def test_a_failed_job_is_tried_again_when_a_daemon_starts():
    assert step(init_failed_at="t", init_failure_reason="x") is Step.START


def test_autotune_runs_once_and_indexes_are_kept():
    tuned = read(JobKind.AUTOTUNE, {**TUNE, "started_at": "t", "finished_at": "t"})
    assert decide(tuned, "", Course(), 0) is Step.REST
    begun = read(JobKind.AUTOTUNE, {**TUNE, "started_at": "t"})
    assert decide(begun, "", Course(), 0) is Step.START  # a daemon died over it
    index = read(JobKind.EXTERNAL_INDEX, {**INDEX, "finished_at": "t"})
    assert decide(index, "", Course(), 0) is Step.START


def test_a_failure_for_good_waits_for_a_person():
    tuned, course = read(JobKind.AUTOTUNE, {**TUNE, "failed_at": "t"}), Course(digest="", told_failed=True)
    course.digest = tuned.digest
    course.failed_for_good()
    assert decide(tuned, "", course, 1e9) is Step.WAIT
    edited = read(JobKind.AUTOTUNE, {**TUNE, "failed_at": "t", "target_recall": 90})
    assert decide(edited, "", course, 0) is Step.START
    assert decide(read(JobKind.AUTOTUNE, TUNE), "", course, 0) is Step.START  # the failure was struck out


def test_an_edit_of_a_finished_autotune_job_begins_it_anew():
    tuned = {**TUNE, "started_at": "t", "finished_at": "t"}
    old, new = read(JobKind.AUTOTUNE, tuned), read(JobKind.AUTOTUNE, {**tuned, "target_recall": 80})
    for course in (Course(digest=old.digest), Course(seen=old.digest)):  # it ran here; it was found to be finished
        assert decide(old, "", course, 0) is Step.REST
        assert decide(new, "", course, 0) is Step.START
    its_own = read(JobKind.AUTOTUNE, {**tuned, "progress": 100, "finished_at": "u", "updated_at": "t"})
    assert decide(its_own, "", Course(digest=old.digest), 0) is Step.REST
    assert decide(new, "", Course(digest=new.digest, tries=1), 0) is Step.REST  # another daemon has done it


def test_of_two_jobs_that_write_one_column_the_later_gives_way():
    t, u = Table("public", "t"), Table("public", "u")
    wanted = [(1, "db", t, "v"), (2, "db", t, "v"), (3, "db", u, "v"), (4, "other", t, "v"), (5, "db", t, "v")]
    assert conflicts(wanted) == {2: 1, 5: 1}
    assert conflicts(wanted[1:]) == {5: 2}


@pytest.mark.parametrize("label", ["", "gpu", "GPU", "a b", "x" * 80, "ä", "a-b", "a_b"])
def test_slot_names_are_valid_and_distinct(label):
    name = slot_name(label, "0123abcd", 4294967295)
    assert name == name.lower()
    assert len(name) <= 63
    assert name.replace("_", "").isalnum()
    labels = ("", "gpu", "GPU", "a b", "x" * 80, "x" * 81, "ä", "a-b", "a_b", "x" * 29, "x" * 30)
    controls = [control_digest("7", 5, Table("public", name)) for name in ("jobs", "others")]
    assert len({slot_name(other, control, 5) for other in labels for control in controls}) == 22


def test_a_control_is_a_table_of_one_database_of_one_server():
    jobs = Table("public", "jobs")
    same = control_digest("7", 5, jobs)
    assert same == control_digest("7", 5, jobs)
    others = {control_digest("8", 5, jobs), control_digest("7", 6, jobs), control_digest("7", 5, Table("w", "jobs"))}
    assert len(others - {same}) == 3
