"""Questions that a running walvec answers: asked over its own HTTP, as anybody may."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx

from cdc.config import Settings
from cdc.errors import ConfigError, Unavailable, UnknownPipeline

_TIMEOUT_S: Final = 35.0  # the server gives up a search after 30
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # where it listens → where it is asked


def parse_vector(text: str) -> list[float]:
    """Return the vector that ``text``, a JSON array of numbers, gives.

    Raises:
        ConfigError: it is none.
    """
    try:
        numbers = json.loads(text)
    except (ValueError, RecursionError):
        numbers = None
    plain = isinstance(numbers, list) and all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
    if not plain or not numbers:
        raise ConfigError("--vector takes a JSON array of numbers.", "For example --vector '[0.1, 0.2, 0.3]'.")
    return [float(number) for number in numbers]


def ask_search(
    settings: Settings, pipeline: str, query: str | None, vector: Sequence[float] | None, k: int, ef: int | None
) -> list[dict[str, object]]:
    """Have the walvec that listens on ``WALVEC_HTTP`` search; return what ``POST /v1/search`` does.

    Raises:
        UnknownPipeline: it knows no pipeline or index of this name.
        ConfigError: the question does not fit, HTTP is off, or the token is wrong.
        Unavailable: nobody answers there, or not now.
    """
    address = settings.http_address
    if address is None:
        raise ConfigError("WALVEC_HTTP is off, so no running walvec can be asked.", "Set it as the daemon has it.")
    host, port = _EVERYWHERE.get(address[0], address[0]), address[1]
    asked: dict[str, Any] = {"pipeline": pipeline, "k": k}
    asked |= {"vector": list(vector)} if vector is not None else {"query": query}
    asked |= {"ef": ef} if ef is not None else {}
    headers = {"Authorization": f"Bearer {settings.http_token}"} if settings.http_token else {}
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        reply = httpx.post(
            f"http://{place}/v1/search", json=asked, headers=headers, timeout=_TIMEOUT_S, trust_env=False
        )
        body = reply.json()
    except (httpx.HTTPError, ValueError):
        raise Unavailable(
            f"No walvec answers at {place}.", "Start the daemon, or set WALVEC_HTTP as it has it."
        ) from None
    if reply.status_code == 200 and isinstance(body, Mapping) and isinstance(body.get("results"), list):
        found: list[dict[str, object]] = body["results"]
        return found
    why = str(body.get("error") or body) if isinstance(body, Mapping) else reply.reason_phrase
    if reply.status_code == 404:
        raise UnknownPipeline(why)
    if reply.status_code in (401, 403):
        raise ConfigError(f"The walvec at {place} asks for a token.", "Set WALVEC_HTTP_TOKEN as the daemon has it.")
    raise ConfigError(why) if reply.status_code == 400 else Unavailable(why)
