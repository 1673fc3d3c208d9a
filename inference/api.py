"""What the runtimes that are web APIs have in common: :mod:`inference.openai` and :mod:`inference.cohere`.

One request holds at most so many texts; the server says so only when it is asked for more, so what it says is learnt.
A text that is longer than the model reads is cut until it fits, as every other runtime cuts it. Before a text is blamed
for a failure, a short word is sent by itself: a server that fails on that too is ill, and an ill server must not cost
a row anything.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from inference.api_errors import TooLong, TooManyRows, translate
from inference.embedder import Limits, Vectors
from inference.errors import (
    ModelFailed,
    ModelMisconfigured,
    ModelUnavailable,
    RequestTooLarge,
    TextRefused,
)
from inference.http_api import HttpApi
from inference.tokens import count

CANARY = "walvec"
"""The text that shows whether the model works at all."""
CUTS = 8
"""How often a text that is too long is cut before it counts as refused: by then less than a hundredth is left."""
CUT_MARGIN = 0.95
CONCURRENCY = 8
MAX_DIMENSIONS = 16_000


class ApiEmbedder(ABC):
    """A model behind a web API."""

    runtime: str
    key_setting: str
    """The setting that holds the key, for messages."""

    def __init__(
        self,
        model: str,
        *,
        origin: str,
        path: str,
        headers: dict[str, str],
        secret: str,
        timeout_s: float,
        dimensions: int | None,
        limits: Limits,
    ) -> None:
        """Name the model; nothing is reached yet.

        Args:
            model: as the user calls it.
            origin: scheme, host and port of the server.
            path: of the embedding call, with its query.
            headers: of every request; the key is among them.
            secret: the key, to keep it out of messages; empty where there is none.
            timeout_s: deadline of one request.
            dimensions: width to ask for; None for the model's own.
            limits: of one request, as far as they are known beforehand.

        Raises:
            ModelMisconfigured: the timeout or the width is out of range, or the key is no key.
        """
        if not timeout_s > 0:
            raise ModelMisconfigured("WALVEC_REQUEST_TIMEOUT_S must be more than 0.", reason="bad_timeout")
        if not (secret.isascii() and secret.isprintable()):
            raise ModelMisconfigured(f"{self.key_setting} holds characters that no key has.", reason="bad_key")
        if dimensions is not None and not 1 <= dimensions <= MAX_DIMENSIONS:
            raise ModelMisconfigured(f"WALVEC_DIMENSIONS takes 1 to {MAX_DIMENSIONS}.", reason="bad_dimensions")
        self.model = model
        self.tokens_used = 0
        """Tokens that the server has counted so far."""
        self._api = HttpApi(origin, timeout_s=timeout_s, headers={"Content-Type": "application/json", **headers})
        self._path = path
        self._secret = secret
        self._asked_dimensions = dimensions
        self._limits = limits
        self._dimension: int | None = None

    @property
    def dimension(self) -> int:
        """Width of the vectors.

        Raises:
            ModelUnavailable: :meth:`start` has not succeeded yet.
        """
        if self._dimension is None:
            raise self._not_started()
        return self._dimension

    @property
    def limits(self) -> Limits:
        """Bounds for one request, as far as they are known; a request over them is sent in several."""
        return self._limits

    async def start(self) -> None:
        """Embed one short word: that proves address, key and model, and shows the width.

        Raises:
            ModelUnavailable: not now; or the model fails on a short word.
            ModelMisconfigured: address, key, model or width are wrong.
        """
        self._api.open()
        await self._learn()
        vectors = await self._canary("fails")
        asked = self._asked_dimensions
        if asked is not None and vectors.shape[1] != asked:
            raise ModelMisconfigured(
                f"Model {self.model} gives {vectors.shape[1]} dimensions, not the {asked} of WALVEC_DIMENSIONS: "
                "unset it, or choose a model that can be shortened.",
                reason="bad_dimensions",
            )
        self._dimension = vectors.shape[1]

    async def embed(self, texts: Sequence[str], *, query: bool = False, bulk: bool = False) -> Vectors:
        """Return one vector per text, shape ``(texts, dimension)``, as the model gives them.

        These APIs know no priorities, so ``bulk`` makes no difference.

        Raises:
            TextRefused: the model takes a short word but not one of these.
            EmbedError: another of its kinds.
        """
        vectors = np.empty((len(texts), self.dimension), np.float32)
        spelled = [text.encode("utf-8", "replace").decode() for text in texts]
        start = 0
        while start < len(texts):  # the bound may shrink on the way
            part = spelled[start : start + self._limits.max_rows]
            vectors[start : start + len(part)] = await self._fit(part, query)
            start += len(part)
        return vectors

    def bare(self, texts: Sequence[str]) -> Callable[[], Awaitable[object]]:
        """Return what sends one ready-made request and reads the reply without decoding it: the bare loop's body."""
        content = self._encode(texts, False)
        return lambda: self._api.send("POST", self._path, content)

    async def close(self) -> None:
        """Close the connections; requests in flight fail as unavailable."""
        self._dimension = None
        await self._api.close()

    # -- what an API has of its own ----------------------------------------------------------------------------------

    @abstractmethod
    def request(self, texts: Sequence[str], query: bool) -> dict[str, Any]:
        """Return the body of a request."""

    @abstractmethod
    def read(self, reply: dict[str, Any], rows: int) -> tuple[Any, int]:
        """Return a reply's vectors, anything that NumPy can make an array of, and the tokens it counts.

        Raises:
            LookupError, TypeError, ValueError: it is not shaped as a reply of this API.
        """

    async def _learn(self) -> None:  # noqa: B027 - most APIs say nothing about themselves
        """Ask the server for its limits, where it tells them."""

    # -- one request --------------------------------------------------------------------------------------------------

    async def _fit(self, texts: list[str], query: bool) -> Vectors:
        """Embed texts, in as many requests as the server makes of them.

        Raises:
            EmbedError: one of its kinds, but not for a text that is only too long.
        """
        try:
            return await self._ask(texts, query)
        except RequestTooLarge as error:
            if len(texts) == 1:
                return await self._shorten(texts[0], query, error)
            size = (len(texts) + 1) // 2
            if isinstance(error, TooManyRows):
                size = max(1, min(error.rows or size, len(texts) - 1))
                self._narrow(size)
            parts = [texts[i : i + size] for i in range(0, len(texts), size)]
            return np.concatenate([await self._fit(part, query) for part in parts])
        except (TextRefused, ModelFailed):
            await self._canary("fails too")
            raise

    async def _shorten(self, text: str, query: bool, error: RequestTooLarge) -> Vectors:
        """Embed as much of the beginning of a text as the model takes.

        Raises:
            TextRefused: it takes none of it.
        """
        for _ in range(CUTS):
            share = error.share if isinstance(error, TooLong) and error.share is not None else 0.5
            text = text[: int(len(text) * share * CUT_MARGIN)]
            if not text.strip():
                break
            try:
                return await self._ask([text], query)
            except RequestTooLarge as again:
                error = again
        refused = TextRefused(str(error), reason=error.reason)
        await self._canary("fails too")
        raise refused from error

    async def _canary(self, fails: str) -> Vectors:
        """Embed a short word, with which nothing is wrong: what fails then is not the texts' fault.

        Raises:
            ModelMisconfigured: the model refuses it.
            ModelUnavailable: the server fails on it.
        """
        try:
            return await self._ask([CANARY], False)
        except (TextRefused, RequestTooLarge) as error:
            raise ModelMisconfigured(
                f"Model {self.model} refuses every input, a short word too: {error}", reason="bad_contract"
            ) from error
        except ModelFailed as error:
            raise ModelUnavailable(f"A short word {fails}: {error}", reason=error.reason) from error

    def _encode(self, texts: Sequence[str], query: bool) -> bytes:
        return json.dumps(self.request(texts, query), ensure_ascii=False, separators=(",", ":")).encode()

    async def _ask(self, texts: Sequence[str], query: bool) -> Vectors:
        reply = await self._api.send("POST", self._path, self._encode(texts, query))
        if not 200 <= reply.status < 300:
            raise translate(
                reply,
                origin=self._api.origin,
                model=self.model,
                key_setting=self.key_setting,
                proven=self._dimension is not None,
                texts=texts,
                secrets=[self._secret],
            )
        try:
            given, tokens = self.read(json.loads(reply.body), len(texts))
            with np.errstate(over="ignore"):  # a number too large for float32 becomes infinite, and is caught below
                vectors = np.asarray(given, np.float32)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise self._bad_reply(f"sent a reply of another shape ({type(error).__name__})") from error
        self._check(vectors, len(texts))
        self.tokens_used += tokens
        if tokens:  # a server that counts nothing says nothing
            count(tokens)
        return vectors

    def _check(self, vectors: Vectors, rows: int) -> None:
        """Prove a reply: nothing in a status of 200 says that it holds one good vector per text."""
        if vectors.ndim != 2 or len(vectors) != rows or vectors.shape[1] < 1:
            raise self._bad_reply(f"gave vectors of shape {list(vectors.shape)} for {rows} texts")
        known = self._dimension
        if known is not None and vectors.shape[1] != known:
            raise ModelMisconfigured(
                f"Model {self.model} now gives vectors of {vectors.shape[1]} dimensions instead of {known}: "
                "serve the former model again, or restart walvec to embed everything with the new one.",
                reason="dimension_changed",
            )
        if not np.isfinite(vectors).all():
            raise self._bad_reply("gave a vector that is not finite")
        if not vectors.any(axis=1).all():
            raise self._bad_reply("gave an all-zero vector")

    def _narrow(self, rows: int) -> None:
        old = self._limits
        self._limits = Limits(min(rows, old.max_rows), old.max_padded_tokens, old.max_tokens, old.concurrency)

    def _bad_reply(self, what: str) -> ModelFailed:
        return ModelFailed(f"{self._api.origin}, model {self.model}, {what}.", reason="bad_reply")

    def _not_started(self) -> ModelUnavailable:
        return ModelUnavailable(
            f"The {self.runtime} runtime for model {self.model} is not started: call start() first.",
            reason="not_started",
        )
