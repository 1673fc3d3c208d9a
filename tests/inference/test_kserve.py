import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from inference.contract import Input, ModelContract
from inference.errors import ModelFailed, ModelMisconfigured
from inference.kserve import (
    bytes_request,
    encode_texts,
    mark,
    portions,
    read_bytes,
    read_vectors,
    tokens_request,
)
from inference.pooling import pad

TEXT = Input("TEXT", "BYTES", 2, "text")
CONTRACT = ModelContract((TEXT,), "EMBEDDING", "none", 2, 64)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=30))
def test_texts_travel_as_tritonclient_writes_them(texts):
    request = bytes_request("m", CONTRACT, TEXT, encode_texts(texts))
    assert list(request.inputs[0].shape) == [len(texts), 1]
    theirs = serialize_byte_tensor(np.array([text.encode() for text in texts], dtype=object))
    assert request.raw_input_contents[0] == theirs.item()
    assert [text.decode() for text in read_bytes(request.raw_input_contents[0])] == texts


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
    request = bytes_request("m", CONTRACT, TEXT, [b"abc"])
    with pytest.raises(ValueError, match="ends inside"):
        read_bytes(request.raw_input_contents[0][:-1])


def test_one_vector_in_a_row_of_its_own_is_a_vector():
    assert np.array_equal(read_vectors(reply(GOOD, shape=(2, 1, 2)), CONTRACT, 2, 2), GOOD)


def test_norm_on_request():
    vectors = read_vectors(reply(GOOD), CONTRACT, 2, 2, normalize=True)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)


IDS = tuple(Input(name, kind, 2, role) for name, kind, role in [
    ("input_ids", "INT64", "ids"), ("attention_mask", "INT32", "mask"), ("token_type_ids", "INT64", "types")
])  # fmt: skip
NETWORK = ModelContract(IDS, "STATES", "mean", 2, 64)


def test_token_ids_travel_in_the_models_types():
    request = tokens_request("m", NETWORK, *pad([[5, 6], [7]]))
    assert [(t.name, t.datatype, list(t.shape)) for t in request.inputs] == [
        ("input_ids", "INT64", [2, 2]), ("attention_mask", "INT32", [2, 2]), ("token_type_ids", "INT64", [2, 2]),
    ]  # fmt: skip
    read = [
        np.frombuffer(raw, kind).tolist()
        for raw, kind in zip(request.raw_input_contents, ["<i8", "<i4", "<i8"], strict=True)
    ]
    assert read == [[5, 6, 7, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


STATES = np.array([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [np.nan, 9.0]]], np.float32)


def test_token_states_are_pooled_over_real_tokens_only():
    _, mask = pad([[5, 6], [7]])
    vectors = read_vectors(reply(STATES, name="STATES"), NETWORK, 2, 2, mask=mask)
    assert vectors.tolist() == [[2.0, 3.0], [5.0, 6.0]]


def test_another_number_of_token_states_is_a_failed_model():
    _, mask = pad([[5, 6, 7], [7]])
    with pytest.raises(ModelFailed, match="2 token states a text for 3 tokens"):
        read_vectors(reply(STATES, name="STATES"), NETWORK, 2, 2, mask=mask)


@pytest.mark.parametrize(("levels", "bulk", "priority"), [(0, True, None), (2, False, 1), (5, True, 5)])
def test_priority_is_sent_only_where_it_is_known(levels, bulk, priority):
    request = bytes_request("m", CONTRACT, TEXT, [b"abc"])
    mark(request, ModelContract((TEXT,), "E", "none", 2, 64, priority_levels=levels), "walvec-1", bulk=bulk)
    assert request.id == "walvec-1"
    assert (request.parameters["priority"].uint64_param if "priority" in request.parameters else None) == priority
