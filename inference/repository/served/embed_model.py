"""A Triton model, Python backend: texts in, unit vectors out, tokenizer and network in one.

Rows of all requests of a dynamic batch are sorted by length and computed in small batches of alike length. A request
that cannot be answered is answered with its own error, and the others with their vectors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .network import Network
from .texts import Texts, read_parameters, read_texts


class TritonPythonModel:
    """What the backend calls; one object per instance, each in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load both files from the version's folder."""
        set_to = read_parameters(args)
        folder = Path(args["model_repository"]) / args["model_version"]
        gpu = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        self._texts = Texts(folder / "tokenizer.json", int(set_to["max_tokens"]))
        self._network = Network(
            folder / "model.onnx",
            threads=int(set_to["threads"]),
            batch_tokens=int(set_to["batch_tokens"]),
            alike=float(set_to["alike"]),
            device=gpu,
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request: with vectors, or with an error of its own."""
        responses: list[Any] = [None] * len(requests)
        texts: list[str] = []
        spans: list[tuple[int, int, int]] = []
        for index, request in enumerate(requests):
            if request.is_cancelled():  # its client has given up: computing it would only delay the others
                responses[index] = _error("The request was cancelled.", pb_utils.TritonError.CANCELLED)
                continue
            try:
                own = read_texts(pb_utils.get_input_tensor_by_name(request, "text").as_numpy())
            except UnicodeDecodeError:
                responses[index] = _error("A text is not UTF-8.", pb_utils.TritonError.INVALID_ARG)
                continue
            spans.append((index, len(texts), len(texts) + len(own)))
            texts += own
        if spans:
            self._answer(texts, spans, responses)
        return responses

    def _answer(self, texts: list[str], spans: list[tuple[int, int, int]], responses: list[Any]) -> None:
        try:
            vectors = self._network.embed(self._texts.encode(texts))
        except Exception as error:  # whatever it was, it is not every request's fault
            if len(spans) == 1:
                message = f"The network failed ({type(error).__name__})."  # no words of it: they may quote a text
                responses[spans[0][0]] = _error(message, pb_utils.TritonError.INTERNAL)
                return
            for index, start, end in spans:
                self._answer(texts[start:end], [(index, 0, end - start)], responses)
            return
        for index, start, end in spans:
            output = pb_utils.Tensor("embedding", np.ascontiguousarray(vectors[start:end]))
            responses[index] = pb_utils.InferenceResponse([output])


def _error(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
