"""Why an embedding request failed, by what can be done next."""

from __future__ import annotations


class EmbedError(Exception):
    """Base of all. ``reason`` is a short stable word for metrics (``unavailable``, ``invalid_argument`` …)."""

    def __init__(self, message: str, *, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s


class ModelUnavailable(EmbedError):
    """The server is down, silent, overloaded or without the model: wait. Never a row's fault."""


class ModelOverloaded(ModelUnavailable):
    """The server's queue is full: wait, and send less at a time."""


class ModelSilent(ModelUnavailable):
    """No reply within the deadline: the server is down or busy, or the request was more than it can do in that time."""


class RequestTooLarge(EmbedError):
    """The request as a whole is too big: send fewer rows."""


class TextRefused(EmbedError):
    """The model refuses an input of this request (INVALID_ARGUMENT): find the row by bisection."""


class ModelFailed(EmbedError):
    """The model broke on this request, or its reply is not what was asked for: try again a few times, then bisect."""


class ModelMisconfigured(EmbedError):
    """Credentials, TLS, model name or contract are wrong: a person must mend it."""
