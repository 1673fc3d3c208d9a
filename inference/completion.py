"""Completions: a text in, an answer in words out, by any server that has the chat call of the OpenAI API.

``POST …/chat/completions`` with a system prompt and the text, one request a row, the rows of a batch side by side. An
answer that is none (cut off, filtered, refused, empty) is a row's failure and never stands in for one. Where one row
of a batch fails, the answers of the others are kept until they are asked for again: they have been paid for.
Source: the API reference of OpenAI ("Create chat completion"), and Azure's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.api_errors import TooLong, translate
from inference.embedder import Limits
from inference.errors import EmbedError, ModelFailed, ModelMisconfigured, ModelUnavailable, RequestTooLarge, TextRefused
from inference.http_api import HttpApi
from inference.kept import Kept, worst
from inference.openai import OPENAI_HOST, OPENAI_URL, credentials, parse_url
from inference.quoting import quotable
from inference.tokens import count

Answers = NDArray[np.object_]
"""Strings, shape ``(texts,)``."""

CALL = "chat/completions"
MAX_TOKENS = 128_000
"""What the models read at most that this is made for; servers of one's own say themselves when a text is too long."""
MAX_CHARACTERS = 4 * MAX_TOKENS
MAX_ROWS = 1000
CUTS = 8
MOST_ANSWER_BYTES = 1 << 20
CONCURRENCY = 4
GREETING = ("Answer with the one word: yes.", "Are you there?")
"""What is asked at the start, to prove address, key and model."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said, and the tokens that the server counted for question and answer."""

    text: str
    tokens: int


class Completer:
    """A model behind a chat call: an :class:`inference.embedder.Embedder` but for what it gives, which is words."""

    runtime = "openai"
    dimension = 0
    """Words have none."""

    def __init__(
        self,
        model: str,
        url: str = "",
        key: str = "",
        *,
        system_prompt: str = "",
        timeout_s: float = 120.0,
        at_once: int = 8,
    ) -> None:
        """Name model and server; nothing is reached yet.

        Args:
            model: its name there; on Azure the deployment's, unless the URL names that.
            url: base URL, as for embeddings (:func:`inference.openai.parse_url`); by default OpenAI's own.
            key: API key, or ``Bearer …`` for a token of Microsoft Entra.
            system_prompt: what the model is told before every text; empty: nothing.
            timeout_s: deadline of one request, in seconds.
            at_once: requests in flight at most, over all batches.

        Raises:
            ModelMisconfigured: the URL is none, it is OpenAI's and there is no key, or the key is no key.
        """
        key = key.strip()
        if not (key.isascii() and key.isprintable()):
            raise ModelMisconfigured("The openai runtime's key holds characters that no key has.", reason="bad_key")
        base = (url or OPENAI_URL).strip()
        address, mark, query = base.partition("?")
        endpoint = parse_url(address.rstrip("/").removesuffix(f"/{CALL}") + mark + query, model.removeprefix("openai/"))
        hosted = endpoint.is_azure or endpoint.host == OPENAI_HOST
        if hosted and not key:
            raise ModelMisconfigured(
                f"{endpoint.host} needs a key: set api_token in the job's runtime_params, or WALVEC_OPENAI_KEY.",
                reason="unauthenticated",
            )
        self.model = model
        self.tokens_used = 0
        """Tokens that the server has counted so far, of texts and answers."""
        self.limits = Limits(MAX_ROWS, MAX_ROWS * MAX_TOKENS, MAX_TOKENS, CONCURRENCY)
        self._name = model.removeprefix("openai/") if hosted else model
        _, mark, query = endpoint.path.partition("?")
        self._path = endpoint.beside(CALL) + mark + query
        self._api = HttpApi(
            endpoint.origin,
            timeout_s=timeout_s,
            headers={"Content-Type": "application/json", **credentials(key, endpoint.is_azure)},
        )
        self._secret = key.removeprefix("Bearer ")
        self._system_prompt = system_prompt
        self._turns = asyncio.Semaphore(at_once)
        self._kept: Kept[Answer] = Kept(lambda answer: len(answer.text) * 4)
        self._proven = False

    async def start(self) -> None:
        """Ask one short question: that proves address, key and model.

        Raises:
            ModelUnavailable: not now.
            ModelMisconfigured: address, key or model are wrong, or the model answers nothing.
        """
        self._api.open()
        await self.probe()
        self._proven = True

    async def probe(self) -> None:
        """Ask one short question, without the system prompt: that may call for things which no short text has.

        Raises:
            ModelUnavailable: not now.
            ModelMisconfigured: address, key or model are wrong, or the model answers nothing.
        """
        try:
            await self._ask(*GREETING)
        except (TextRefused, RequestTooLarge) as error:
            raise ModelMisconfigured(
                f"Model {self.model} refuses even a short question: {error}", reason="bad_contract"
            ) from error
        except ModelFailed as error:
            raise ModelUnavailable(f"A short question fails: {error}", reason=error.reason) from error

    async def answer(self, texts: Sequence[str]) -> Answers:
        """Return an answer to every text, in order.

        Raises:
            TextRefused: the model gives no answer to one of them.
            EmbedError: another of its kinds. The answers that came are kept for the next try.
        """
        outcomes = await asyncio.gather(*(self._once(text) for text in texts), return_exceptions=True)
        answers: list[Answer] = []
        failures: list[EmbedError] = []
        for outcome in outcomes:
            if isinstance(outcome, EmbedError):
                failures.append(outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                answers.append(outcome)
        if failures:
            raise worst(failures)
        self._kept.drop(texts)
        count(sum(answer.tokens for answer in answers))
        found: Answers = np.empty(len(texts), np.object_)
        found[:] = [answer.text for answer in answers]
        return found

    async def embed(self, texts: Sequence[str], *, query: bool = False, bulk: bool = False) -> Any:
        """Return :meth:`answer`; the API knows neither questions nor priorities."""
        return await self.answer(texts)

    async def close(self) -> None:
        """Close the connections; requests in flight fail as unavailable."""
        await self._api.close()

    async def _once(self, text: str) -> Answer:
        """Return the answer to a text, an earlier one where there is one."""
        kept = self._kept.get(text)
        if kept is not None:
            return kept
        async with self._turns:
            answer = await self._fit(text)
        self.tokens_used += answer.tokens
        self._kept.keep(text, answer)
        return answer

    async def _fit(self, text: str) -> Answer:
        """Ask with as much of the beginning of a text as the model reads.

        Raises:
            TextRefused: it takes none of it.
            EmbedError: another of its kinds.
        """
        part = text.encode("utf-8", "replace").decode()[:MAX_CHARACTERS]
        for _ in range(CUTS):
            try:
                return await self._ask(self._system_prompt, part)
            except RequestTooLarge as error:
                share = error.share if isinstance(error, TooLong) and error.share is not None else 0.5
                part, last = part[: int(len(part) * share * 0.95)], error
                if not part.strip():
                    break
        raise TextRefused(str(last), reason=last.reason) from last

    async def _ask(self, system_prompt: str, text: str) -> Answer:
        messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
        body = {"model": self._name, "messages": [*messages, {"role": "user", "content": text}]}
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        reply = await self._api.send("POST", self._path, content)
        if not 200 <= reply.status < 300:
            raise translate(
                reply,
                origin=self._api.origin,
                model=self.model,
                key_setting="api_token or WALVEC_OPENAI_KEY",
                proven=self._proven,
                texts=[text, system_prompt],
                secrets=[self._secret],
            )
        try:
            return self._read(json.loads(reply.body), text)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ModelFailed(
                f"{self._who} sent a reply of another shape ({type(error).__name__}).", reason="bad_reply"
            ) from error

    def _read(self, reply: dict[str, Any], text: str) -> Answer:
        """Return the answer of a reply; a KeyError or its like where it is not shaped as one.

        Raises:
            TextRefused: it holds none, or half of one.
        """
        choice = reply["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        if message.get("refusal"):
            said = quotable(str(message["refusal"]), [text, self._system_prompt], [self._secret])
            raise TextRefused(f"{self._who} declines to answer ({said}).", reason="declined")
        if reason == "content_filter":
            raise TextRefused(f"{self._who} gives no answer: its content filter keeps it back.", reason="filtered")
        if reason == "length":
            raise TextRefused(f"{self._who} was cut off before its answer was complete.", reason="answer_cut")
        said = message["content"]
        if not isinstance(said, str):
            raise TypeError("content")
        if not said.strip() and reason != "stop":  # a model that means it says that it is done
            raise TextRefused(f"{self._who} gave an empty answer.", reason="no_answer")
        if len(said) > MOST_ANSWER_BYTES:
            raise TextRefused(f"{self._who} gave an answer of more than 1 MiB.", reason="answer_too_long")
        usage = reply.get("usage") or {}
        # PostgreSQL's text holds every character but this one.
        return Answer(said.replace("\0", ""), int(usage.get("total_tokens") or 0))

    @property
    def _who(self) -> str:
        return f"{self._api.origin}, model {self.model},"
