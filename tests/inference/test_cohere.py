import numpy as np
import pytest

from inference.cohere import CohereEmbedder
from inference.errors import ModelFailed, ModelMisconfigured, ModelOverloaded, TextRefused
from inference.hashing import hash_vectors
from inference.testing_api import Answer, FakeApi

KEY = "co-secret-0123456789"


@pytest.fixture
async def api():
    async with FakeApi(dimension=8, key=KEY) as server:
        yield server


@pytest.fixture
async def started(api):
    embedder = CohereEmbedder("embed-v4.0", api.url, KEY, request_timeout_s=5)
    await embedder.start()
    api.requests.clear()
    yield embedder
    await embedder.close()


async def test_documents_and_questions_are_told_apart(api, started):
    await started.embed(["d"])
    await started.embed(["q"], query=True)
    first, second = api.requests
    assert first.path == "/v2/embed" and first.headers["authorization"] == f"Bearer {KEY}"
    assert first.body == {
        "model": "embed-v4.0",
        "texts": ["d"],
        "input_type": "search_document",
        "embedding_types": ["float"],
        "truncate": "END",
    }
    assert second.body["input_type"] == "search_query"


async def test_an_input_type_that_is_set_is_used_for_both(api):
    embedder = CohereEmbedder("cohere/m", api.url, KEY, input_type="clustering", dimensions=4, request_timeout_s=5)
    await embedder.start()
    await embedder.embed(["q"], query=True)
    body = api.requests[-1].body
    assert (body["input_type"], body["output_dimension"], body["model"]) == ("clustering", 4, "m")
    await embedder.close()


async def test_at_most_96_texts_a_request_in_order(api, started):
    texts = [f"text {i}" for i in range(200)]
    assert np.abs(await started.embed(texts) - hash_vectors(texts, 8)).max() < 1e-6
    assert [len(texts) for texts in api.asked] == [96, 96, 8]
    assert started.limits.max_rows == 96


async def test_billed_tokens_are_kept(started):
    before = started.tokens_used
    await started.embed(["four", "12345"])
    assert started.tokens_used - before == 9


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        (Answer(401, {"message": "invalid api token"}), ModelMisconfigured, "unauthenticated"),
        (Answer(498, {"message": f"invalid token {KEY}"}), ModelMisconfigured, "unauthenticated"),
        (Answer(402, {"message": "add a payment method"}), ModelMisconfigured, "quota"),
        (Answer(429, {"message": "slow"}, {"retry-after": "9"}), ModelOverloaded, "rate_limited"),
        (Answer(400, {"message": "invalid request: text 1 is no text"}), TextRefused, "invalid_argument"),
        (Answer(200, {"embeddings": {"float": [[1.0] * 8]}}), ModelFailed, "bad_reply"),
        (Answer(200, {"embeddings": [[1.0] * 8] * 2}), ModelFailed, "bad_reply"),
        (Answer(200, '{"embeddings": {"float": [[1.0, NaN], [1.0, 1.0]]}}'), ModelMisconfigured, "dimension_changed"),
        (Answer(200, '{"embeddings": {"float": [[NaN,0,0,0,0,0,0,1]]'), ModelFailed, "bad_reply"),
    ],
)
async def test_errors(api, started, answer, kind, reason):
    api.script.append(answer)
    with pytest.raises(kind) as caught:
        await started.embed(["a", "b"])
    assert caught.value.reason == reason and KEY not in str(caught.value)


@pytest.mark.parametrize("path", ["", "/", "/v2", "/v2/embed", "/models/cohere/v2"])
async def test_base_urls(api, path):
    embedder = CohereEmbedder("m", api.url + path, KEY, request_timeout_s=5)
    await embedder.start()
    assert api.requests[-1].path == ("/models/cohere" if "models" in path else "") + "/v2/embed"
    await embedder.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "set WALVEC_COHERE_KEY"),
        ({"url": "cohere.example"}, "WALVEC_COHERE_URL"),
        ({"url": "http://[x", "key": "k"}, "WALVEC_COHERE_URL"),
        ({"key": "k", "input_type": "poem"}, "WALVEC_INPUT_TYPE"),
        ({"key": "k", "dimensions": 0}, "WALVEC_DIMENSIONS"),
        ({"key": "k", "request_timeout_s": 0}, "WALVEC_REQUEST_TIMEOUT_S"),
    ],
)
def test_settings_that_cannot_work(settings, words):
    with pytest.raises(ModelMisconfigured, match=words):
        CohereEmbedder("m", **settings)
