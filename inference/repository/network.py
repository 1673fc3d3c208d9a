"""MiniLM's graph made ready for a server: weights unpacked, pooling and norm inside, FP16 where asked for.

The published graph ends at token states and multiplies its int8 weights out at every load. A server wants one graph
from token ids to vectors: the states need not leave the GPU (at 256 tokens they are 256 times the vectors), and
TensorRT finds plain weights to fuse. Needs the package ``onnx`` (extra ``export``).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference import minilm
from inference.errors import ModelMisconfigured

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

POOLING = "pooling/"
"""What the names of our own nodes begin with."""


def build(weights: bytes, *, half: bool) -> bytes:
    """Return a graph ``input_ids, attention_mask -> embedding`` with norm 1, float32 at both ends.

    Args:
        weights: MiniLM's own graph.
        half: Whether to compute in FP16.

    Raises:
        ModelMisconfigured: the package ``onnx`` is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise ModelMisconfigured(
            "The ensemble layout needs the package onnx: pip install 'walvec[export]'.", reason="package_missing"
        ) from error
    model = _unpacked(weights)
    if half:  # before pooling, which stays in FP32: sums over 256 tokens lose too much in FP16
        model = _halved(model)
    _pool(model)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def _unpacked(weights: bytes) -> ModelProto:
    """Return the graph with everything computed that is constant: weights as plain float32."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="walvec-") as folder:
        file = Path(folder) / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Basic keeps to the operators of the ONNX standard; further levels write ones that only ONNX Runtime knows.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(file)
        onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
        return onnx.load(file)


def _pool(model: ModelProto) -> None:
    """Make ``token_type_ids`` inside the graph, and end it at unit vectors."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    _rename(graph, "embedding", "token_embedding")  # a name inside, which the output is to have
    constants: dict[str, Any] = {
        "zero": np.array(0, np.int64),
        "axis": np.array([1], np.int64),
        "tiny": np.array(np.finfo(np.float32).tiny, np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(value, POOLING + name) for name, value in constants.items())

    def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
        return helper.make_node(operator, inputs, [output], name=f"{POOLING}{output.split('/')[-1]}", **attributes)

    def own(name: str) -> str:
        return POOLING + name

    first = node("Mul", ["input_ids", own("zero")], "token_type_ids")
    last = [
        node("Cast", ["attention_mask"], own("mask"), to=TensorProto.FLOAT),
        node("Unsqueeze", [own("mask"), own("axis")], own("row")),
        node("MatMul", [own("row"), "last_hidden_state"], own("sums")),
        node("Squeeze", [own("sums"), own("axis")], own("sum")),
        node("ReduceL2", [own("sum")], own("norm"), axes=[1], keepdims=1),
        node("Max", [own("norm"), own("tiny")], own("divisor")),
        node("Div", [own("sum"), own("divisor")], "embedding"),
    ]
    nodes = [first, *graph.node, *last]
    del graph.node[:], graph.output[:]
    graph.node.extend(nodes)
    kept = [entry for entry in graph.input if entry.name != "token_type_ids"]
    del graph.input[:]
    graph.input.extend(kept)
    graph.output.append(helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", minilm.DIMENSION]))


def _rename(graph: GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new


def _halved(model: ModelProto) -> ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    halved: ModelProto = convert_float_to_float16(model, keep_io_types=True)
    return halved
