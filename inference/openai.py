"""Runtime ``openai``: any server that has the embedding call of the OpenAI API.

That is OpenAI itself, Azure OpenAI, and servers of one's own: Text Embeddings Inference (TEI), vLLM, Ollama,
llama.cpp, LiteLLM and many more. ``POST …/embeddings`` with ``model``, ``input`` and, on request, ``dimensions``.
Vectors are asked for in base64, which is a quarter of the bytes and needs no parsing of decimals; a server that refuses
that is asked for plain numbers from then on, and whichever comes is read. TEI and vLLM tell their limits; other servers
are taken to have those of OpenAI: 2,048 texts and 300,000 tokens a request, 8,192 tokens a text.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np

from inference.api import CONCURRENCY, ApiEmbedder
from inference.embedder import Limits, Vectors
from inference.errors import EmbedError, ModelMisconfigured

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_HOST = "api.openai.com"
AZURE_HOSTS = (".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com")
AZURE_VERSION = "2024-10-21"
"""The stable version of Azure's inference API that is asked for where the URL names none."""
LIMITS = Limits(max_rows=2048, max_padded_tokens=300_000, max_tokens=8_192, concurrency=CONCURRENCY)
LEARN_S = 3.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the embedding call is: ``origin`` (scheme, host, port) and ``path`` with its query."""

    origin: str
    path: str
    host: str

    @property
    def is_azure(self) -> bool:
        """Whether it is Azure's, which has a header of its own for keys."""
        return self.host.endswith(AZURE_HOSTS)

    def beside(self, name: str) -> str:
        """Return the path of a call beside ``…/embeddings``, such as ``…/models``."""
        return self.path.partition("?")[0].removesuffix("embeddings") + name


def parse_url(url: str, model: str) -> Endpoint:
    """Find the embedding call under a base URL, however much of its path is given.

    ``https://host``, ``https://host/v1`` and ``https://host/v1/embeddings`` are the same. On Azure the resource alone
    will do (the deployment is then called like the model), or ``…/openai/deployments/NAME``, or ``…/openai/v1``.

    Raises:
        ModelMisconfigured: it is not an HTTP URL, or holds a password.
    """
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise _bad_url("it is not a URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise _bad_url("it must begin with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise _bad_url("it must hold no password: put the key into WALVEC_OPENAI_KEY")
    path = parts.path.rstrip("/")
    azure = host.endswith(AZURE_HOSTS)
    if azure and path in ("", "/openai"):
        path = f"/openai/deployments/{quote(model, safe='')}"
    if not path.endswith("/embeddings"):
        path = f"{path or '/v1'}/embeddings"
    query = parts.query
    if azure and "/deployments/" in path and "api-version" not in parse_qs(query):
        query = f"{query}&api-version={AZURE_VERSION}".lstrip("&")
    return Endpoint(f"{parts.scheme}://{parts.netloc}", f"{path}?{query}" if query else path, host)


class OpenAIEmbedder(ApiEmbedder):
    """A model behind the embedding call of the OpenAI API."""

    runtime = "openai"
    key_setting = "WALVEC_OPENAI_KEY"

    def __init__(
        self,
        model: str,
        url: str = "",
        key: str = "",
        *,
        request_timeout_s: float = 30.0,
        dimensions: int | None = None,
    ) -> None:
        """Name model and server; nothing is reached yet.

        Args:
            model: its name there; on Azure the deployment's, unless the URL names that.
            url: base URL (see :func:`parse_url`); by default OpenAI's own.
            key: API key, or ``Bearer …`` for a token of Microsoft Entra; servers of one's own often need none.
            request_timeout_s: deadline of one request, in seconds.
            dimensions: width to ask for, of models that can be shortened; None for the model's own.

        Raises:
            ModelMisconfigured: the URL is none, or OpenAI's and there is no key.
        """
        url, key = url or OPENAI_URL, key.strip()
        name = model.removeprefix("openai/") if OPENAI_HOST in url or any(h in url for h in AZURE_HOSTS) else model
        endpoint = parse_url(url, name)
        if not key and (endpoint.is_azure or endpoint.host == OPENAI_HOST):
            raise ModelMisconfigured(
                f"{endpoint.host} needs a key: set WALVEC_OPENAI_KEY or WALVEC_OPENAI_KEY_FILE, "
                "or WALVEC_OPENAI_URL to a server of your own.",
                reason="unauthenticated",
            )
        super().__init__(
            model,
            origin=endpoint.origin,
            path=endpoint.path,
            headers=credentials(key, endpoint.is_azure),
            secret=key.removeprefix("Bearer "),
            timeout_s=request_timeout_s,
            dimensions=dimensions,
            limits=LIMITS,
        )
        self._name = name
        self._endpoint = endpoint
        self._base64 = True

    def request(self, texts: Sequence[str], query: bool) -> dict[str, Any]:
        """Return the body of a request. The API does not tell questions from documents."""
        body: dict[str, Any] = {"model": self._name, "input": list(texts)}
        body["encoding_format"] = "base64" if self._base64 else "float"
        if self._asked_dimensions is not None:
            body["dimensions"] = self._asked_dimensions
        return body

    def read(self, reply: dict[str, Any], rows: int) -> tuple[Any, int]:
        """Return the vectors by index, whichever order they came in, and the tokens used."""
        items = reply["data"]
        if sorted(item.get("index", place) for place, item in enumerate(items)) != list(range(len(items))):
            raise ValueError("indexes")
        ordered: list[Any] = [None] * len(items)
        for place, item in enumerate(items):
            ordered[item.get("index", place)] = _vector(item["embedding"])
        usage = reply.get("usage") or {}
        return ordered, int(usage.get("prompt_tokens") or usage.get("total_tokens") or 0)

    async def start(self) -> None:
        """Embed one short word, in base64 where the server has it; see the base class."""
        try:
            await super().start()
        except ModelMisconfigured as error:
            if not self._base64 or error.reason != "bad_contract":
                raise
            self._base64 = False
            await super().start()

    async def _learn(self) -> None:
        """Ask TEI's ``/info`` and vLLM's ``/v1/models`` for their limits; a server without them is no fault."""
        if self._endpoint.is_azure or self._endpoint.host == OPENAI_HOST:
            return
        info = await self._peek("/info")
        rows, length = info.get("max_client_batch_size"), info.get("max_input_length")
        if length is None:
            for served in (await self._peek(self._endpoint.beside("models"))).get("data") or []:
                if isinstance(served, dict) and served.get("id") == self._name:
                    length = served.get("max_model_len")
        if isinstance(rows, int) and rows > 0:
            self._limits = replace(self._limits, max_rows=min(rows, LIMITS.max_rows))
        if isinstance(length, int) and length > 0:
            self._limits = replace(self._limits, max_tokens=min(length, LIMITS.max_padded_tokens))

    async def _peek(self, path: str) -> dict[str, Any]:
        try:
            reply = await self._api.peek(path, LEARN_S)
            found = json.loads(reply.body) if reply.status == 200 else {}
        except (EmbedError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    async def served(self) -> list[str]:
        """Return the names of the models that the server lists, where it lists them."""
        listed = (await self._peek(self._endpoint.beside("models"))).get("data") or []
        return sorted(str(item["id"]) for item in listed if isinstance(item, dict) and "id" in item)


def _vector(value: Any) -> Any:
    """Return numbers as they are, base64 as little-endian float32."""
    if not isinstance(value, str):
        return value
    vector: Vectors = np.frombuffer(b64decode(value, validate=True), "<f4")
    return vector


def credentials(key: str, azure: bool) -> dict[str, str]:
    """Return the headers that let in; none without a key."""
    if not key:
        return {}
    if key.startswith("Bearer "):
        return {"Authorization": key}
    return {"api-key": key} if azure else {"Authorization": f"Bearer {key}"}


def _bad_url(what: str) -> ModelMisconfigured:
    return ModelMisconfigured(f"WALVEC_OPENAI_URL is not usable: {what}.", reason="bad_url")
