"""Models in a folder: small networks made here, of the shapes in which encoders are exported."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from inference import onnx_models
from inference.errors import ModelMisconfigured, ModelUnavailable
from inference.onnx_models import available, find
from inference.ort import OrtEmbedder
from inference.registry import make_embedder

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "red", "green", "blue", "Second", "second"]
TABLE = np.random.default_rng(7).normal(size=(len(WORDS), 6)).astype(np.float32)


def write_tokenizer(path):
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    tokenizer.save(str(path))


def write_network(path, *, kind="int64", inputs=("input_ids", "attention_mask"), output="states", table=TABLE):
    """Write a network whose token states are rows of a table; ``output``: states, vector or quantised."""
    elements = {"int64": TensorProto.INT64, "int32": TensorProto.INT32}[kind]
    takes = [helper.make_tensor_value_info(name, elements, ["batch", "tokens"]) for name in inputs]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["states"])]
    constants = [numpy_helper.from_array(table, "table")]
    name, shape = "last_hidden_state", ["batch", "tokens", table.shape[1]]
    match output:
        case "states":
            nodes.append(helper.make_node("Identity", ["states"], [name]))
        case "vector":
            name, shape = "sentence_embedding", ["batch", table.shape[1]]
            constants.append(numpy_helper.from_array(np.array([1], np.int64), "axes"))
            nodes.append(helper.make_node("ReduceMax", ["states", "axes"], [name], keepdims=0))
        case "quantised":  # scaled by the largest number of the whole batch
            nodes.append(helper.make_node("DynamicQuantizeLinear", ["states"], ["q", "scale", "zero"]))
            nodes.append(helper.make_node("DequantizeLinear", ["q", "scale", "zero"], [name]))
    gives = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "tiny", takes, gives, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.fixture
def tiny(folder):
    """Return what writes a model into the folder."""

    def write(name="maker/Tiny-Colours", *, pooling=None, normalize=None, file="model.onnx", **network):
        path = folder / name
        write_network(path / file, **network)
        write_tokenizer(path / "tokenizer.json")
        if pooling is not None:
            (path / "1_Pooling").mkdir()
            modes = {mode: short == pooling for mode, short in onnx_models.POOLING_MODES.items()}
            (path / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 6, **modes}))
        if normalize is not None:
            types = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
            modules = [{"idx": i, "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(types)]
            (path / "modules.json").write_text(json.dumps(modules))
        return path

    return write


async def embed(folder, texts, name="maker/Tiny-Colours", **kwargs):
    embedder = OrtEmbedder(name, folder=folder, threads=2, **kwargs)
    await embedder.start()
    try:
        assert embedder.dimension == 6
        return await embedder.embed(texts)
    finally:
        await embedder.close()


def rows_of(text):
    return TABLE[[1, *(WORDS.index(word) if word in WORDS else 3 for word in text.split()), 2]]


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


TEXTS = ["red", "red green blue green", "blue blue"]


@pytest.mark.parametrize("kind", ["int64", "int32"])
@pytest.mark.parametrize("inputs", [("input_ids",), ("input_ids", "attention_mask", "token_type_ids")])
async def test_token_states_become_the_mean_of_the_real_tokens_of_length_one(folder, tiny, kind, inputs):
    tiny(kind=kind, inputs=inputs)
    expected = unit(np.array([rows_of(text).mean(axis=0) for text in TEXTS]))
    assert await embed(folder, TEXTS) == pytest.approx(expected, abs=1e-6)


async def test_pooling_and_norm_are_those_of_the_models_own_files(folder, tiny):
    tiny(pooling="cls", normalize=False)
    assert await embed(folder, TEXTS) == pytest.approx(np.array([TABLE[1]] * 3), abs=1e-6)
    tiny("last", pooling="last", normalize=True, file="onnx/model.onnx")
    assert await embed(folder, TEXTS, "last") == pytest.approx(unit(np.array([TABLE[2]] * 3)), abs=1e-6)


async def test_a_network_that_pools_itself_is_taken_at_its_word(folder, tiny):
    tiny(output="vector")
    # Padding is part of its maximum: texts of other lengths move it, so that it is asked one text at a time.
    expected = np.array([rows_of(text).max(axis=0) for text in TEXTS])
    assert await embed(folder, TEXTS) == pytest.approx(expected, abs=1e-6)


async def test_a_network_whose_vectors_depend_on_the_batch_gets_one_text_at_a_time(folder, tiny, caplog):
    table = TABLE.copy()
    table[WORDS.index("second")] *= 100
    tiny(output="quantised", table=table)
    together = await embed(folder, ["red green", "second", "blue"])
    alone = np.concatenate([await embed(folder, [text]) for text in ("red green", "second", "blue")])
    assert np.abs(together - alone).max() <= 1e-6
    assert "depends on its batch" in caplog.text


async def test_texts_are_cut_where_the_models_files_say(folder, tiny):
    path = tiny(pooling="mean", normalize=False)
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 4}')
    (found,) = await embed(folder, ["red green blue red blue"])
    assert found == pytest.approx(TABLE[[1, 4, 5, 2]].mean(axis=0), abs=1e-6)
    (found,) = await embed(folder, ["red green blue"], max_tokens=3)
    assert found == pytest.approx(TABLE[[1, 4, 2]].mean(axis=0), abs=1e-6)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 512),
        ({"tokenizer_config.json": {"model_max_length": 128}}, 128),
        ({"tokenizer_config.json": {"model_max_length": 10**30}}, 512),
        ({"sentence_bert_config.json": {"max_seq_length": 384}, "config.json": {"max_position_embeddings": 512}}, 384),
        ({"config.json": {"max_position_embeddings": 130, "model_type": "mpnet"}}, 128),
    ],
)
def test_where_texts_are_cut(folder, tiny, files, expected):
    path = tiny()
    for name, content in files.items():
        (path / name).write_text(json.dumps(content))
    assert find("maker/Tiny-Colours", folder).max_tokens == expected


def test_models_are_found_by_name_in_any_case_with_their_publisher_or_without(folder, tiny):
    tiny()
    tiny("bare")
    for name in ("maker/Tiny-Colours", "MAKER/tiny-colours", "tiny-colours", "Tiny-Colours"):
        assert find(name, folder).weights == folder / "maker/Tiny-Colours/model.onnx"
    assert find("anybody/bare", folder).weights == folder / "bare/model.onnx"
    assert find("sentence-transformers/all-MiniLM-L6-v2", folder) is onnx_models.BUILT_IN
    assert available(folder) == ["all-minilm-l6-v2", "bare", "maker/Tiny-Colours"]


@pytest.mark.parametrize("name", ["other/Tiny-Colours", "../maker/Tiny-Colours", "maker", "nothing", "", "/etc"])
def test_other_names_are_refused_and_those_there_are_named(folder, tiny, name):
    tiny()
    with pytest.raises(ModelMisconfigured, match="all-minilm-l6-v2, maker/Tiny-Colours") as caught:
        find(name, folder)
    assert caught.value.reason == "unknown_model"


def test_other_weights_under_the_same_name_have_another_identity(folder, tiny):
    path = tiny()
    first = find("tiny-colours", folder).identity
    assert find("tiny-colours", folder).identity == first
    table = TABLE.copy()
    table[5, 5] += 0.5
    write_network(path / "model.onnx", table=table)
    assert find("tiny-colours", folder).identity != first


def test_an_unknown_pooling_is_refused(folder, tiny):
    path = tiny(pooling="mean")
    (path / "1_Pooling/config.json").write_text('{"pooling_mode_max_tokens": true, "pooling_mode_mean_tokens": false}')
    with pytest.raises(ModelMisconfigured, match="pooling_mode_max_tokens"):
        find("tiny-colours", folder)
    (path / "1_Pooling/config.json").write_text('{"pooling_mode": "cls"}')
    assert find("tiny-colours", folder).pooling == "cls"
    (path / "1_Pooling/config.json").write_text("{")
    with pytest.raises(ModelMisconfigured, match="it is not JSON"):
        find("tiny-colours", folder)


async def test_a_file_that_is_no_network_is_named(folder, tiny):
    path = tiny()
    (path / "model.onnx").write_bytes(b"not ONNX")
    with pytest.raises(ModelMisconfigured, match="cannot be loaded by ONNX Runtime"):
        await embed(folder, ["x"])


async def test_the_width_is_known_once_it_has_started(folder, tiny):
    tiny()
    embedder = make_embedder("ort", "tiny-colours", models_dir=folder)
    with pytest.raises(ModelUnavailable):
        _ = embedder.dimension
    await embedder.start()
    assert embedder.dimension == 6
    await embedder.close()
