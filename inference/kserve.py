"""KServe v2 (Open Inference Protocol) messages for a text-to-vector model: what it asks for, a request, a reply.

The model takes one BYTES tensor of texts, shape ``[N, 1]`` or ``[N]``, and gives one float tensor ``[N, D]``. Names
are the model's own. Pure: messages in, messages or NumPy out. Protocol: ``grpc_predict_v2.proto`` of the Open Inference
Protocol, with raw contents as Triton's docs define them (``extension_binary_data``): little-endian, row-major, and a
BYTES element is its length as uint32 followed by the bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from inference.embedder import Vectors
from inference.errors import ModelFailed, ModelMisconfigured

MOST_ROWS = 256
"""Rows asked for at once of a model that sets no bound itself."""

FLOATS = {"FP32": "<f4", "FP16": "<f2", "FP64": "<f8"}
CONTENTS = {"FP32": "fp32_contents", "FP64": "fp64_contents"}
USUAL_OUTPUTS = ("sentence_embedding", "sentence_embeddings", "embedding", "embeddings")


@dataclass(frozen=True, slots=True)
class ModelContract:
    """How to ask a model. ``dimension`` is None where the model does not declare it."""

    input: str
    input_rank: int
    output: str
    output_type: str
    dimension: int | None
    max_rows: int


def read_contract(metadata: Any, config: Any | None) -> ModelContract:
    """Find the text input and the vector output.

    Args:
        metadata: ``ModelMetadataResponse``.
        config: ``ModelConfig``, or None from servers without that extension.

    Raises:
        ModelMisconfigured: the model is not a text-to-vector model.
    """
    optional = {tensor.name for tensor in config.input if tensor.optional} if config is not None else set()
    text = _text_input(metadata, optional)
    vector = _vector_output(metadata)
    rows = MOST_ROWS
    if config is not None and config.max_batch_size > 0:
        rows = min(rows, config.max_batch_size)
    elif text.shape[0] > 0:
        rows = min(rows, text.shape[0])
    if text.shape[0] > 1:
        raise _unfit(metadata.name, f"takes exactly {text.shape[0]} texts, not any number")
    return ModelContract(
        input=text.name,
        input_rank=len(text.shape),
        output=vector.name,
        output_type=vector.datatype,
        dimension=vector.shape[1] if vector.shape[1] > 0 else None,
        max_rows=rows,
    )


def _text_input(metadata: Any, optional: set[str]) -> Any:
    asked = [tensor for tensor in metadata.inputs if tensor.name not in optional] or list(metadata.inputs)
    if len(asked) != 1 or asked[0].datatype != "BYTES":
        wants = ", ".join(f"{tensor.name} {tensor.datatype}" for tensor in asked) or "nothing"
        raise _unfit(metadata.name, f"wants {wants} where one BYTES input of texts is needed")
    (text,) = asked
    if len(text.shape) not in (1, 2) or (len(text.shape) == 2 and text.shape[1] not in (1, -1)):
        raise _unfit(metadata.name, f"takes input {text.name} of shape {list(text.shape)}, not [-1, 1] or [-1]")
    return text


def _vector_output(metadata: Any) -> Any:
    fit = [tensor for tensor in metadata.outputs if tensor.datatype in FLOATS and len(tensor.shape) == 2]
    usual = [tensor for tensor in fit if tensor.name.lower() in USUAL_OUTPUTS]
    if len(fit) != 1 and len(usual) != 1:
        gives = ", ".join(f"{tensor.name} {tensor.datatype} {list(tensor.shape)}" for tensor in metadata.outputs)
        raise _unfit(metadata.name, f"gives {gives or 'nothing'} where one float output of shape [-1, D] is needed")
    return (usual if len(usual) == 1 else fit)[0]


def _unfit(model: str, what: str) -> ModelMisconfigured:
    return ModelMisconfigured(
        f"Model {model} cannot embed texts: it {what}; serve a model or an ensemble that turns text into vectors.",
        reason="bad_contract",
    )


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


def infer_request(model: str, contract: ModelContract, texts: Sequence[bytes]) -> Any:
    """Return the ``ModelInferRequest`` for texts in UTF-8."""
    request = service_pb2.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name=contract.input, datatype="BYTES")
    tensor.shape.extend([len(texts), 1][: contract.input_rank])
    request.outputs.add(name=contract.output)
    request.raw_input_contents.append(b"".join(struct.pack("<I", len(text)) + text for text in texts))
    return request


def read_texts(request: Any) -> list[bytes]:
    """Return the BYTES elements of a request: what a server sees.

    Raises:
        ValueError: the tensor is cut short.
    """
    raw = request.raw_input_contents[0]
    texts, at = [], 0
    while at < len(raw):
        if at + 4 > len(raw) or at + 4 + (size := struct.unpack_from("<I", raw, at)[0]) > len(raw):
            raise ValueError("a BYTES tensor ends inside an element")
        texts.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    return texts


def read_vectors(reply: Any, contract: ModelContract, rows: int, dimension: int | None) -> Vectors:
    """Return the reply's vectors, shape ``(rows, D)``, a copy of their own.

    A server answers OK also with the wrong number of rows or with NaN, so nothing is taken on trust.

    Args:
        reply: ``ModelInferResponse``.
        contract: what was asked of the model.
        rows: how many texts were sent.
        dimension: the width known so far, None for the first reply.

    Raises:
        ModelFailed: no such output, another number of rows, bytes that do not fit, NaN, infinity or an all-zero vector.
        ModelMisconfigured: the model now gives another dimension.
    """
    index, tensor = _find_output(reply, contract)
    shape = tuple(tensor.shape)
    if len(shape) != 2 or shape[0] != rows or shape[1] < 1:
        raise _bad_reply(reply, f"gave output of shape {list(shape)} for {rows} texts")
    if dimension is not None and shape[1] != dimension:
        raise ModelMisconfigured(
            f"Model {reply.model_name} now gives vectors of {shape[1]} dimensions instead of {dimension}: "
            "serve the former model again, or restart walvec to embed everything with the new one.",
            reason="dimension_changed",
        )
    vectors = _floats(reply, index, tensor).astype(np.float32)
    if vectors.size != rows * shape[1]:
        raise _bad_reply(reply, f"gave {vectors.size} numbers for shape {list(shape)}")
    vectors = vectors.reshape(shape)
    if not np.isfinite(vectors).all():
        raise _bad_reply(reply, "gave a vector that is not finite")
    if not vectors.any(axis=1).all():
        raise _bad_reply(reply, "gave an all-zero vector")
    return vectors


def _find_output(reply: Any, contract: ModelContract) -> tuple[int, Any]:
    for index, tensor in enumerate(reply.outputs):
        if tensor.name == contract.output and tensor.datatype in FLOATS:
            return index, tensor
    raise _bad_reply(reply, f"left out its output {contract.output}")


def _floats(reply: Any, index: int, tensor: Any) -> np.ndarray[Any, Any]:
    """Read the numbers from raw contents (Triton) or typed contents (other servers of the protocol)."""
    if index < len(reply.raw_output_contents):
        raw = reply.raw_output_contents[index]
        kind = np.dtype(FLOATS[tensor.datatype])
        if len(raw) % kind.itemsize:
            raise _bad_reply(reply, "gave a tensor cut short")
        return np.frombuffer(raw, kind)
    return np.array(getattr(tensor.contents, CONTENTS.get(tensor.datatype, "fp32_contents")), np.float64)


def _bad_reply(reply: Any, what: str) -> ModelFailed:
    return ModelFailed(f"Model {reply.model_name} {what}: look into the model's code and log.", reason="bad_reply")
