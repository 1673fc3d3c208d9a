"""KServe v2 servers for tests: real sockets and messages, a digest for a model, faults on demand.

It imitates what Triton 2.51 was seen to do: names, shapes and max_batch_size in metadata and config, INVALID_ARGUMENT
for a batch over that size, and whichever status a test puts in its script. The server here speaks gRPC;
:mod:`inference.testing_http` has one that serves the same models over HTTP.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from inference.hashing import hash_vectors
from inference.kserve import read_bytes

DTYPES = {"FP32": "<f4", "FP16": "<f2", "FP64": "<f8", "INT64": "<i8", "INT32": "<i4"}
Tensor = tuple[str, str, tuple[int, ...]]
"""Name, datatype, shape."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A status to answer with instead of a reply."""

    code: grpc.StatusCode
    details: str = ""


class Refused(Exception):
    """The server answers with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


@dataclass
class FakeModel:
    """What the server serves, and what has been asked of it. Every field may be changed while it runs.

    With ``inputs`` of token ids it is a network that gives token states: the digest of each id.
    """

    name: str = "fake"
    dimension: int = 384
    max_batch_size: int = 64
    input_shape: tuple[int, ...] = (-1, 1)
    declared_dimension: int = 384
    output_type: str = "FP32"
    has_config: bool = True
    loaded: bool = True
    delay_s: float = 0.0
    typed_contents: bool = False
    """Numbers and not raw bytes: in typed contents over gRPC, as JSON over HTTP."""
    priority_levels: int = 0
    inputs: tuple[Tensor, ...] = ()
    """In place of one text input of ``input_shape``."""
    optional: tuple[str, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    """In place of one output of vectors; the first is the one that is given."""
    script: deque[Fault | None] = field(default_factory=deque)
    """One entry is taken by each inference; None stands for an ordinary answer."""
    refuses: Callable[[bytes], bool] = lambda text: False
    bend: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] = lambda vectors: vectors
    """Applied to the vectors before they are sent: to break them."""
    requests: list[list[bytes]] = field(default_factory=list)
    """The texts of each inference; of token ids, each row's in little-endian int64."""
    seen: list[tuple[str, int, dict[str, str]]] = field(default_factory=list)
    """Of each inference the request's id, its priority (0: none) and its headers."""
    cancelled: int = 0

    @property
    def takes(self) -> tuple[Tensor, ...]:
        """The inputs."""
        return self.inputs or (("TEXT", "BYTES", self.input_shape),)

    @property
    def gives(self) -> tuple[Tensor, ...]:
        """The outputs."""
        return self.outputs or (("EMBEDDING", self.output_type, (-1, self.declared_dimension)),)

    def find(self, name: str) -> None:
        """Raise Refused where the model asked for is not here."""
        if name != self.name or not self.loaded:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")

    def metadata(self) -> Any:
        """Return the ``ModelMetadataResponse``."""
        reply = service_pb2.ModelMetadataResponse(name=self.name, versions=["1"], platform="python")
        for tensors, described in ((self.takes, reply.inputs), (self.gives, reply.outputs)):
            for name, datatype, shape in tensors:
                described.add(name=name, datatype=datatype, shape=shape)
        return reply

    def config(self) -> Any:
        """Return the ``ModelConfig``."""
        config = model_config_pb2.ModelConfig(name=self.name, max_batch_size=self.max_batch_size)
        for name, _, _ in self.takes:
            config.input.add(name=name, optional=name in self.optional)
        if self.priority_levels:
            config.dynamic_batching.priority_levels = self.priority_levels
        return config

    async def infer(self, request: Any, headers: dict[str, str]) -> tuple[Tensor, np.ndarray[Any, Any]]:
        """Answer with the next fault of the script, or with numbers for the first output."""
        self.find(request.model_name)
        rows = self._rows(request)
        self.requests.append(rows)
        priority = request.parameters["priority"].uint64_param if "priority" in request.parameters else 0
        self.seen.append((request.id, priority, headers))
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.script and (fault := self.script.popleft()) is not None:
            raise Refused(fault.code, fault.details)
        if 0 < self.max_batch_size < len(rows):
            limit = f"inference request batch-size must be <= {self.max_batch_size} for '{self.name}'"
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, limit)
        if any(map(self.refuses, rows)):
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "text refused")
        return self.gives[0], self.bend(self._numbers(rows))

    def _rows(self, request: Any) -> list[bytes]:
        sent = {t.name: (t, raw) for t, raw in zip(request.inputs, request.raw_input_contents, strict=True)}
        if missing := {name for name, _, _ in self.takes} - set(self.optional) - set(sent):
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"expected inputs {sorted(missing)}")
        tensor, raw = sent[request.inputs[0].name]
        if tensor.datatype == "BYTES":
            rows = read_bytes(raw)
        else:
            ids = np.frombuffer(raw, DTYPES[tensor.datatype]).astype("<i8").reshape(tuple(tensor.shape))
            rows = [row.tobytes() for row in ids]
        if len(rows) != tensor.shape[0]:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"unexpected shape for input '{tensor.name}'")
        return rows

    def _numbers(self, rows: list[bytes]) -> np.ndarray[Any, Any]:
        if self.takes[0][1] == "BYTES":
            return hash_vectors([row.decode("utf-8", "surrogateescape") for row in rows], self.dimension)
        ids = np.array([np.frombuffer(row, "<i8") for row in rows])
        words, where = np.unique(ids, return_inverse=True)
        return hash_vectors([str(word) for word in words], self.dimension)[where.reshape(ids.shape)]


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # generated, untyped
    """A server over gRPC: an asynchronous context manager; ``url`` is where it listens."""

    def __init__(
        self,
        model: FakeModel | None = None,
        *,
        port: int = 0,
        tls: tuple[bytes, bytes] | None = None,
        clients: bytes | None = None,
    ) -> None:
        """Serve ``model`` on a port (0: a free one).

        Args:
            model: what is served.
            port: where; 0: a free one.
            tls: key and certificate (PEM), for TLS.
            clients: the authority (PEM) of the certificates that clients must show.
        """
        self.model = model or FakeModel()
        self.port = port
        self._tls = tls
        self._clients = clients
        self._server: Any = None

    @property
    def url(self) -> str:
        """Return the URL to give to walvec."""
        return f"{'grpcs' if self._tls else 'grpc'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> FakeTriton:
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._server = grpc.aio.server(options=[*unlimited, ("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        address = f"127.0.0.1:{self.port}"
        if self._tls is None:
            self.port = self._server.add_insecure_port(address)
        else:
            credentials = grpc.ssl_server_credentials([self._tls], self._clients, self._clients is not None)
            self.port = self._server.add_secure_port(address, credentials)
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    async def ServerLive(self, request: Any, context: Any) -> Any:
        """Say yes."""
        return service_pb2.ServerLiveResponse(live=True)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        """Describe the model."""
        await self._find(request.name, context)
        return self.model.metadata()

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        """Give the configuration, or UNIMPLEMENTED as servers without the extension do."""
        await self._find(request.name, context)
        if not self.model.has_config:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        return service_pb2.ModelConfigResponse(config=self.model.config())

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """Answer as the model does."""
        try:
            (name, datatype, _), numbers = await self.model.infer(request, dict(context.invocation_metadata()))
        except Refused as refusal:
            await context.abort(refusal.code, refusal.details)
            raise
        reply = service_pb2.ModelInferResponse(model_name=self.model.name, model_version="1", id=request.id)
        output = reply.outputs.add(name=name, datatype=datatype, shape=numbers.shape)
        if self.model.typed_contents:
            output.contents.fp32_contents.extend(numbers.ravel().tolist())
        else:
            reply.raw_output_contents.append(numbers.astype(DTYPES[datatype]).tobytes())
        return reply

    async def _find(self, name: str, context: Any) -> None:
        try:
            self.model.find(name)
        except Refused as refusal:
            await context.abort(refusal.code, refusal.details)


def json_tensors(found: dict[str, Any], rest: bytes) -> Any:
    """Return the ``ModelInferRequest`` of an HTTP body: its JSON, and the bytes behind it.

    Raises:
        ValueError: a tensor is cut short, or bytes are left over.
    """
    request = service_pb2.ModelInferRequest(id=found.get("id", ""))
    if "priority" in found.get("parameters", {}):
        request.parameters["priority"].uint64_param = found["parameters"]["priority"]
    for tensor in found["inputs"]:
        request.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        if "data" in tensor:
            raw = _packed(tensor["datatype"], tensor["data"])
        else:
            size = tensor["parameters"]["binary_data_size"]
            raw, rest = rest[:size], rest[size:]
            if len(raw) != size:
                raise ValueError("the body ends inside a tensor")
        request.raw_input_contents.append(raw)
    if rest:
        raise ValueError("bytes are left over")
    return request


def _packed(datatype: str, data: list[Any]) -> bytes:
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in data)
    return np.array(data, DTYPES[datatype]).tobytes()


def json_reply(request: Any, wanted: list[dict[str, Any]], output: Tensor, numbers: np.ndarray[Any, Any]) -> Any:
    """Return the JSON of an inference's reply and the bytes behind it (empty: all is in the JSON)."""
    name, datatype, _ = output
    binary = any(item["name"] == name and item.get("parameters", {}).get("binary_data") for item in wanted)
    raw = numbers.astype(DTYPES[datatype]).tobytes() if binary else b""
    tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(numbers.shape)}
    tensor |= {"parameters": {"binary_data_size": len(raw)}} if binary else {"data": numbers.ravel().tolist()}
    head = {"model_name": request.model_name, "model_version": "1", "id": request.id, "outputs": [tensor]}
    return json.dumps(head).encode(), raw
