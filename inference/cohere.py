"""Runtime ``cohere``: embedding models of Cohere, or of a deployment that has its API (version 2).

``POST /v2/embed`` with at most 96 texts. The models are asked differently for documents and for questions:
``input_type`` is ``search_document`` or ``search_query`` by use, unless one is set for both. What is longer than the
model reads is cut at its end by the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from inference.api import CONCURRENCY, ApiEmbedder
from inference.embedder import Limits
from inference.errors import ModelMisconfigured

COHERE_URL = "https://api.cohere.com"
COHERE_HOST = "api.cohere.com"
PATH = "/v2/embed"
INPUT_TYPES = ("search_document", "search_query", "classification", "clustering")
MAX_ROWS = 96
MAX_TOKENS = {"embed-v4": 128_000}
"""Tokens a text, by the beginning of the model's name; 512 for the rest."""
REQUEST_TOKENS = 256_000


class CohereEmbedder(ApiEmbedder):
    """A model behind Cohere's API."""

    runtime = "cohere"
    key_setting = "WALVEC_COHERE_KEY"

    def __init__(
        self,
        model: str,
        url: str = "",
        key: str = "",
        *,
        request_timeout_s: float = 30.0,
        dimensions: int | None = None,
        input_type: str = "",
    ) -> None:
        """Name model and server; nothing is reached yet.

        Args:
            model: such as ``embed-v4.0`` or ``embed-multilingual-v3.0``.
            url: server of a private deployment; by default Cohere's own.
            key: API key.
            request_timeout_s: deadline of one request, in seconds.
            dimensions: width to ask for, of models that can be shortened; None for the model's own.
            input_type: one of :data:`INPUT_TYPES` for everything; by default what suits documents and questions.

        Raises:
            ModelMisconfigured: the URL is none, it is Cohere's and there is no key, or there is no such input type.
        """
        origin, path = _parse_url(url or COHERE_URL)
        key = key.strip()
        if not key and urlsplit(origin).hostname == COHERE_HOST:
            raise ModelMisconfigured(
                f"{COHERE_HOST} needs a key: set WALVEC_COHERE_KEY or WALVEC_COHERE_KEY_FILE.",
                reason="unauthenticated",
            )
        if input_type and input_type not in INPUT_TYPES:
            raise ModelMisconfigured(
                f"WALVEC_INPUT_TYPE {input_type[:40]!r} is none of {', '.join(INPUT_TYPES)}.", reason="bad_input_type"
            )
        self._name = model.removeprefix("cohere/")
        tokens = next((most for start, most in MAX_TOKENS.items() if self._name.startswith(start)), 512)
        super().__init__(
            model,
            origin=origin,
            path=path,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            secret=key,
            timeout_s=request_timeout_s,
            dimensions=dimensions,
            limits=Limits(MAX_ROWS, REQUEST_TOKENS, tokens, CONCURRENCY),
        )
        self._input_type = input_type

    def request(self, texts: Sequence[str], query: bool) -> dict[str, Any]:
        """Return the body of a request."""
        body: dict[str, Any] = {
            "model": self._name,
            "texts": list(texts),
            "input_type": self._input_type or ("search_query" if query else "search_document"),
            "embedding_types": ["float"],
            "truncate": "END",
        }
        if self._asked_dimensions is not None:
            body["output_dimension"] = self._asked_dimensions
        return body

    def read(self, reply: dict[str, Any], rows: int) -> tuple[Any, int]:
        """Return the vectors, in the order of the texts, and the tokens billed."""
        billed = (reply.get("meta") or {}).get("billed_units") or {}
        return reply["embeddings"]["float"], int(billed.get("input_tokens") or 0)


def _parse_url(url: str) -> tuple[str, str]:
    """Return origin and path of the embedding call.

    Raises:
        ModelMisconfigured: it is not an HTTP URL, or holds a password.
    """
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        raise ModelMisconfigured(
            "WALVEC_COHERE_URL is not usable: it must be http:// or https:// and a host, without a password.",
            reason="bad_url",
        )
    base = parts.path.rstrip("/").removesuffix(PATH).removesuffix("/v2")
    return f"{parts.scheme}://{parts.netloc}", base + PATH
