"""A model of MiniLM's size with random weights, on PyTorch: as a Triton model, and as a bare loop to compare it with.

`make bench-gpu` copies this file into a model repository as ``model.py``, beside ``texts.py`` and ``tokenizer.json``,
and runs it as a program for the loop: ``python torch_model.py TOKENS ROWS SECONDS DEVICE`` prints texts per second.
Random weights compute as fast as trained ones. FP16 on a GPU, FP32 on a CPU.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

LAYERS, WIDTH, HEADS, INNER, VOCABULARY, POSITIONS = 6, 384, 12, 1536, 30_522, 512
BATCH_TOKENS = 65_536
"""Most tokens computed at once, padding included."""


class Encoder(nn.Module):  # type: ignore[misc]  # torch is not there where types are checked
    """BERT as MiniLM-L6 has it: embeddings, six layers, mean over the real tokens, norm 1."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(POSITIONS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, dropout=0.0, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, ids: Any, mask: Any) -> Any:
        """Return unit vectors, shape ``(rows, 384)``, float32, of ids and mask of shape ``(rows, tokens)``."""
        states = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]])
        states = self.layers(states, src_key_padding_mask=~mask)
        sums = (states * mask.unsqueeze(-1)).sum(1).float()
        return nn.functional.normalize(sums, dim=1)


def load(device: str) -> Encoder:
    """Return the model on ``device``, the same at every call."""
    torch.manual_seed(1)
    model = Encoder()
    model.eval().to(device, torch.float32 if device == "cpu" else torch.float16)
    return model


def compute(model: Encoder, ids: np.ndarray[Any, Any], mask: np.ndarray[Any, Any], device: str) -> Any:
    """Return the vectors, on the device; copying to it is part of it."""
    with torch.inference_mode():
        return model(torch.from_numpy(ids).to(device), torch.from_numpy(mask.astype(bool)).to(device))


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load tokenizer and model."""
        from .texts import Texts  # copied beside this file

        gpu = args["model_instance_kind"] == "GPU"
        self._device = f"cuda:{args['model_instance_device_id']}" if gpu else "cpu"
        folder = Path(args["model_repository"]) / args["model_version"]
        self._texts = Texts(folder / "tokenizer.json", POSITIONS)
        self._model = load(self._device)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests of a dynamic batch."""
        import triton_python_backend_utils as pb_utils

        from .texts import read_texts

        batches = [read_texts(pb_utils.get_input_tensor_by_name(request, "text").as_numpy()) for request in requests]
        vectors = self._embed([text for batch in batches for text in batch])
        responses, start = [], 0
        for batch in batches:
            own = np.ascontiguousarray(vectors[start : start + len(batch)])
            start += len(batch)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("embedding", own)]))
        return responses

    def _embed(self, texts: list[str]) -> np.ndarray[Any, Any]:
        from .texts import pack

        ids = self._texts.encode(texts)
        vectors = np.empty((len(texts), WIDTH), np.float32)
        # All are on their way before the first is fetched: the GPU works while the next is prepared.
        plan = pack([len(row) for row in ids], BATCH_TOKENS, 0.0)
        parts = [self._compute([ids[i] for i in batch]) for batch in plan]
        for batch, part in zip(plan, parts, strict=True):
            vectors[batch] = part.cpu().numpy()
        return vectors

    def _compute(self, rows: list[list[int]]) -> Any:
        from .texts import pad

        ids, mask = pad(rows, 8)
        return compute(self._model, ids, mask, self._device)


def loop(tokens: int, rows: int, seconds: float, device: str) -> float:
    """Return the texts per second of a loop that does nothing but compute ready batches."""
    model = load(device)
    ids = np.random.default_rng(1).integers(1000, VOCABULARY, (rows, tokens))
    mask = np.ones_like(ids)
    for _ in range(3):
        compute(model, ids, mask, device).cpu()
    done, begin = 0, time.perf_counter()
    while time.perf_counter() < begin + seconds:
        compute(model, ids, mask, device).cpu()
        done += rows
    return done / (time.perf_counter() - begin)


if __name__ == "__main__":
    print(loop(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]))
