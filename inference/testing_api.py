"""An embedding API over HTTP for tests: real sockets on this machine, a digest for a model, faults on demand.

It answers ``/v1/embeddings`` and ``/v1/chat/completions`` as the OpenAI API does (and TEI, vLLM, Ollama), Azure's
deployment paths, and Cohere's ``/v2/embed``. It is written on bare streams, for a fault is often a reply that no proper
server would send.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inference.hashing import hash_vectors


@dataclass(frozen=True, slots=True)
class Answer:
    """What to send instead of the ordinary reply."""

    status: int = 200
    body: Any = None
    """JSON; a string is sent as it is; None stands for ``{}``."""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    """Hang up in the middle of the body."""
    hang_up: bool = False
    """Hang up without a word."""
    hang: bool = False
    """Never answer."""


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any

    @property
    def texts(self) -> list[str]:
        """The texts of an embedding request, of either API."""
        found: list[str] = self.body.get("input") or self.body.get("texts") or []
        return found

    @property
    def said(self) -> list[tuple[str, str]]:
        """The messages of a chat request, each its role and its text."""
        return [(message["role"], message["content"]) for message in self.body.get("messages") or []]


@dataclass
class FakeApi:
    """An asynchronous context manager; ``url`` is where it listens. Every field may be changed while it runs."""

    dimension: int = 384
    key: str = ""
    """The key it wants; empty: none."""
    max_rows: int = 0
    """Texts a request, 0: any number. More are refused in the words of TEI."""
    max_characters: int = 0
    """Characters a text, 0: any number. More are refused in the words of vLLM, a character counting as a token."""
    serves_base64: bool = True
    info: Any = None
    """What ``/info`` answers, as TEI does; None: 404."""
    models: Any = None
    """What ``/v1/models`` answers; None: 404."""
    refuses: Callable[[str], bool] = lambda text: False
    bend: Callable[[dict[str, Any]], Any] = lambda reply: reply
    """Applied to an ordinary reply before it is sent: to break it."""
    script: deque[Answer | None] = field(default_factory=deque)
    """One entry is taken by each embedding request; None stands for the ordinary reply."""
    always: Answer | None = None
    """What every embedding request gets while it is set."""
    answers: Callable[[str], str | Answer] = lambda text: f"about {text}"
    """What the model says to a text, or what is sent in place of an answer."""
    delay_s: float = 0.0
    running: int = 0
    most_running: int = 0
    """Requests that were answered side by side at most."""
    requests: list[Request] = field(default_factory=list)
    port: int = 0
    connections: int = 0

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def asked(self) -> list[list[str]]:
        """The texts of every embedding request so far."""
        return [request.texts for request in self.requests if request.method == "POST"]

    async def __aenter__(self) -> FakeApi:
        self._open: set[asyncio.StreamWriter] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._open:
            writer.transport.abort()
        await asyncio.sleep(0)

    def drop_connections(self) -> None:
        """Close every open connection, idle ones too."""
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            while (request := await _read(reader)) is not None:
                if request.method not in ("GET", "POST"):  # TLS, most likely
                    await _write(writer, Answer(400, "not HTTP"))
                    break
                self.requests.append(request)
                answer = self._answer(request)
                self.running += 1
                self.most_running = max(self.most_running, self.running)
                try:
                    await asyncio.sleep(3600 if answer.hang else self.delay_s)
                finally:
                    self.running -= 1
                if answer.hang_up or not await _write(writer, answer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    def _answer(self, request: Request) -> Answer:
        path = request.path.partition("?")[0]
        if request.method == "GET":
            found = {"/info": self.info, "/v1/models": self.models}.get(path)
            return Answer(404, {"error": "no such path"}) if found is None else Answer(200, found)
        if self.always is not None:
            return self.always
        if self.script and (scripted := self.script.popleft()) is not None:
            return scripted
        given = {request.headers.get("api-key"), request.headers.get("authorization", "").removeprefix("Bearer ")}
        if self.key and self.key not in given:
            return _complain(401, f"Incorrect API key provided: {given}")
        if path.endswith("/embeddings"):
            return self._refusal(request) or Answer(200, self.bend(self._openai(request)))
        if path.endswith("/chat/completions"):
            return self._chat(request)
        if path.endswith("/v2/embed"):
            return self._refusal(request) or Answer(200, self.bend(self._cohere(request)))
        return _complain(404, f"no such path: {path}")

    def _chat(self, request: Request) -> Answer:
        text = request.said[-1][1]
        if 0 < self.max_characters < len(text):
            words = (
                f"maximum context length is {self.max_characters} tokens. However, you requested {len(text)} tokens."
            )
            return _complain(400, words)
        if self.refuses(text):
            return _complain(400, "'$.messages' is invalid.")
        answer = self.answers(text)
        if isinstance(answer, Answer):
            return answer
        choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
        usage = {"prompt_tokens": len(text), "completion_tokens": len(answer), "total_tokens": len(text) + len(answer)}
        return Answer(200, self.bend({"object": "chat.completion", "choices": [choice], "usage": usage}))

    def _refusal(self, request: Request) -> Answer | None:
        texts, most = request.texts, self.max_characters
        if 0 < self.max_rows < len(texts):
            words = f"batch size {len(texts)} > maximum allowed batch size {self.max_rows}"
            return Answer(422, {"error": words, "error_type": "Validation"})
        if request.body.get("encoding_format") == "base64" and not self.serves_base64:
            return _complain(400, "encoding_format must be float")
        long = [len(text) for text in texts if 0 < most < len(text)]
        if long:
            words = f"This model's maximum context length is {most} tokens. However, you requested {long[0]} tokens."
            return _complain(400, words)
        if any(map(self.refuses, texts)):
            return _complain(400, "'$.input' is invalid.")
        return None

    def _openai(self, request: Request) -> dict[str, Any]:
        vectors = self._vectors(request, request.body.get("dimensions"))
        as_base64 = request.body.get("encoding_format") == "base64"
        data = [
            {
                "object": "embedding",
                "index": i,
                "embedding": b64encode(v.tobytes()).decode() if as_base64 else v.tolist(),
            }
            for i, v in enumerate(vectors)
        ]
        tokens = sum(map(len, request.texts))
        return {"object": "list", "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}

    def _cohere(self, request: Request) -> dict[str, Any]:
        vectors = self._vectors(request, request.body.get("output_dimension"))
        tokens = sum(map(len, request.texts))
        return {"embeddings": {"float": vectors.tolist()}, "meta": {"billed_units": {"input_tokens": tokens}}}

    def _vectors(self, request: Request, dimension: int | None) -> np.ndarray[Any, Any]:
        return hash_vectors(request.texts, dimension or self.dimension).astype("<f4")


def _complain(status: int, message: str) -> Answer:
    return Answer(status, {"error": {"message": message, "type": "invalid_request_error", "code": None}})


async def _read(reader: asyncio.StreamReader) -> Request | None:
    head = await reader.readline()
    if not head:
        return None
    method, path, *_ = [*head.decode("latin-1").split(" ", 2), "", ""]
    if method not in ("GET", "POST"):
        return Request(method, path, {}, {})
    headers = {}
    while (line := (await reader.readline()).decode().strip()) != "":
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, json.loads(body) if body else {})


async def _write(writer: asyncio.StreamWriter, answer: Answer) -> bool:
    """Send an answer; return whether the connection can be used again."""
    body = answer.body if isinstance(answer.body, str) else json.dumps({} if answer.body is None else answer.body)
    content = body.encode()
    headers = {"content-type": "application/json", "content-length": str(len(content)), **answer.headers}
    head = f"HTTP/1.1 {answer.status} Scripted\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(head.encode() + b"\r\n" + (content[: len(content) // 2] if answer.cut else content))
    await writer.drain()
    return not answer.cut
