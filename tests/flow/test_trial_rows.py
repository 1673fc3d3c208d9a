"""Trials as rows of tables that have some of the columns."""

from cdc.flow.trial_rows import TrialRows

PROXY = {"backend": "hnswlib", "m": 16, "efc": 64, "ef": 40, "best": False}
OTHER = {**PROXY, "ef": 50}
REAL = {"backend": "pgvector", "m": 16, "efc": 64, "ef": 20, "best": False}
LANTERNS = frozenset({"experiment_id", "ef", "efc", "m", "recall", "latency", "build_time"})


def written(columns, *trials):
    rows = TrialRows()
    return [row for trial in trials for row in rows.take(7, trial, columns)]


def test_a_table_that_tells_backends_apart_and_the_winner_gets_all():
    best = {**REAL, "best": True}
    assert written(LANTERNS | {"backend", "best"}, PROXY, REAL, best) == [PROXY, REAL, best]
    assert written(LANTERNS | {"backend"}, PROXY, REAL, best) == [PROXY, REAL]


def test_one_that_does_not_gets_pgvectors_or_where_there_are_none_the_others():
    assert written(LANTERNS, PROXY, OTHER, REAL, {**REAL, "best": True}) == [REAL]
    assert written(LANTERNS, PROXY, OTHER, {**OTHER, "best": True}) == [PROXY, OTHER]


def test_a_run_that_ended_early_leaves_nothing_for_the_next():
    assert written(LANTERNS, PROXY, OTHER, PROXY, OTHER, {**OTHER, "best": True}) == [PROXY, OTHER]
    assert written(LANTERNS, PROXY, REAL, PROXY, REAL) == [REAL, REAL]
