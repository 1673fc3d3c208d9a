"""What to do after an embedding request failed.

The table below is the whole policy. A server that is down, silent or overloaded never costs a row anything; a row that
the model refuses is found by halving and dead-lettered after one try alone; anything else is tried again first.
"""

from __future__ import annotations

from enum import Enum


class Failure(Enum):
    """Why a request failed."""

    UNAVAILABLE = "unavailable"  # down, unloaded
    OVERLOADED = "overloaded"  # up, but its queue is full
    SILENT = "silent"  # no answer in time: down, or too much was asked of it
    TOO_LARGE = "too_large"  # the request, not a row
    REFUSED = "refused"  # the model refuses an input (INVALID_ARGUMENT)
    FAILED = "failed"  # the model broke, or its reply is not what was asked for
    MISCONFIGURED = "misconfigured"  # credentials, TLS, contract


class Action(Enum):
    """What happens to the rows of the request."""

    WAIT = "wait"  # keep them, until the server is back
    RETRY = "retry"  # send them again, after a pause
    SPLIT = "split"  # send each half by itself
    BURY = "bury"  # dead-letter the one row
    STOP = "stop"  # keep them, and say what a person must mend


TRIES_TOGETHER = 3
"""How often a request of several rows is sent again before the row at fault is looked for."""


def dispose(failure: Failure, rows: int, attempts: int, max_attempts: int) -> Action:
    """Return what to do with a request of ``rows`` rows that has now failed ``attempts`` times."""
    match failure:
        case Failure.UNAVAILABLE | Failure.OVERLOADED | Failure.SILENT:
            return Action.WAIT
        case Failure.MISCONFIGURED:
            return Action.STOP
        case Failure.TOO_LARGE | Failure.REFUSED:
            return Action.SPLIT if rows > 1 else Action.BURY
        case Failure.FAILED:
            if attempts < (TRIES_TOGETHER if rows > 1 else max_attempts):
                return Action.RETRY
            return Action.SPLIT if rows > 1 else Action.BURY


def backoff_s(attempt: int, *, first: float = 0.1, most: float = 5.0) -> float:
    """Return the pause before try number ``attempt`` (from 1), in seconds: doubling, bounded."""
    return min(most, first * 2.0 ** (attempt - 1))
