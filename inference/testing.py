"""A KServe v2 gRPC server for tests: real sockets and messages, a digest for a model, faults on demand.

It imitates what Triton 2.51 was seen to do: names, shapes and max_batch_size in metadata and config, INVALID_ARGUMENT
for a batch over that size, and whichever status a test puts in its script.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from inference.hashing import hash_vectors
from inference.kserve import read_texts


@dataclass(frozen=True, slots=True)
class Fault:
    """A status to answer with instead of a reply."""

    code: grpc.StatusCode
    details: str = ""


@dataclass
class FakeModel:
    """What the server serves, and what has been asked of it. Every field may be changed while it runs."""

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
    script: deque[Fault | None] = field(default_factory=deque)
    """One entry is taken by each inference; None stands for an ordinary answer."""
    refuses: Callable[[bytes], bool] = lambda text: False
    bend: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] = lambda vectors: vectors
    """Applied to the vectors before they are sent: to break them."""
    requests: list[list[bytes]] = field(default_factory=list)
    cancelled: int = 0


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # generated, untyped
    """An asynchronous context manager; ``url`` is where it listens."""

    def __init__(
        self, model: FakeModel | None = None, *, port: int = 0, tls: tuple[bytes, bytes] | None = None
    ) -> None:
        """Serve ``model`` on a port (0: a free one), with TLS where key and certificate (PEM) are given."""
        self.model = model or FakeModel()
        self.port = port
        self._tls = tls
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
            self.port = self._server.add_secure_port(address, grpc.ssl_server_credentials([self._tls]))
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
        model = self.model
        reply = service_pb2.ModelMetadataResponse(name=model.name, versions=["1"], platform="python")
        reply.inputs.add(name="TEXT", datatype="BYTES", shape=model.input_shape)
        reply.outputs.add(name="EMBEDDING", datatype=model.output_type, shape=[-1, model.declared_dimension])
        return reply

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        """Give the configuration, or UNIMPLEMENTED as servers without the extension do."""
        await self._find(request.name, context)
        if not self.model.has_config:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        config = model_config_pb2.ModelConfig(name=self.model.name, max_batch_size=self.model.max_batch_size)
        return service_pb2.ModelConfigResponse(config=config)

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """Answer with the next fault of the script, or with vectors."""
        model = self.model
        await self._find(request.model_name, context)
        texts = read_texts(request)
        model.requests.append(texts)
        try:
            await asyncio.sleep(model.delay_s)
        except asyncio.CancelledError:
            model.cancelled += 1
            raise
        if model.script and (fault := model.script.popleft()) is not None:
            await context.abort(fault.code, fault.details)
        if 0 < model.max_batch_size < len(texts):
            limit = f"inference request batch-size must be <= {model.max_batch_size} for '{model.name}'"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, limit)
        if any(map(model.refuses, texts)):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "text refused")
        return self._answer(texts)

    def _answer(self, texts: list[bytes]) -> Any:
        model = self.model
        vectors = model.bend(hash_vectors([text.decode() for text in texts], model.dimension))
        reply = service_pb2.ModelInferResponse(model_name=model.name, model_version="1")
        output = reply.outputs.add(name="EMBEDDING", datatype=model.output_type, shape=vectors.shape)
        if model.typed_contents:
            output.contents.fp32_contents.extend(vectors.ravel().tolist())
        else:
            kind = {"FP32": "<f4", "FP16": "<f2", "FP64": "<f8"}[model.output_type]
            reply.raw_output_contents.append(vectors.astype(kind).tobytes())
        return reply

    async def _find(self, name: str, context: Any) -> None:
        if name != self.model.name or not self.model.loaded:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")
