"""From a status of an embedding API over HTTP to what can be done about it.

APIs agree on the statuses and on little else: "too many texts", "text too long" and "bad text" all come as 400, 413 or
422, and one popular server says 500 for a text that is too long. So the words are read too. They were collected from
the sources and issue trackers of the OpenAI and Cohere APIs, Azure, TEI, vLLM, Ollama, llama.cpp and DashScope.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from inference.errors import (
    EmbedError,
    ModelFailed,
    ModelMisconfigured,
    ModelOverloaded,
    ModelUnavailable,
    RequestTooLarge,
    TextRefused,
)
from inference.http_api import Reply, retry_after_s
from inference.quoting import quotable


class TooManyRows(RequestTooLarge):
    """The server takes fewer texts in one request: ``rows`` of them, where it says."""

    def __init__(self, message: str, rows: int | None) -> None:
        super().__init__(message, reason="too_many_rows")
        self.rows = rows


class TooLong(RequestTooLarge):
    """A text is longer than the model reads; ``share`` is how much of it fits, where the server says."""

    def __init__(self, message: str, share: float | None) -> None:
        super().__init__(message, reason="too_long")
        self.share = share


_ROWS = re.compile(
    r"(?:batch size.{0,60}?(?:larger than|maximum allowed|at most|exceeds?|>)"
    r"|array too long.{0,40}?maximum length"
    r"|(?:number of|too many) (?:texts|inputs).{0,60}?(?:at most|maximum(?: is| of)?|exceeds?|larger than)"
    r"|(?:maximum|most) (?:number of (?:texts|inputs)|batch size).{0,40}?(?:is|of|:))[^\d.]{0,40}(\d+)?"
)
_PER_REQUEST = re.compile(r"max(?:imum)? \d+ tokens per request|max_tokens_per_request|tokens summed across")
_LONG = re.compile(
    r"context.?(?:length|size)|must have less than \d+ tokens|too large to process|max_model_len|too many tokens"
    r"|(?:input|prompt|text|sequence)[^.]{0,40}(?:too long|is longer than|exceeds)|maximum input length"
)
_LIMIT = re.compile(
    r"(?:maximum (?:context|input|sequence) length (?:is|of)|less than|max(?:imum)?:?|batch size:) (\d+)"
)
_GIVEN = re.compile(r"(?:requested|given:|resulted in|has|contains|input \(|got|passed) ?(\d+)")
_TRANSIENT = frozenset({408, 409, 425, 502, 503, 504, 529})
_QUOTA = ("insufficient_quota", "billing", "exceeded your current quota")


def translate(
    reply: Reply, *, origin: str, model: str, key_setting: str, proven: bool = False, texts: Sequence[str] = (),
    secrets: Sequence[str] = (),
) -> EmbedError:  # fmt: skip
    """Return the error to raise for a reply whose status is not 2xx.

    Args:
        reply: what came.
        origin: the server, without path and credentials, for the message.
        model: the model asked for.
        key_setting: the setting that holds the key, for the message.
        proven: whether this model has answered before; then its absence is an outage, not a wrong name.
        texts: what was sent, so that the message can be kept from quoting it.
        secrets: what must not be quoted either.
    """
    status, (message, words) = reply.status, _words(reply.body)
    who, quote = f"{origin}, model {model},", quotable(message, texts, secrets)
    if status in (401, 403, 498):  # no quoting: these messages like to repeat the key
        what = "denies this key access" if status == 403 else f"refuses the key: check {key_setting}"
        return ModelMisconfigured(f"{who} {what}.", reason="permission_denied" if status == 403 else "unauthenticated")
    if status == 402 or (status == 429 and any(mark in words for mark in _QUOTA)):
        return ModelMisconfigured(
            f"{who} has no quota left for this key ({quote}): mend the plan or the billing there.", reason="quota"
        )
    if status == 429:
        pause = retry_after_s(reply.headers)
        return ModelOverloaded(f"{who} takes no more for now ({quote}).", reason="rate_limited", retry_after_s=pause)
    if status in _TRANSIENT:
        pause = retry_after_s(reply.headers)
        return ModelUnavailable(f"{who} answers {status} ({quote}).", reason="unavailable", retry_after_s=pause)
    if 300 <= status < 400 or status in (404, 405, 410):
        return _not_there(status, who, quote, proven)
    return _refused(status, who, quote, words)


def _not_there(status: int, who: str, quote: str, proven: bool) -> EmbedError:
    if proven:
        return ModelUnavailable(f"{who} is no longer there ({status}: {quote}).", reason="not_found")
    return ModelMisconfigured(
        f"{who} is not there ({status}: {quote}): check WALVEC_MODEL and the path of the URL.", reason="not_found"
    )


def _refused(status: int, who: str, quote: str, words: str) -> EmbedError:
    """Tell the kinds of "not this request" apart, by what the server says."""
    rows = _ROWS.search(words)
    if rows is not None:
        return TooManyRows(f"{who} takes fewer texts at once than were sent.", int(rows[1]) if rows[1] else None)
    if _PER_REQUEST.search(words):
        return RequestTooLarge(f"{who} takes fewer tokens at once than were sent.", reason="too_many_tokens")
    if _LONG.search(words):
        return TooLong(f"{who} reads no text as long as this ({quote}).", _share(words))
    if status == 413:
        return RequestTooLarge(f"{who} takes no request as large as this.", reason="too_large")
    if status in (400, 422):
        return TextRefused(f"{who} refuses an input ({quote}).", reason="invalid_argument")
    if 400 <= status < 500 and status != 424:
        return ModelMisconfigured(f"{who} cannot be asked like this ({status}: {quote}).", reason=f"http_{status}")
    return ModelFailed(f"{who} failed on the request ({status}: {quote}).", reason="internal")


def _share(words: str) -> float | None:
    limit, given = _LIMIT.search(words), _GIVEN.search(words)
    if limit is None or given is None or not 0 < int(limit[1]) < int(given[1]):
        return None
    return int(limit[1]) / int(given[1])


def _words(body: bytes) -> tuple[str, str]:
    """Return a reply's message, and all its words in lower case for looking up.

    Shapes: ``{"error": {"message", "code"}}`` (OpenAI), ``{"error": "…"}`` (TEI, Ollama), ``{"message": "…"}``
    (Cohere, TEI), ``{"detail": …}`` (servers on FastAPI), plain text (proxies).
    """
    text = body[:65_536].decode("utf-8", "replace")
    try:
        found = json.loads(text)
    except ValueError:
        return ("" if text.lstrip().startswith("<") else text), text.lower()
    return _message(found), text.lower()


def _message(found: Any) -> str:
    if isinstance(found, str):
        return found
    if isinstance(found, list):
        return _message(found[0]) if found else ""
    if isinstance(found, dict):
        for name in ("message", "error", "detail", "msg"):
            if found.get(name):
                return _message(found[name])
    return ""
