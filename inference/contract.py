"""What a model on a KServe v2 server wants and gives, read from its metadata and, where there is one, its config.

Three kinds of model can embed texts: one BYTES tensor of texts, shape ``[N, 1]`` or ``[N]``; token ids
(``input_ids``, ``attention_mask`` and perhaps ``token_type_ids``, shape ``[N, T]``); and, for images, one BYTES tensor
of whole files. The output is a vector each, ``[N, D]``, or token states, ``[N, T, D]``, which are pooled here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.errors import ModelMisconfigured

MOST_ROWS = 4096
"""Rows asked for at once of a model that sets no bound itself."""

FLOATS = ("FP32", "FP16", "FP64")
INTEGERS = ("INT64", "INT32")
TOKEN_INPUTS = {
    "input_ids": "ids",
    "attention_mask": "mask",
    "input_mask": "mask",  # as TensorFlow's BERT has it
    "token_type_ids": "types",
    "segment_ids": "types",
}
USUAL_VECTORS = ("sentence_embedding", "sentence_embeddings", "embedding", "embeddings", "text_embeds", "image_embeds")
USUAL_STATES = ("last_hidden_state", "token_embeddings", "hidden_states")
_IMAGE = re.compile(r"image|img|picture|photo|pixel", re.IGNORECASE)
UNBOUNDED_PRIORITIES = 2
"""Levels to reckon with where a pipeline of models (an ensemble) hands the priority on to who knows which of them."""


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What a model does not say of itself.

    ``pooling`` is ``auto``, ``none``, ``mean``, ``cls`` or ``last``. ``normalize`` None: only where pooling is done
    here. ``tokenizer`` is a ``tokenizer.json``, for models that want token ids. ``max_tokens`` None: the tokenizer's.
    """

    pooling: str = "auto"
    normalize: bool | None = None
    tokenizer: Path | None = None
    max_tokens: int | None = None
    output: str = ""


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor to send. ``role`` is ``text``, ``content`` (files), ``ids``, ``mask`` or ``types``."""

    name: str
    datatype: str
    rank: int
    role: str


@dataclass(frozen=True, slots=True)
class ModelContract:
    """How to ask a model.

    ``inputs`` are all that can be sent: one text tensor, one of files, either, or two to three of token ids.
    ``pooling`` is ``none`` where the model gives vectors itself. ``dimension`` is None where the model does not
    declare it, ``tokens`` the fixed length of a row of token ids, if there is one, and ``priority_levels`` 0 where the
    server has no priorities.
    """

    inputs: tuple[Input, ...]
    output: str
    pooling: str
    dimension: int | None
    max_rows: int
    tokens: int | None = None
    priority_levels: int = 0

    def input(self, role: str) -> Input | None:
        """Return the input of a role, if the model has it."""
        return next((tensor for tensor in self.inputs if tensor.role == role), None)


def read_contract(metadata: Any, config: Any | None, *, pooling: str = "auto", output: str = "") -> ModelContract:
    """Find the inputs and the output.

    Args:
        metadata: ``ModelMetadataResponse``.
        config: ``ModelConfig``, or None from servers without that extension.
        pooling: ``none``, ``mean``, ``cls``, ``last``, or ``auto``: by what the model gives.
        output: the output's name, where the model has several that will do.

    Raises:
        ModelMisconfigured: the model cannot embed, or not without a word on how.
    """
    tensors, inputs = _inputs(metadata, config)
    vector, chosen = _output(metadata, inputs, pooling, output)
    first = tensors[0].shape[0]
    if first > 1:
        raise _unfit(metadata.name, f"takes exactly {first} rows, not any number")
    rows = MOST_ROWS
    if config is not None and config.max_batch_size > 0:
        rows = min(rows, config.max_batch_size)
    elif first > 0:
        rows = min(rows, first)
    lengths = {tensor.shape[1] for tensor in tensors if tensor.shape[1:] and tensor.shape[1] > 0}
    return ModelContract(
        inputs=inputs,
        output=vector.name,
        pooling=chosen,
        dimension=vector.shape[-1] if vector.shape[-1] > 0 else None,
        max_rows=rows,
        tokens=min(lengths) if lengths and inputs[0].role == "ids" else None,
        priority_levels=_priorities(config),
    )


def _inputs(metadata: Any, config: Any | None) -> tuple[list[Any], tuple[Input, ...]]:
    optional = {tensor.name for tensor in config.input if tensor.optional} if config is not None else set()
    asked = [tensor for tensor in metadata.inputs if tensor.name not in optional]
    tokens = [tensor for tensor in metadata.inputs if tensor.name.lower() in TOKEN_INPUTS]
    if tokens and all(tensor in tokens for tensor in asked):
        return tokens, _token_inputs(metadata.name, tokens)
    files = _content_inputs(asked or list(metadata.inputs))
    if files is None or (len(files[0]) > 1 and asked):
        wants = ", ".join(f"{tensor.name} {tensor.datatype}" for tensor in asked or metadata.inputs) or "nothing"
        raise _unfit(metadata.name, f"wants {wants} where one BYTES input of texts, or token ids, are needed")
    for tensor in files[0]:
        if len(tensor.shape) not in (1, 2) or (len(tensor.shape) == 2 and tensor.shape[1] not in (1, -1)):
            raise _unfit(metadata.name, f"takes input {tensor.name} of shape {list(tensor.shape)}, not [-1, 1] or [-1]")
    return files


def _token_inputs(model: str, tensors: Sequence[Any]) -> tuple[Input, ...]:
    inputs = tuple(Input(t.name, t.datatype, len(t.shape), TOKEN_INPUTS[t.name.lower()]) for t in tensors)
    if "ids" not in {tensor.role for tensor in inputs} or len({tensor.role for tensor in inputs}) != len(inputs):
        raise _unfit(model, "wants token ids in a form that walvec does not know")
    for tensor in inputs:
        if tensor.datatype not in INTEGERS or tensor.rank != 2:
            raise _unfit(model, f"takes {tensor.name} as {tensor.datatype} of rank {tensor.rank}, not INT64 [-1, -1]")
    return tuple(sorted(inputs, key=lambda tensor: ("ids", "mask", "types").index(tensor.role)))


def _content_inputs(tensors: Sequence[Any]) -> tuple[list[Any], tuple[Input, ...]] | None:
    """Return the BYTES inputs by role: one for texts, one for files by its name, or one of each."""
    if any(tensor.datatype != "BYTES" for tensor in tensors):
        return None
    found = [("content" if _IMAGE.search(tensor.name) else "text", tensor) for tensor in tensors]
    if not found or len({role for role, _ in found}) != len(found):
        return None
    return list(tensors), tuple(Input(t.name, t.datatype, len(t.shape), role) for role, t in found)


def _output(metadata: Any, inputs: Sequence[Input], pooling: str, name: str) -> tuple[Any, str]:
    floats = [tensor for tensor in metadata.outputs if tensor.datatype in FLOATS and (not name or tensor.name == name)]
    vectors = [t for t in floats if len(t.shape) == 2 or (len(t.shape) == 3 and t.shape[1] == 1)]
    states = [t for t in floats if len(t.shape) == 3 and t.shape[1] != 1]
    gives = ", ".join(f"{t.name} {t.datatype} {list(t.shape)}" for t in metadata.outputs) or "nothing"
    if pooling in ("auto", "none"):
        vector = _usual(vectors, USUAL_VECTORS)
        if vector is not None and (pooling == "none" or not states or vector.name.lower() in USUAL_VECTORS):
            return vector, "none"
        if pooling == "none":
            raise _unfit(metadata.name, f"gives {gives} where one float output of shape [-1, D] is needed")
        if vectors and states:
            raise ModelMisconfigured(
                f"Model {metadata.name} gives {gives}: set WALVEC_POOLING to mean or cls to pool its token states, "
                "or to none to take its own vector.",
                reason="bad_contract",
            )
    state = _usual(states, USUAL_STATES)
    if state is None:
        raise _unfit(metadata.name, f"gives {gives} where one float output of vectors or of token states is needed")
    chosen = "mean" if pooling == "auto" else pooling
    if inputs[0].role != "ids" and chosen != "cls":
        raise ModelMisconfigured(
            f"Model {metadata.name} takes texts and gives token states ({gives}), whose padding cannot be told from "
            "here: set WALVEC_POOLING=cls, or serve a model that pools.",
            reason="bad_contract",
        )
    return state, chosen


def _usual(tensors: Sequence[Any], names: Sequence[str]) -> Any | None:
    usual = [tensor for tensor in tensors if tensor.name.lower() in names]
    if len(usual) == 1:
        return usual[0]
    return tensors[0] if len(tensors) == 1 else None


def _priorities(config: Any | None) -> int:
    if config is None:
        return 0
    if config.HasField("ensemble_scheduling"):
        return UNBOUNDED_PRIORITIES
    return int(config.dynamic_batching.priority_levels)


def _unfit(model: str, what: str) -> ModelMisconfigured:
    return ModelMisconfigured(
        f"Model {model} cannot embed: it {what}; serve a model or an ensemble that turns texts into vectors.",
        reason="bad_contract",
    )
