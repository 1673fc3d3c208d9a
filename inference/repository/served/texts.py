"""Text to token ids, and rows of alike length put together. Part of a Triton model: needs NumPy and tokenizers alone.

The same steps as walvec's runtime in process, which is why the vectors are the same: blanks in front are left out, a
text is cut at ``max_tokens``, and what lies past 65,536 characters is not read, so that a value of 20 MB costs no more
than a page.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

CUTS = (2_048, 65_536)
"""Characters of a text that are tokenised: the second cut is tried where the first did not fill the model."""


class Texts:
    """A tokenizer that cuts texts and never pads them."""

    def __init__(self, file: Path, max_tokens: int) -> None:
        """Load ``tokenizer.json``, undoing the truncation and padding that it asks for."""
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._max_tokens = max_tokens

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, the model's own marks included."""
        short, long = CUTS
        stripped = [text.lstrip() for text in texts]
        ids = self._ids([text[:short] for text in stripped])
        unfilled = [i for i, text in enumerate(stripped) if len(text) > short and len(ids[i]) < self._max_tokens]
        if unfilled:
            for i, again in zip(unfilled, self._ids([stripped[i][:long] for i in unfilled]), strict=True):
                ids[i] = again
        return ids

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]


def read_texts(array: Any) -> list[str]:
    """Return the texts of a BYTES tensor.

    Raises:
        UnicodeDecodeError: one of them is not UTF-8.
    """
    return [bytes(element).decode("utf-8") for element in array.reshape(-1)]


def pad(rows: Sequence[Sequence[int]], multiple: int = 1) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return token ids and attention mask, int64, shape ``(rows, longest row)`` rounded up to ``multiple``."""
    longest = -(-max(map(len, rows)) // multiple) * multiple
    ids = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask


def pack(lengths: Sequence[int], tokens: int, alike: float) -> list[list[int]]:
    """Cut rows into batches of alike length, longest first.

    Args:
        lengths: Tokens of each row.
        tokens: Most tokens of a batch, padding included; a longer row gets a batch of its own.
        alike: The share of a batch's longest row that each of its rows must have, 0 to 1.

    Returns:
        Indices into ``lengths``, each exactly once, by batch.
    """
    batches: list[list[int]] = []
    room, shortest = 0, 0.0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if room == 0 or lengths[index] < shortest:
            batches.append([])
            room, shortest = max(1, tokens // lengths[index]), lengths[index] * alike
        batches[-1].append(index)
        room -= 1
    return batches


def read_parameters(args: dict[str, str]) -> dict[str, str]:
    """Return the parameters of the model's configuration, from what the backend hands to ``initialize``.

    Raises:
        RuntimeError: this NumPy and this Triton do not go together; see :func:`refuse_broken_numpy`.
    """
    config = json.loads(args["model_config"])
    set_to = {name: entry["string_value"] for name, entry in config["parameters"].items()}
    release = os.environ.get("NVIDIA_TRITON_SERVER_VERSION", "")
    refuse_broken_numpy(np.__version__, release, set_to.get("numpy2") == "true")
    return set_to


def refuse_broken_numpy(version: str, release: str, allowed: bool) -> None:
    """Refuse NumPy 2 under a server whose Python backend reads its tensors wrongly, silently: before release 25.01.

    Args:
        version: NumPy's.
        release: The server's, as NVIDIA's containers name it, such as 24.10; empty elsewhere.
        allowed: Whether the configuration says that this server is newer.

    Raises:
        RuntimeError: the server would read every tensor with stride 0.
    """
    if int(version.split(".")[0]) < 2 or allowed or (release and tuple(map(int, release.split(".")[:2])) >= (25, 1)):
        return
    raise RuntimeError(
        f"NumPy {version} in a Triton older than 25.01 corrupts every tensor: install 'numpy<2' where this model runs, "
        "or set the parameter numpy2 to true in config.pbtxt where the server is newer."
    )
