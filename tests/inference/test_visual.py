import numpy as np
import pytest

from inference import visual
from inference.egress import Allowed
from inference.errors import ModelFailed, TextRefused
from inference.front import Front
from inference.hashing import hash_vectors
from inference.images import ImageReader, ImageRules
from inference.testing import FakeModel, FakeTriton
from inference.triton import CANARY_FILE, TritonEmbedder
from inference.visual import ImageEmbedder


def picture(i):
    return CANARY_FILE.replace(b"IDAT", b"IDAT%04d" % i)


def vector(content):
    return hash_vectors([content.decode("utf-8", "surrogateescape")], 8)[0]


class Reader(ImageReader):
    """Reads ``img:N``; counts how many are held."""

    def __init__(self):
        super().__init__(ImageRules(Allowed()))
        self.fails = {}
        self.read_texts = []

    async def read(self, text):
        self.read_texts.append(text)
        if text in self.fails:
            raise self.fails[text]
        return picture(int(text.removeprefix("img:")))


@pytest.fixture
def served():
    return FakeModel(
        dimension=8, declared_dimension=8, inputs=(("IMAGE", "BYTES", (-1, 1)),), max_batch_size=0, name="clip"
    )


@pytest.fixture
async def triton(served):
    async with FakeTriton(served) as server:
        yield server


@pytest.fixture
async def model(triton):
    embedder = ImageEmbedder(Front(TritonEmbedder("clip", [triton.url], request_timeout_s=10)), Reader())
    await embedder.start()
    triton.model.requests.clear()
    yield embedder
    await embedder.close()


async def test_rows_name_images_where_the_model_takes_nothing_else(model, served):
    assert model.visual
    texts = [f"img:{i}" for i in range(20)] + ["img:3"]
    found = await model.embed(texts)
    expected = np.stack([vector(picture(int(text[4:]))) for text in texts])
    assert found.shape == (21, 8) and np.abs(found - expected).max() < 1e-6
    assert [len(rows) for rows in served.requests] == [8, 8, 4]  # never more than a portion, and none twice
    assert len(model._reader.read_texts) == 20


async def test_a_model_of_texts_is_given_the_texts(served, triton):
    served.inputs = ()
    embedder = ImageEmbedder(Front(TritonEmbedder("clip", [triton.url])), Reader())
    await embedder.start()
    assert not embedder.visual
    assert np.abs(await embedder.embed(["img:1"]) - vector(b"img:1")).max() < 1e-6
    await embedder.close()


async def test_who_says_that_rows_name_images_is_believed(served, triton):
    served.inputs = (("TEXT", "BYTES", (-1, 1)), ("IMAGE", "BYTES", (-1, 1)))
    served.optional = ("TEXT", "IMAGE")
    embedder = ImageEmbedder(Front(TritonEmbedder("clip", [triton.url])), Reader(), visual=True)
    await embedder.start()
    assert np.abs(await embedder.embed(["img:5"]) - vector(picture(5))).max() < 1e-6
    await embedder.close()


async def test_the_canary_is_a_picture(model, served):
    await model.probe()
    assert served.requests == [[CANARY_FILE]] and model._reader.read_texts == []


async def test_one_bad_image_costs_the_others_nothing(model, served):
    reader = model._reader
    reader.fails["img:7"] = TextRefused("gone", reason="image_missing")
    texts = [f"img:{i}" for i in range(12)]
    with pytest.raises(TextRefused):
        await model.embed(texts)
    served.requests.clear()
    reader.read_texts.clear()
    good = [text for text in texts if text != "img:7"]
    found = np.concatenate([await model.embed(good[:5]), await model.embed(good[5:])])
    assert served.requests == [] and reader.read_texts == []  # fetched and embedded before
    assert np.abs(found - np.stack([vector(picture(int(text[4:]))) for text in good])).max() < 1e-6
    await model.embed(good[:1])
    assert reader.read_texts == good[:1]  # handed over, and not kept


async def test_an_image_that_is_away_outranks_one_that_is_bad(model):
    model._reader.fails = {
        "img:1": TextRefused("gone", reason="image_missing"),
        "img:2": ModelFailed("busy", reason="image_unavailable", retry_after_s=7),
    }
    with pytest.raises(ModelFailed) as caught:
        await model.embed(["img:0", "img:1", "img:2"])
    assert caught.value.retry_after_s == 7


async def test_an_image_that_the_model_refuses_is_a_refusal(model, served):
    bad = picture(2)
    served.refuses = lambda content: content == bad
    with pytest.raises(TextRefused):
        await model.embed(["img:1", "img:2"])
    assert (await model.embed(["img:1"])).shape == (1, 8)


async def test_only_so_many_images_are_held(model, monkeypatch):
    monkeypatch.setattr(visual, "PORTION", 2)
    held, most = 0, 0
    read, embed = model._reader.read, model._front.embed_bytes

    async def counting_read(text):
        nonlocal held, most
        held += 1
        most = max(most, held)
        return await read(text)

    async def counting_embed(contents, *, bulk=False):
        nonlocal held
        found = await embed(contents, bulk=bulk)
        held -= len(contents)
        return found

    monkeypatch.setattr(model._reader, "read", counting_read)
    monkeypatch.setattr(model._front, "embed_bytes", counting_embed)
    await model.embed([f"img:{i}" for i in range(30)])
    assert 2 < most <= 4
