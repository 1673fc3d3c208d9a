"""The network on ONNX Runtime: token ids to unit vectors. Part of a Triton model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from .texts import pack, pad


class Network:
    """A BERT-like network that ends at token states; they are averaged over the real tokens and scaled to norm 1."""

    def __init__(self, file: Path, *, threads: int, batch_tokens: int, alike: float, device: int | None = None) -> None:
        """Load the network.

        Args:
            file: The ONNX file.
            threads: Threads of one computation.
            batch_tokens: Most tokens computed at once, padding included.
            alike: See :func:`pack`.
            device: The GPU; None: the CPU.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # plans are kept per input shape, and shapes here never end
        options.log_severity_level = 3
        providers: list[Any] = ["CPUExecutionProvider"]
        if device is not None:
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device}))
        self._session = onnxruntime.InferenceSession(str(file), options, providers=providers)
        self._batch_tokens = batch_tokens
        self._alike = alike

    def embed(self, ids: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
        """Return the vectors of rows of token ids, shape ``(rows, dimension)``, in their order."""
        batches = pack([len(row) for row in ids], self._batch_tokens, self._alike)
        vectors: np.ndarray[Any, Any] | None = None
        for batch in batches:
            part = self._forward([ids[i] for i in batch])
            if vectors is None:
                vectors = np.empty((len(ids), part.shape[1]), np.float32)
            vectors[batch] = part
        if vectors is None:
            raise ValueError("no rows")
        return vectors

    def _forward(self, rows: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
        ids, mask = pad(rows)
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (states,) = self._session.run(["last_hidden_state"], feed)
        # The mean's divisor cancels in the norm, so the sum will do.
        vectors: np.ndarray[Any, Any] = np.matmul(mask.astype(np.float32)[:, None, :], states)[:, 0, :]
        norms = np.sqrt(np.matmul(vectors[:, None, :], vectors[:, :, None])[:, 0])
        vectors /= np.maximum(norms, np.finfo(np.float32).tiny)
        return vectors
