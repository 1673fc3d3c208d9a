"""KServe v2 (Open Inference Protocol) inference messages: a request, and a reply that is believed only when it fits.

Pure: messages in, messages or NumPy out. Protocol: ``grpc_predict_v2.proto`` of the Open Inference Protocol, with raw
contents as Triton's docs define them (``extension_binary_data``): little-endian, row-major, and a BYTES element is its
length as uint32 followed by the bytes. HTTP uses the same messages (:mod:`inference.kserve_http`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from inference.contract import Input, ModelContract
from inference.embedder import Vectors
from inference.errors import ModelFailed, ModelMisconfigured
from inference.pooling import Ids, pool, unit

DTYPES = {"FP32": "<f4", "FP16": "<f2", "FP64": "<f8", "INT64": "<i8", "INT32": "<i4"}
CONTENTS = {"FP32": "fp32_contents", "FP64": "fp64_contents"}


def encode_texts(texts: Sequence[str]) -> list[bytes]:
    """Return the texts in UTF-8; what UTF-8 cannot spell (a lone surrogate) travels as a question mark."""
    return [text.encode("utf-8", "replace") for text in texts]


def portions(encoded: Sequence[bytes], most_bytes: int) -> list[Sequence[bytes]]:
    """Cut a request's texts, in order, into runs of at most ``most_bytes``, or of one text that is larger alone."""
    if sum(map(len, encoded)) <= most_bytes:
        return [encoded]
    runs: list[Sequence[bytes]] = []
    start, size = 0, 0
    for index, text in enumerate(encoded):
        if size + len(text) > most_bytes and index > start:
            runs.append(encoded[start:index])
            start, size = index, 0
        size += len(text)
    return [*runs, encoded[start:]]


def bytes_request(model: str, contract: ModelContract, tensor: Input, elements: Sequence[bytes]) -> Any:
    """Return the ``ModelInferRequest`` for texts in UTF-8, or for files."""
    request = _request(model, contract)
    shape = [len(elements), 1][: tensor.rank]
    raw = b"".join(struct.pack("<I", len(element)) + element for element in elements)
    _add(request, tensor, shape, raw)
    return request


def tokens_request(model: str, contract: ModelContract, ids: Ids, mask: Ids) -> Any:
    """Return the ``ModelInferRequest`` for token ids, shape ``(rows, tokens)``."""
    request = _request(model, contract)
    arrays = {"ids": ids, "mask": mask, "types": np.zeros_like(ids)}
    for tensor in contract.inputs:
        _add(request, tensor, ids.shape, arrays[tensor.role].astype(DTYPES[tensor.datatype], copy=False).tobytes())
    return request


def mark(request: Any, contract: ModelContract, id: str, *, bulk: bool) -> None:
    """Give a request its id, and its priority where the server has priorities: 1 is the highest."""
    request.id = id
    if contract.priority_levels > 1:
        request.parameters["priority"].uint64_param = contract.priority_levels if bulk else 1


def _request(model: str, contract: ModelContract) -> Any:
    request = service_pb2.ModelInferRequest(model_name=model)
    request.outputs.add(name=contract.output)
    return request


def _add(request: Any, tensor: Input, shape: Sequence[int], raw: bytes) -> None:
    request.inputs.add(name=tensor.name, datatype=tensor.datatype).shape.extend(shape)
    request.raw_input_contents.append(raw)


def read_bytes(raw: bytes) -> list[bytes]:
    """Return the elements of a BYTES tensor.

    Raises:
        ValueError: it is cut short.
    """
    elements, at = [], 0
    while at < len(raw):
        if at + 4 > len(raw) or at + 4 + (size := struct.unpack_from("<I", raw, at)[0]) > len(raw):
            raise ValueError("a BYTES tensor ends inside an element")
        elements.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    return elements


def read_vectors(
    reply: Any,
    contract: ModelContract,
    rows: int,
    dimension: int | None,
    *,
    mask: Ids | None = None,
    normalize: bool = False,
) -> Vectors:
    """Return the reply's vectors, shape ``(rows, D)``, a copy of their own.

    A server answers OK also with the wrong number of rows or with NaN, so nothing is taken on trust.

    Args:
        reply: ``ModelInferResponse``.
        contract: what was asked of the model.
        rows: how many texts were sent.
        dimension: the width known so far, None for the first reply.
        mask: which tokens are real, where token ids were sent.
        normalize: scale each vector to norm 1.

    Raises:
        ModelFailed: no such output, another number of rows, bytes that do not fit, NaN, infinity or an all-zero vector.
        ModelMisconfigured: the model now gives another dimension.
    """
    index, tensor = _find_output(reply, contract)
    shape = list(tensor.shape)
    if contract.pooling == "none" and len(shape) == 3 and shape[1] == 1:
        del shape[1]
    if len(shape) != (2 if contract.pooling == "none" else 3) or shape[0] != rows or min(shape) < 1:
        raise _bad_reply(reply, f"gave output of shape {shape} for {rows} texts")
    if mask is not None and len(shape) == 3 and shape[1] != mask.shape[1]:
        raise _bad_reply(reply, f"gave {shape[1]} token states a text for {mask.shape[1]} tokens")
    if dimension is not None and shape[-1] != dimension:
        raise ModelMisconfigured(
            f"Model {reply.model_name} now gives vectors of {shape[-1]} dimensions instead of {dimension}: "
            "serve the former model again, or restart walvec to embed everything with the new one.",
            reason="dimension_changed",
        )
    numbers = _floats(reply, index, tensor)
    if numbers.size != np.prod(shape):
        raise _bad_reply(reply, f"gave {numbers.size} numbers for shape {shape}")
    numbers = numbers.reshape(shape)
    if contract.pooling == "none":
        vectors: Vectors = numbers.astype(np.float32)
    else:
        whole = np.ones(shape[:2], np.int64) if mask is None else mask
        vectors = pool(numbers, whole, contract.pooling)
    if not np.isfinite(vectors).all():
        raise _bad_reply(reply, "gave a vector that is not finite")
    if not vectors.any(axis=1).all():
        raise _bad_reply(reply, "gave an all-zero vector")
    return unit(vectors) if normalize else vectors


def _find_output(reply: Any, contract: ModelContract) -> tuple[int, Any]:
    for index, tensor in enumerate(reply.outputs):
        if tensor.name == contract.output and tensor.datatype.startswith("FP") and tensor.datatype in DTYPES:
            return index, tensor
    raise _bad_reply(reply, f"left out its output {contract.output}")


def _floats(reply: Any, index: int, tensor: Any) -> np.ndarray[Any, Any]:
    """Read the numbers from raw contents (Triton) or typed contents (other servers of the protocol)."""
    if index < len(reply.raw_output_contents):
        raw = reply.raw_output_contents[index]
        kind = np.dtype(DTYPES[tensor.datatype])
        if len(raw) % kind.itemsize:
            raise _bad_reply(reply, "gave a tensor cut short")
        return np.frombuffer(raw, kind)
    return np.array(getattr(tensor.contents, CONTENTS.get(tensor.datatype, "fp32_contents")), np.float64)


def _bad_reply(reply: Any, what: str) -> ModelFailed:
    return ModelFailed(f"Model {reply.model_name} {what}: look into the model's code and log.", reason="bad_reply")
