"""KServe v2 over HTTP/1.1: the same messages as over gRPC, as JSON with raw tensors behind it.

Sources: the Open Inference Protocol's REST specification, and Triton's ``extension_binary_data``: the body is a JSON
object of ``Inference-Header-Content-Length`` bytes followed by the tensors. A server that does not list that extension
(MLServer) gets its tensors as JSON. Statuses become the gRPC ones that Triton gives for the same failure.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
from google.protobuf import json_format
from grpc import StatusCode
from tritonclient.grpc import service_pb2

from inference.address import Access, Address
from inference.kserve import DTYPES, read_bytes
from inference.members import CallFailed

LENGTH = "Inference-Header-Content-Length"
BINARY = "binary_tensor_data"
MOST_CONNECTIONS = 256
IDLE_S = 30.0

STATUSES = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    405: StatusCode.UNIMPLEMENTED,
    408: StatusCode.DEADLINE_EXCEEDED,
    409: StatusCode.ABORTED,
    413: StatusCode.RESOURCE_EXHAUSTED,
    422: StatusCode.INVALID_ARGUMENT,
    429: StatusCode.RESOURCE_EXHAUSTED,
    499: StatusCode.CANCELLED,
    500: StatusCode.INTERNAL,
    501: StatusCode.UNIMPLEMENTED,
    502: StatusCode.UNAVAILABLE,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}


class HttpTransport:
    """A pool of connections to one server, which connects on first use."""

    def __init__(self, address: Address, access: Access) -> None:
        """Prepare the pool.

        Raises:
            ModelMisconfigured: a certificate file has become unreadable.
        """
        self._address = address
        self._access = access
        self._binary: bool | None = None
        self._client = self._open()
        self._calls = 0
        self._retired: list[httpx.AsyncClient] = []

    def _open(self) -> httpx.AsyncClient:
        loopback = self._address.host in ("localhost", "127.0.0.1", "::1")
        return httpx.AsyncClient(
            # Asked for nothing, Triton gzips its vectors, which makes large replies ten times slower.
            headers={"User-Agent": "walvec", "Accept-Encoding": "identity", **self._access.headers},
            verify=self._access.context() if self._address.tls else False,
            timeout=None,  # every call has a deadline as a whole
            limits=httpx.Limits(max_connections=MOST_CONNECTIONS, keepalive_expiry=IDLE_S),
            trust_env=not loopback,  # a proxy is of no use on the way to this machine
        )

    async def call(self, method: str, request: Any, timeout_s: float) -> Any:
        """Do what the method of ``GRPCInferenceService`` does.

        Raises:
            CallFailed: with the status that gRPC would have.
        """
        self._calls += 1
        try:
            async with asyncio.timeout(timeout_s):
                return await self._call(method, request)
        except TimeoutError:
            raise CallFailed(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded") from None
        finally:
            self._calls -= 1
            if not self._calls:
                await self._close_retired()

    async def _call(self, method: str, request: Any) -> Any:
        if method == "ServerLive":
            await self._get("health/live")
            return service_pb2.ServerLiveResponse(live=True)
        if method == "ModelMetadata":
            found = await self._json(f"models/{quote(request.name, safe='')}")
            return _parse(found, service_pb2.ModelMetadataResponse())
        if method == "ModelConfig":
            return await self._config(request.name)
        return await self._infer(request)

    async def _config(self, model: str) -> Any:
        reply = service_pb2.ModelConfigResponse()
        try:
            found = await self._json(f"models/{quote(model, safe='')}/config")
        except CallFailed as error:
            if error.code is not StatusCode.NOT_FOUND or "unknown model" in error.details:
                raise
            # The model has metadata, so it is the path that is unknown: a server without this extension.
            raise CallFailed(StatusCode.UNIMPLEMENTED, error.details) from error
        _parse(found, reply.config)
        return reply

    async def _infer(self, request: Any) -> Any:
        if self._binary is None:
            extensions = (await self._json("")).get("extensions") or []
            self._binary = BINARY in extensions
        content, headers = encode_infer(request, binary=self._binary)
        path = f"models/{quote(request.model_name, safe='')}/infer"
        reply = await self._send("POST", path, content, headers)
        try:
            return decode_infer(reply.headers, reply.content)
        except (ValueError, KeyError, TypeError, AttributeError, json_format.ParseError):
            # Not INVALID_ARGUMENT: the row is not to blame.
            raise CallFailed(StatusCode.INTERNAL, "the reply is not of the KServe v2 protocol") from None

    async def _get(self, path: str) -> httpx.Response:
        return await self._send("GET", path, b"", {})

    async def _json(self, path: str) -> dict[str, Any]:
        reply = await self._get(path)
        try:
            found = json.loads(reply.content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise CallFailed(StatusCode.UNIMPLEMENTED, "the server does not speak the KServe v2 protocol at this URL")
        return found

    async def _send(self, method: str, path: str, content: bytes, headers: Mapping[str, str]) -> httpx.Response:
        url = f"{self._address.url}/v2/{path}".rstrip("/")
        for again in (True, False):
            client = self._client
            try:
                reply = await client.request(method, url, content=content or None, headers=dict(headers))
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
                if again and client is self._client and not _is_no_http(error):
                    continue  # an idle connection that the server closed just now, most often
                self._binary = None
                raise CallFailed(StatusCode.UNAVAILABLE, _words(error)) from error
            except httpx.HTTPError as error:
                self._binary = None
                raise CallFailed(StatusCode.UNAVAILABLE, _words(error)) from error
            except RuntimeError as error:
                if client is self._client and not client.is_closed:
                    raise
                raise CallFailed(StatusCode.UNAVAILABLE, "The connection was closed.") from error
            if reply.status_code == 200:
                return reply
            raise _refusal(reply)
        raise AssertionError("the second try returns or raises")

    async def renew(self) -> None:
        """Use a new pool, with the certificate files as they are now; the old one closes when no call is under way."""
        self._retired.append(self._client)
        self._client, self._binary = self._open(), None

    async def _close_retired(self) -> None:
        while self._retired:
            await self._retired.pop().aclose()

    async def close(self) -> None:
        """Close the connections; calls in flight on them fail."""
        await self._close_retired()
        await self._client.aclose()


def encode_infer(request: Any, *, binary: bool) -> tuple[bytes, dict[str, str]]:
    """Return body and headers for a ``ModelInferRequest`` with raw contents.

    Raises:
        CallFailed: a file is to be sent to a server that takes JSON alone.
    """
    header: dict[str, Any] = {"id": request.id, "inputs": [], "outputs": []}
    if "priority" in request.parameters:
        header["parameters"] = {"priority": request.parameters["priority"].uint64_param}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        described: dict[str, Any] = {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "datatype": tensor.datatype,
        }
        if binary:
            described["parameters"] = {"binary_data_size": len(raw)}
        else:
            described["data"] = _json_data(tensor.datatype, raw)
        header["inputs"].append(described)
    for wanted in request.outputs:
        header["outputs"].append({"name": wanted.name, "parameters": {"binary_data": True}} if binary else
                                 {"name": wanted.name})  # fmt: skip
    head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    if not binary:
        return head, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", LENGTH: str(len(head))}
    return b"".join([head, *request.raw_input_contents]), headers


def _json_data(datatype: str, raw: bytes) -> list[Any]:
    if datatype != "BYTES":
        return list(np.frombuffer(raw, DTYPES[datatype]).tolist())
    try:
        return [element.decode("utf-8") for element in read_bytes(raw)]
    except UnicodeDecodeError:
        raise CallFailed(
            StatusCode.UNIMPLEMENTED, "files cannot be sent to this server over HTTP; use grpc:// in WALVEC_TRITON_URL"
        ) from None


def decode_infer(headers: Mapping[str, str], body: bytes) -> Any:
    """Return the ``ModelInferResponse`` of a reply, every output in raw contents.

    Raises:
        ValueError: the reply is not what the protocol says; KeyError and TypeError likewise.
    """
    size = int(headers.get(LENGTH, len(body)))
    header, at = json.loads(body[:size]), size
    reply = service_pb2.ModelInferResponse(model_name=str(header["model_name"]), id=str(header.get("id") or ""))
    for tensor in header["outputs"]:
        name, datatype, shape = str(tensor["name"]), str(tensor["datatype"]), [int(n) for n in tensor["shape"]]
        length = (tensor.get("parameters") or {}).get("binary_data_size")
        if length is not None:
            raw = body[at : at + length]
            if len(raw) != length:
                raise ValueError("the body ends inside a tensor")
            at += length
        elif datatype in DTYPES:
            raw = np.array(tensor["data"], np.float64).astype(DTYPES[datatype]).tobytes()
        else:
            raw = b""  # an output that nobody asked for
        reply.outputs.add(name=name, datatype=datatype).shape.extend(shape)
        reply.raw_output_contents.append(raw)
    return reply


def _parse(found: dict[str, Any], message: Any) -> Any:
    try:
        return json_format.ParseDict(found, message, ignore_unknown_fields=True)
    except json_format.ParseError:
        raise CallFailed(
            StatusCode.UNIMPLEMENTED, "the server does not speak the KServe v2 protocol at this URL"
        ) from None


def _refusal(reply: httpx.Response) -> CallFailed:
    """Return the failure that a status other than 200 stands for."""
    try:
        found = json.loads(reply.content)
        words = str(found.get("error") or found.get("detail") or found)
    except (ValueError, AttributeError):
        words = reply.text if not reply.text.lstrip().startswith("<") else ""
    status = reply.status_code
    code = STATUSES.get(status, StatusCode.INVALID_ARGUMENT if 400 <= status < 500 else StatusCode.UNKNOWN)
    details = words or f"HTTP {status} {reply.reason_phrase}"
    if status == 413:
        details = f"larger than max: {details}"
    if 300 <= status < 400:
        details = f"HTTP {status}: the server sends its callers elsewhere; give that URL"
        code = StatusCode.UNIMPLEMENTED
    pause = reply.headers.get("retry-after", "")
    return CallFailed(code, details, float(pause) if pause.isdecimal() else None)


def _is_no_http(error: Exception) -> bool:
    return isinstance(error, httpx.RemoteProtocolError) and "illegal" in str(error).lower()


def _words(error: Exception) -> str:
    """Return what happened to a connection, in the words that gRPC would have for it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "CERTIFICATE_VERIFY_FAILED"
        if isinstance(cause, ssl.SSLError):
            return f"Tls handshake failed: {cause.reason}"
        cause = cause.__cause__ or cause.__context__
    if _is_no_http(error):
        return "Failed parsing HTTP/1.1"
    if isinstance(error, httpx.ConnectError):
        return f"failed to connect: {error}"
    if isinstance(error, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError):
        return "Socket closed"
    return f"{type(error).__name__}: {error}"
