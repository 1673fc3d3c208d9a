"""A Triton model, Python backend: texts in, token ids and attention mask out, for an ensemble with a network.

Rows of one request are padded to its longest, rounded up: requests can share a batch of the network only where their
lengths are equal, and a few lengths are met more often than many.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from .texts import Texts, pad, read_parameters, read_texts


class TritonPythonModel:
    """What the backend calls; one object per instance, each in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer from the version's folder."""
        set_to = read_parameters(args)
        folder = Path(args["model_repository"]) / args["model_version"]
        self._multiple = int(set_to["pad_to_multiple"])
        self._texts = Texts(folder / "tokenizer.json", int(set_to["max_tokens"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request: with tokens, or with an error of its own."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        if request.is_cancelled():
            return _error("The request was cancelled.", pb_utils.TritonError.CANCELLED)
        try:
            texts = read_texts(pb_utils.get_input_tensor_by_name(request, "text").as_numpy())
        except UnicodeDecodeError:
            return _error("A text is not UTF-8.", pb_utils.TritonError.INVALID_ARG)
        ids, mask = pad(self._texts.encode(texts), self._multiple)
        return pb_utils.InferenceResponse([pb_utils.Tensor("input_ids", ids), pb_utils.Tensor("attention_mask", mask)])


def _error(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
