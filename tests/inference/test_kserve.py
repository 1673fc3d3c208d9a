import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import serialize_byte_tensor

from inference.errors import ModelFailed, ModelMisconfigured
from inference.kserve import (
    ModelContract,
    encode_texts,
    infer_request,
    portions,
    read_contract,
    read_texts,
    read_vectors,
)

CONTRACT = ModelContract("TEXT", 2, "EMBEDDING", "FP32", 2, 64)


def metadata(inputs=(("TEXT", "BYTES", [-1, 1]),), outputs=(("EMBEDDING", "FP32", [-1, 384]),)):
    reply = service_pb2.ModelMetadataResponse(name="m")
    for name, datatype, shape in inputs:
        reply.inputs.add(name=name, datatype=datatype, shape=shape)
    for name, datatype, shape in outputs:
        reply.outputs.add(name=name, datatype=datatype, shape=shape)
    return reply


def config(max_batch_size=0, optional=()):
    made = model_config_pb2.ModelConfig(name="m", max_batch_size=max_batch_size)
    for name in optional:
        made.input.add(name=name, optional=True)
    return made


@pytest.mark.parametrize(
    ("inputs", "made", "rank", "rows"),
    [
        ([("T", "BYTES", [-1, 1])], config(32), 2, 32),
        ([("T", "BYTES", [-1, 1])], config(4096), 2, 256),
        ([("T", "BYTES", [-1])], config(0), 1, 256),
        ([("T", "BYTES", [-1])], None, 1, 256),
        ([("T", "BYTES", [1])], None, 1, 1),
        ([("T", "BYTES", [1, 1])], config(0), 2, 1),
        ([("T", "BYTES", [-1, 1]), ("mode", "INT32", [-1, 1])], config(8, optional=["mode"]), 2, 8),
    ],
)
def test_reads_how_to_ask(inputs, made, rank, rows):
    contract = read_contract(metadata(inputs), made)
    assert (contract.input, contract.input_rank, contract.max_rows, contract.dimension) == ("T", rank, rows, 384)


def test_an_undeclared_dimension_is_unknown():
    assert read_contract(metadata(outputs=[("E", "FP16", [-1, -1])]), None).dimension is None


def test_the_usual_output_is_chosen_among_several():
    outputs = [("score", "FP32", [-1, 1]), ("sentence_embedding", "FP32", [-1, 8]), ("x", "INT64", [-1, 1])]
    assert read_contract(metadata(outputs=outputs), None).output == "sentence_embedding"


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"inputs": [("ids", "INT64", [-1, -1])]}, "wants ids INT64 where one BYTES input"),
        ({"inputs": [("a", "BYTES", [-1, 1]), ("b", "BYTES", [-1, 1])]}, "wants a BYTES, b BYTES"),
        ({"inputs": []}, "wants nothing"),
        ({"inputs": [("a", "BYTES", [-1, 3])]}, r"of shape \[-1, 3\]"),
        ({"inputs": [("a", "BYTES", [7, 1])]}, "exactly 7 texts"),
        ({"outputs": [("last_hidden_state", "FP32", [-1, -1, 384])]}, "gives last_hidden_state FP32"),
        ({"outputs": [("a", "FP32", [-1, 8]), ("b", "FP32", [-1, 8])]}, "gives a FP32"),
        ({"outputs": []}, "gives nothing"),
    ],
)
def test_other_models_are_refused_in_words(kwargs, words):
    with pytest.raises(ModelMisconfigured, match=words):
        read_contract(metadata(**kwargs), None)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=30))
def test_texts_travel_as_tritonclient_writes_them(texts):
    request = infer_request("m", CONTRACT, encode_texts(texts))
    assert list(request.inputs[0].shape) == [len(texts), 1]
    theirs = serialize_byte_tensor(np.array([text.encode() for text in texts], dtype=object))
    assert request.raw_input_contents[0] == theirs.item()
    assert [text.decode() for text in read_texts(request)] == texts


@given(st.lists(st.binary(max_size=30), min_size=1, max_size=40), st.integers(1, 60))
def test_portions_keep_order_and_bounds(encoded, most):
    runs = portions(encoded, most)
    assert [text for run in runs for text in run] == encoded
    assert all(run and (sum(map(len, run)) <= most or len(run) == 1) for run in runs)


def reply(vectors, *, name="EMBEDDING", datatype="FP32", shape=None, raw=None):
    made = service_pb2.ModelInferResponse(model_name="m")
    made.outputs.add(name=name, datatype=datatype, shape=shape or vectors.shape)
    kind = {"FP32": "<f4", "FP16": "<f2", "FP64": "<f8"}[datatype]
    made.raw_output_contents.append(vectors.astype(kind).tobytes() if raw is None else raw)
    return made


GOOD = np.array([[1.0, 2.0], [0.5, -4.0]], np.float32)


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "FP64"])
def test_reads_vectors(datatype):
    vectors = read_vectors(reply(GOOD, datatype=datatype), CONTRACT, 2, None)
    assert vectors.dtype == np.float32 and np.array_equal(vectors, GOOD)


def test_reads_typed_contents():
    made = reply(GOOD)
    del made.raw_output_contents[:]
    made.outputs[0].contents.fp32_contents.extend(GOOD.ravel().tolist())
    assert np.array_equal(read_vectors(made, CONTRACT, 2, 2), GOOD)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (reply(GOOD, name="other"), "left out its output EMBEDDING"),
        (reply(GOOD[:1]), r"shape \[1, 2\] for 2 texts"),
        (reply(GOOD, shape=(4,)), r"shape \[4\] for 2 texts"),
        (reply(GOOD, raw=b"\0" * 12), "3 numbers for shape"),
        (reply(GOOD, raw=b"\0" * 15), "cut short"),
        (reply(GOOD, raw=b""), "0 numbers"),
        (reply(GOOD * np.nan), "not finite"),
        (reply(GOOD * np.inf), "not finite"),
        (reply(GOOD * [[1.0], [0.0]]), "all-zero"),
    ],
)
def test_a_bad_reply_is_a_failed_model(made, words):
    with pytest.raises(ModelFailed, match=words) as caught:
        read_vectors(made, CONTRACT, 2, None)
    assert caught.value.reason == "bad_reply"


def test_another_dimension_needs_a_person():
    with pytest.raises(ModelMisconfigured, match="now gives vectors of 2 dimensions instead of 384"):
        read_vectors(reply(GOOD), CONTRACT, 2, 384)


def test_a_tensor_cut_short_is_not_read():
    request = infer_request("m", CONTRACT, [b"abc"])
    request.raw_input_contents[0] = request.raw_input_contents[0][:-1]
    with pytest.raises(ValueError, match="ends inside"):
        read_texts(request)
