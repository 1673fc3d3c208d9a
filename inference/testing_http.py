"""The test server of :mod:`inference.testing` over HTTP/1.1, small enough to drop connections at will."""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import Any

from google.protobuf import json_format
from grpc import StatusCode

from inference.testing import FakeModel, Refused, json_reply, json_tensors

STATUSES = {
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.UNAUTHENTICATED: 401,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.NOT_FOUND: 404,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.UNAVAILABLE: 503,
}
"""What Triton answers over HTTP for a failure; all else is 500."""


class FakeTritonHttp:
    """A server over HTTP: an asynchronous context manager; ``url`` is where it listens.

    ``binary`` says whether it has Triton's extension for tensors outside JSON, ``prefix`` is what stands before
    ``/v2``, ``drops`` how many of the next requests end with their connection closed and no reply, and ``retry_after``
    goes with every refusal.
    """

    def __init__(
        self,
        model: FakeModel | None = None,
        *,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        binary: bool = True,
        prefix: str = "",
    ) -> None:
        """Serve ``model`` on a port (0: a free one)."""
        self.model = model or FakeModel()
        self.port = port
        self.binary = binary
        self.prefix = prefix
        self.drops = 0
        self.retry_after = ""
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """Return the URL to give to walvec."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}{self.prefix}"

    async def __aenter__(self) -> FakeTritonHttp:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self._open.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        start = await reader.readexactly(4)
        if start not in (b"GET ", b"POST"):  # a TLS handshake, or gRPC
            writer.write(b"HTTP/1.1 400 X\r\nContent-Length: 0\r\n\r\n")
            return False
        head = (start + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        _, path, _ = head[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:]) if name}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if self.drops:
            self.drops -= 1
            return False
        extra: dict[str, Any] = {}
        try:
            status, first, rest = await self._answer(path, headers, body)
        except Refused as refusal:
            status, rest = STATUSES.get(refusal.code, 500), b""
            first = json.dumps({"error": refusal.details}).encode()
            extra = {"Retry-After": self.retry_after} if self.retry_after else {}
        if rest:
            extra["Inference-Header-Content-Length"] = len(first)
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(first) + len(rest)}"]
        lines += [f"{name}: {value}" for name, value in extra.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + first + rest)
        await writer.drain()
        return True

    async def _answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes, bytes]:
        model, base = self.model, f"{self.prefix}/v2"
        if path == base:
            return 200, json.dumps({"name": "fake", "extensions": ["binary_tensor_data"] * self.binary}).encode(), b""
        if path == f"{base}/health/live":
            return 200, b"", b""
        if not path.startswith(f"{base}/models/"):
            raise Refused(StatusCode.NOT_FOUND, "Not Found")
        name, _, what = path.removeprefix(f"{base}/models/").partition("/")
        model.find(name)
        if what == "":
            return 200, json_format.MessageToJson(model.metadata(), preserving_proto_field_name=True).encode(), b""
        if what == "config" and model.has_config:
            return 200, json_format.MessageToJson(model.config(), preserving_proto_field_name=True).encode(), b""
        if what != "infer":
            raise Refused(StatusCode.NOT_FOUND, "Not Found")
        return await self._infer(name, headers, body)

    async def _infer(self, name: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes, bytes]:
        size = int(headers.get("inference-header-content-length", len(body)))
        if not self.binary and size != len(body):
            return 422, b'{"detail":"Input should be a valid dictionary"}', b""
        found = json.loads(body[:size])
        request = json_tensors(found, body[size:])
        request.model_name = name
        output, numbers = await self.model.infer(request, headers)
        wanted = [] if self.model.typed_contents or not self.binary else found["outputs"]
        return 200, *json_reply(request, wanted, output, numbers)
