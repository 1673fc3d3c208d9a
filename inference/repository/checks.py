"""Proof that an exported model gives the vectors that walvec computes in process."""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import secrets
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference import minilm
from inference.embedder import Vectors
from inference.errors import ModelMisconfigured
from inference.ort import OrtEmbedder
from inference.repository.options import Device, Layout, Options, Precision
from inference.repository.writer import ALIKE, BATCH_TOKENS, PAD_TO_MULTIPLE

TEXTS: tuple[str, ...] = (
    "walvec",
    "",
    "read a zip archive",
    "open a compressed file",
    "Größe, naïve façade, Ω and ß",
    "東京都で新しい図書館が開いた。",
    "   blanks in front, and behind   ",
    "line one\nline two\tand a tab",
    "🙂 emoji, and ÅÄÖ",
    *(f"sentence {n}: " + "the quick brown fox jumps over the lazy dog " * n for n in (1, 2, 3, 5, 8, 13, 21)),
    "longer than the model reads " * 200,
)
LEAST_COSINE_FP16 = 0.999
MOST_DIFFERENCE_FP32 = 1e-6


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well two sets of vectors agree."""

    texts: int
    most_difference: float
    least_cosine: float

    def __str__(self) -> str:
        """Return one clause for people."""
        exact = "bit-equal" if self.most_difference == 0 else f"largest difference {self.most_difference:.1e}"
        return f"{self.texts} texts, {exact}, smallest cosine {self.least_cosine:.6f}"


async def check_files(folder: Path, options: Options) -> Agreement:
    """Embed the sample texts with the files in ``folder``, as the server will, and compare.

    Raises:
        ModelMisconfigured: the vectors differ.
    """
    if options.layout is Layout.PYTHON:
        found = _through_python(folder / options.model / "1", options)
    else:
        found = _through_network(folder, options)
    return agreement(found, await in_process(), options.precision)


async def in_process(texts: Sequence[str] = TEXTS) -> Vectors:
    """Return the vectors of the runtime in process."""
    embedder = OrtEmbedder()
    await embedder.start()
    try:
        return await embedder.embed(texts)
    finally:
        await embedder.close()


def agreement(found: Vectors, expected: Vectors, precision: Precision) -> Agreement:
    """Compare row by row.

    Raises:
        ModelMisconfigured: they differ by more than the precision explains.
    """
    if found.shape != expected.shape:
        raise ModelMisconfigured(
            f"The exported model gives vectors of shape {list(found.shape)} instead of {list(expected.shape)}.",
            reason="bad_export",
        )
    cosines = np.sum(found * expected, axis=1) / (np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1))
    result = Agreement(len(found), float(np.abs(found - expected).max()), float(cosines.min()))
    half = precision is Precision.FP16
    agrees = result.least_cosine >= LEAST_COSINE_FP16 if half else result.most_difference <= MOST_DIFFERENCE_FP32
    if not agrees:  # NaN, too, ends here
        raise ModelMisconfigured(
            f"The exported model gives other vectors than walvec in process: {result}.", reason="bad_export"
        )
    return result


def _through_python(version: Path, options: Options) -> Vectors:
    with _package(version) as modules:
        texts = modules("texts").Texts(version / "tokenizer.json", minilm.MAX_TOKENS)
        network = modules("network").Network(
            version / "model.onnx",
            threads=options.threads,
            batch_tokens=BATCH_TOKENS[Device.CPU],
            alike=ALIKE[Device.CPU],
        )
        vectors: Vectors = network.embed(texts.encode(list(TEXTS)))
    return vectors


def _through_network(folder: Path, options: Options) -> Vectors:
    import onnxruntime

    version = folder / f"{options.model}-tokenizer" / "1"
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    file = str(folder / f"{options.model}-network" / "1" / "model.onnx")
    session = onnxruntime.InferenceSession(file, quiet, providers=["CPUExecutionProvider"])
    parts = []
    with _package(version) as modules:
        tokenizer = modules("texts").Texts(version / "tokenizer.json", minilm.MAX_TOKENS)
        for start in range(0, len(TEXTS), 4):  # short and long together, so that padding is proved harmless
            ids, mask = modules("texts").pad(tokenizer.encode(list(TEXTS[start : start + 4])), PAD_TO_MULTIPLE)
            parts += session.run(["embedding"], {"input_ids": ids, "attention_mask": mask})
    return np.concatenate(parts)


@contextlib.contextmanager
def _package(folder: Path) -> Iterator[Any]:
    """Make the modules in ``folder`` importable for a while, as the server does: the copies, not the originals."""
    name = f"_walvec_exported_{secrets.token_hex(4)}"
    spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    sys.modules[name] = importlib.util.module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield lambda module: importlib.import_module(f"{name}.{module}")
    finally:
        sys.dont_write_bytecode = writes
        for module in [module for module in sys.modules if module == name or module.startswith(f"{name}.")]:
            del sys.modules[module]
