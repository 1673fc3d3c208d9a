"""The files of a repository."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from string import Template

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from inference import minilm
from inference.errors import ModelMisconfigured
from inference.repository import network
from inference.repository.options import Device, Layout, Options, Precision

CONFIGS = Path(__file__).parent / "configs"
SERVED = Path(__file__).parent / "served"

BATCH_TOKENS = {Device.CPU: 512, Device.CUDA: 32_768}
"""Tokens that are computed at once: few stay in a CPU's caches, many fill a GPU."""
ALIKE = {Device.CPU: 0.7, Device.CUDA: 0.0}
PAD_TO_MULTIPLE = 8
"""FP16 matrices want multiples of 8, and requests share a batch only where their lengths are equal."""

WORD = "walvec"
LONG = "word " * 300


def write(folder: Path, options: Options) -> list[str]:
    """Write the models' folders into ``folder``; return their names.

    Raises:
        ModelMisconfigured: a file of the model is missing or not the one expected, or the package ``onnx`` is missing.
    """
    weights = minilm.read_proved(minilm.weights_file(), minilm.WEIGHTS_SHA256)
    tokenizer = minilm.read_proved(minilm.TOKENIZER_FILE, minilm.TOKENIZER_SHA256)
    if options.layout is Layout.PYTHON:
        model = _model(folder, options.model, "python.pbtxt", options)
        _python(model, "embed_model.py", ["texts.py", "network.py"], tokenizer)
        (model / "1" / "model.onnx").write_bytes(weights)
        _warm_up(model, {"word": _bytes(WORD), "long": _bytes(LONG)})
        return [options.model]
    ensemble = _model(folder, options.model, "ensemble.pbtxt", options)
    (ensemble / "1").mkdir()  # an ensemble has no files, but a version it must have
    (ensemble / "1" / ".keep").touch()  # git and object stores know no empty folders
    pieces = _model(folder, f"{options.model}-tokenizer", "tokenizer.pbtxt", options)
    _python(pieces, "tokenize_model.py", ["texts.py"], tokenizer)
    _warm_up(pieces, {"word": _bytes(WORD)})
    graph = _model(folder, f"{options.model}-network", "network.pbtxt", options)
    (graph / "1").mkdir()
    halved = options.precision is Precision.FP16 and options.device is Device.CUDA  # TensorRT halves by itself
    (graph / "1" / "model.onnx").write_bytes(network.build(weights, half=halved))
    _warm_up(graph, {f"ones{length}": np.ones(length, "<i8").tobytes() for length in (8, minilm.MAX_TOKENS)})
    return [options.model, f"{options.model}-tokenizer", f"{options.model}-network"]


def render(template: str, options: Options) -> str:
    """Return a configuration, proved to be one that Triton can read.

    Raises:
        ModelMisconfigured: it is none; the template is broken.
    """
    text = Template((CONFIGS / template).read_text("utf-8")).substitute(_values(options))
    try:
        text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise ModelMisconfigured(f"{template} is no model configuration: {error}", reason="bad_export") from None
    return text


def _values(options: Options) -> dict[str, object]:
    device = options.device
    values: dict[str, object] = {
        "model": options.model,
        "dimension": minilm.DIMENSION,
        "max_tokens": minilm.MAX_TOKENS,
        "max_batch_size": options.max_batch_size,
        "opt_rows": min(64, options.max_batch_size),
        "warm_rows": 2 if device is Device.CPU else options.max_batch_size,
        "instances": options.copies,
        "tokenizers": options.tokenizers,
        "threads": options.threads,
        "kind": "KIND_CPU" if device is Device.CPU else "KIND_GPU",
        "queue_requests": options.queue_requests,
        "queue_timeout_us": round(options.queue_timeout_s * 1e6),
        "batch_tokens": BATCH_TOKENS.get(device, 0),
        "alike": ALIKE.get(device, 0.0),
        "pad_to_multiple": PAD_TO_MULTIPLE,
        "trt_precision": options.precision.value.upper(),
        "precision": options.precision.value,
        "engine": {Device.CPU: "CPU", Device.CUDA: "CUDA", Device.TENSORRT: "TensorRT"}[device],
    }
    accelerator = "" if device is Device.CPU else (CONFIGS / f"{device.value}.pbtxt").read_text("utf-8").rstrip("\n")
    return {**values, "accelerator": Template(accelerator).substitute(values)}


def _model(folder: Path, name: str, template: str, options: Options) -> Path:
    model = folder / name
    model.mkdir()
    (model / "config.pbtxt").write_text(render(template, options), "utf-8")
    return model


def _python(model: Path, source: str, modules: list[str], tokenizer: bytes) -> None:
    version = model / "1"
    version.mkdir()
    shutil.copyfile(SERVED / source, version / "model.py")
    for module in modules:
        shutil.copyfile(SERVED / module, version / module)
    (version / "tokenizer.json").write_bytes(tokenizer)


def _warm_up(model: Path, files: dict[str, bytes]) -> None:
    (model / "warmup").mkdir()
    for name, content in files.items():
        (model / "warmup" / name).write_bytes(content)


def _bytes(text: str) -> bytes:
    """Return one element of a BYTES tensor: its length as uint32, then the bytes."""
    return struct.pack("<I", len(text)) + text.encode()
