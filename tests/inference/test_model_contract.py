import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from inference.contract import MOST_ROWS, read_contract
from inference.errors import ModelMisconfigured


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
        ([("T", "BYTES", [-1, 1])], config(1 << 20), 2, MOST_ROWS),
        ([("T", "BYTES", [-1])], config(0), 1, MOST_ROWS),
        ([("T", "BYTES", [-1])], None, 1, MOST_ROWS),
        ([("T", "BYTES", [1])], None, 1, 1),
        ([("T", "BYTES", [1, 1])], config(0), 2, 1),
        ([("T", "BYTES", [-1, 1]), ("mode", "INT32", [-1, 1])], config(8, optional=["mode"]), 2, 8),
    ],
)
def test_reads_how_to_ask(inputs, made, rank, rows):
    contract = read_contract(metadata(inputs), made)
    assert [(tensor.name, tensor.rank, tensor.role) for tensor in contract.inputs] == [("T", rank, "text")]
    assert (contract.max_rows, contract.dimension, contract.pooling) == (rows, 384, "none")


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
        ({"inputs": [("a", "BYTES", [7, 1])]}, "exactly 7 rows"),
        ({"outputs": [("a", "FP32", [-1, 8]), ("b", "FP32", [-1, 8])]}, "gives a FP32"),
        ({"outputs": []}, "gives nothing"),
    ],
)
def test_other_models_are_refused_in_words(kwargs, words):
    with pytest.raises(ModelMisconfigured, match=words):
        read_contract(metadata(**kwargs), None)


BERT = [(name, "INT64", [-1, -1]) for name in ("input_ids", "attention_mask", "token_type_ids")]
STATES, POOLER, SENTENCE = (
    ("last_hidden_state", "FP16", [-1, -1, 384]),
    ("pooler_output", "FP32", [-1, 384]),
    ("sentence_embedding", "FP32", [-1, 384]),
)


@pytest.mark.parametrize(
    ("inputs", "roles"),
    [
        (BERT, ["ids", "mask", "types"]),
        ([BERT[1], BERT[0]], ["ids", "mask"]),
        ([("INPUT_IDS", "INT32", [-1, -1]), ("segment_ids", "INT32", [-1, -1])], ["ids", "types"]),
        ([("image", "BYTES", [-1, 1])], ["content"]),
    ],
)
def test_other_inputs_than_text(inputs, roles):
    contract = read_contract(metadata(inputs=inputs), None)
    assert [tensor.role for tensor in contract.inputs] == roles


def test_text_or_image():
    both = [("text", "BYTES", [-1, 1]), ("image", "BYTES", [-1, 1])]
    contract = read_contract(metadata(inputs=both), config(8, optional=["text", "image"]))
    assert contract.input("text").name == "text" and contract.input("content").name == "image"
    with pytest.raises(ModelMisconfigured, match="wants text BYTES, image BYTES"):
        read_contract(metadata(inputs=both), config(8))


def test_a_fixed_length_of_token_ids():
    contract = read_contract(metadata(inputs=[("input_ids", "INT64", [-1, 128])], outputs=[STATES]), None)
    assert contract.tokens == 128


@pytest.mark.parametrize(
    ("outputs", "asked", "output", "pooling"),
    [
        ([STATES], "auto", "last_hidden_state", "mean"),
        ([STATES], "cls", "last_hidden_state", "cls"),
        ([STATES, POOLER], "mean", "last_hidden_state", "mean"),
        ([STATES, POOLER], "none", "pooler_output", "none"),
        ([STATES, SENTENCE], "auto", "sentence_embedding", "none"),
        ([STATES, SENTENCE], "last", "last_hidden_state", "last"),
        ([("e", "FP32", [-1, 1, 8])], "auto", "e", "none"),
    ],
)
def test_vectors_or_token_states(outputs, asked, output, pooling):
    contract = read_contract(metadata(inputs=BERT, outputs=outputs), None, pooling=asked)
    assert (contract.output, contract.pooling) == (output, pooling)


def test_an_output_by_name():
    outputs = [("a", "FP32", [-1, 8]), ("b", "FP32", [-1, 16])]
    assert read_contract(metadata(outputs=outputs), None, output="b").dimension == 16


@pytest.mark.parametrize(
    ("kwargs", "asked", "words"),
    [
        ({"inputs": BERT, "outputs": [STATES, POOLER]}, "auto", "set WALVEC_POOLING to mean or cls"),
        ({"inputs": BERT, "outputs": [POOLER]}, "mean", "where one float output of vectors or of token states"),
        ({"outputs": [STATES]}, "auto", "padding cannot be told.*WALVEC_POOLING=cls"),
        ({"inputs": [("input_ids", "FP32", [-1, -1])]}, "auto", "takes input_ids as FP32 of rank 2"),
        ({"inputs": [("attention_mask", "INT64", [-1, -1])]}, "auto", "in a form that walvec does not know"),
    ],
)
def test_what_needs_a_word_is_asked_for(kwargs, asked, words):
    with pytest.raises(ModelMisconfigured, match=words):
        read_contract(metadata(**kwargs), None, pooling=asked)


@pytest.mark.parametrize(("text", "levels"), [(None, 0), ("ensemble", 2), (7, 7)])
def test_priority_levels(text, levels):
    made = config(8)
    if text == "ensemble":
        made.ensemble_scheduling.step.add(model_name="x")
    elif text:
        made.dynamic_batching.priority_levels = text
    assert read_contract(metadata(), made).priority_levels == levels
