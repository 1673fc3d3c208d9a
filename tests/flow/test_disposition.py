"""The whole policy of failures, as a table."""

from __future__ import annotations

import pytest

from cdc.flow.disposition import TRIES_TOGETHER, Action, Failure, backoff_s, dispose


@pytest.mark.parametrize("rows", [1, 2, 256])
@pytest.mark.parametrize("attempts", [1, 8, 10_000])
def test_a_server_that_is_away_never_costs_a_row_anything(rows, attempts):
    for failure in (Failure.UNAVAILABLE, Failure.OVERLOADED, Failure.SILENT):
        assert dispose(failure, rows, attempts, 8) is Action.WAIT
    assert dispose(Failure.MISCONFIGURED, rows, attempts, 8) is Action.STOP


@pytest.mark.parametrize("failure", [Failure.REFUSED, Failure.TOO_LARGE])
def test_a_refused_row_is_found_by_halving_and_buried_after_one_try_alone(failure):
    assert dispose(failure, 2, 1, 8) is Action.SPLIT
    assert dispose(failure, 1, 1, 8) is Action.BURY


def test_a_broken_model_is_tried_again_first_then_halved_then_gives_up_on_the_row():
    assert [dispose(Failure.FAILED, 9, n, 8) for n in range(1, 5)] == [Action.RETRY] * (TRIES_TOGETHER - 1) + [
        Action.SPLIT
    ] * (5 - TRIES_TOGETHER)
    assert [dispose(Failure.FAILED, 1, n, 8) for n in (1, 7, 8)] == [Action.RETRY, Action.RETRY, Action.BURY]
    assert dispose(Failure.FAILED, 1, 1, 1) is Action.BURY


def test_every_failure_has_an_answer_on_the_last_attempt():
    for failure in Failure:
        for rows in (1, 2):
            for limit in (1, 2, 8):
                assert dispose(failure, rows, limit, limit) is not Action.RETRY or rows > 1


def test_pauses_double_and_are_bounded():
    assert [backoff_s(n) for n in (1, 2, 3)] == [0.1, 0.2, 0.4]
    assert backoff_s(64) == 5.0
