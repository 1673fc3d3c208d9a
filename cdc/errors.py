"""Failures, named by what can be done next.

Each carries one sentence that says what is wrong and, where there is one, a second that says what mends it.
No message may hold a password, a row's text, or a key.
"""

from __future__ import annotations


class WalvecError(Exception):
    """Anything walvec raises on purpose.

    Args:
        message: What is wrong and where, in one sentence.
        remedy: What mends it: a SQL statement, a setting, or a command.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class ConfigError(WalvecError):
    """A setting, a privilege or the server's configuration is wrong; trying again cannot help."""

    exit_code = 2


class NeedsPerson(WalvecError):
    """walvec stopped on purpose, because going on would guess at what a person should decide."""

    exit_code = 3


class TimedOut(WalvecError):
    """What was waited for did not happen in the time allowed."""

    exit_code = 4


class Unavailable(WalvecError):
    """A server is down, restarting or unreachable: wait, with backoff, and try again."""


class SlotInUse(Unavailable):
    """Another consumer holds the replication slot: stand by and try again."""


class SlotLost(WalvecError):
    """The replication slot is missing, invalidated, or stuck; a new slot and a reconcile mend it."""


class SlotStuck(SlotLost):
    """The slot stands where the publication did not exist, and the server cannot decode past it: a new slot can."""


class PublicationMissing(Unavailable):
    """The publication does not exist (now, or at the place in the WAL that the slot must decode)."""


class Fenced(NeedsPerson):
    """Another consumer has taken over this slot; nothing of ours may be written any more."""


class DecodeError(WalvecError):
    """Bytes that are not what the protocol says. The one exception a decoder may raise."""


class PipelineFault(WalvecError):
    """One pipeline cannot go on until something is mended; the others are not touched by it."""


class UnknownPipeline(WalvecError):
    """No pipeline has the name that was asked for."""


class RowRefused(WalvecError):
    """The database refused a value of a batch: some row of it is at fault."""


class AnswerNotCast(RowRefused):
    """An answer of the model is no value of the column's type."""


class ModelUnknown(Unavailable):
    """The width of the model's vectors is needed, and the model has not been reached yet."""
