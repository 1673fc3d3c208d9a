"""Request bodies to checked values. Every refusal is one sentence that names the field and what it should be."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

MAX_BODY_BYTES = 1 << 20
MAX_K = 1000
MAX_EF = 10_000
MAX_QUERY_CHARACTERS = 100_000
MAX_DIMENSION = 16_000  # pgvector's own limit for a column
MAX_TIMEOUT_S = 3600.0
DEFAULT_TIMEOUT_S = 30.0


class BadRequest(Exception):
    """The request cannot be served as it is; the message says what mends it."""


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """A checked body of ``POST /v1/search``: exactly one of ``query`` and ``vector`` is set.

    ``ef`` is how many candidates an HNSW index looks at; None: what the index or the server is set to.
    """

    pipeline: str
    query: str | None
    vector: list[float] | None
    k: int
    filter: dict[str, object] | None
    ef: int | None = None


def search_request(body: bytes) -> SearchRequest:
    """Check the body of ``POST /v1/search``.

    Raises:
        BadRequest: it is not as documented.
    """
    fields = _fields(body, {"pipeline", "query", "vector", "k", "ef", "filter"})
    pipeline = fields.get("pipeline")
    if not isinstance(pipeline, str) or not pipeline:
        raise BadRequest('"pipeline" must be the name of a pipeline.')
    if ("query" in fields) == ("vector" in fields):
        raise BadRequest('Give either "query" (text) or "vector" (a list of numbers).')
    wanted = fields.get("filter")
    if wanted is not None and not isinstance(wanted, dict):
        raise BadRequest('"filter" must be an object of column names and values.')
    return SearchRequest(
        pipeline,
        _query(fields["query"]) if "query" in fields else None,
        _vector(fields["vector"]) if "vector" in fields else None,
        _whole("k", fields.get("k", 10), MAX_K),
        wanted,
        None if fields.get("ef") is None else _whole("ef", fields["ef"], MAX_EF),
    )


def sync_timeout_s(body: bytes) -> float:
    """Return ``timeout_s`` of the body of ``POST /v1/sync``; an empty body means the default.

    Raises:
        BadRequest: it is not as documented.
    """
    fields = _fields(body or b"{}", {"timeout_s"})
    timeout_s = _number(fields.get("timeout_s", DEFAULT_TIMEOUT_S))
    if timeout_s is None or not 0 <= timeout_s <= MAX_TIMEOUT_S:
        raise BadRequest(f'"timeout_s" must be a number of seconds from 0 to {MAX_TIMEOUT_S:g}.')
    return timeout_s


def _fields(body: bytes, known: set[str]) -> dict[str, object]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("The body is not valid JSON.") from None
    if not isinstance(fields, dict):
        raise BadRequest("The body must be a JSON object.")
    if fields.keys() - known:
        names = ", ".join(f'"{name}"' for name in sorted(known))
        raise BadRequest(f"The body has a field that is not known; the fields are {names}.")
    return fields


def _query(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_QUERY_CHARACTERS:
        raise BadRequest(f'"query" must be text of 1 to {MAX_QUERY_CHARACTERS} characters.')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRequest('"query" holds half of a surrogate pair, which is no character.') from None
    return value


def _vector(value: object) -> list[float]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_DIMENSION:
        raise BadRequest(f'"vector" must be a list of 1 to {MAX_DIMENSION} numbers.')
    numbers = [_number(item) for item in value]
    if any(number is None for number in numbers):
        raise BadRequest('"vector" must hold finite numbers only.')
    return [number for number in numbers if number is not None]


def _whole(name: str, value: object, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise BadRequest(f'"{name}" must be a whole number from 1 to {most}.')
    return value


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
