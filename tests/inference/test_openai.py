import asyncio
import json
import math
import time

import numpy as np
import pytest

from inference.errors import (
    EmbedError,
    ModelFailed,
    ModelMisconfigured,
    ModelOverloaded,
    ModelUnavailable,
    TextRefused,
)
from inference.hashing import hash_vectors
from inference.openai import OpenAIEmbedder, parse_url
from inference.testing_api import Answer, FakeApi

KEY = "sk-secret-0123456789"


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch):
    monkeypatch.setattr("inference.http_api.FIRST_PAUSE_S", 0.01)


@pytest.fixture
async def api():
    async with FakeApi(dimension=8) as server:
        yield server


@pytest.fixture
async def started(api):
    embedder = OpenAIEmbedder("m", api.url, request_timeout_s=5)
    await embedder.start()
    api.requests.clear()
    yield embedder
    await embedder.close()


def complaint(status, message, code=None):
    return Answer(status, {"error": {"message": message, "code": code}})


# -- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "origin", "path"),
    [
        ("https://api.openai.com", "https://api.openai.com", "/v1/embeddings"),
        ("https://api.openai.com/v1/", "https://api.openai.com", "/v1/embeddings"),
        ("http://tei:8080", "http://tei:8080", "/v1/embeddings"),
        ("http://ollama:11434/v1/embeddings", "http://ollama:11434", "/v1/embeddings"),
        ("https://gate.example/api/v1?team=7", "https://gate.example", "/api/v1/embeddings?team=7"),
        ("http://[::1]:8000/v1", "http://[::1]:8000", "/v1/embeddings"),
        (
            "https://r.openai.azure.com",
            "https://r.openai.azure.com",
            "/openai/deployments/my%20model/embeddings?api-version=2024-10-21",
        ),
        (
            "https://r.openai.azure.com/openai/deployments/d/embeddings?api-version=2023-05-15",
            "https://r.openai.azure.com",
            "/openai/deployments/d/embeddings?api-version=2023-05-15",
        ),
        ("https://r.openai.azure.com/openai/v1", "https://r.openai.azure.com", "/openai/v1/embeddings"),
    ],
)
def test_base_urls(url, origin, path):
    endpoint = parse_url(url, "my model")
    assert (endpoint.origin, endpoint.path) == (origin, path)


@pytest.mark.parametrize("url", ["api.openai.com", "grpc://h:1", "http://", "http://h:port", "http://u:p@h/v1"])
def test_what_is_not_a_base_url(url):
    with pytest.raises(ModelMisconfigured, match="WALVEC_OPENAI_URL is not usable") as caught:
        OpenAIEmbedder("m", url)
    assert "u:p" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "https://r.openai.azure.com"])
def test_a_hosted_api_without_a_key_is_refused_before_anything_is_sent(url):
    with pytest.raises(ModelMisconfigured, match="set WALVEC_OPENAI_KEY"):
        OpenAIEmbedder("m", url)


def test_a_key_with_a_line_break_is_refused_and_not_shown():
    with pytest.raises(ModelMisconfigured) as caught:
        OpenAIEmbedder("m", "http://h", "sk-a\nX-Evil: 1")
    assert "sk-a" not in str(caught.value)


# -- requests and replies -------------------------------------------------------------------------------------------


async def test_key_model_and_texts_are_sent(api):
    api.key = KEY
    embedder = OpenAIEmbedder("m", api.url, KEY + "\n", request_timeout_s=5)
    await embedder.start()
    await embedder.embed(["a", "b"])
    request = api.requests[-1]
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.body == {"model": "m", "input": ["a", "b"], "encoding_format": "base64"}
    await embedder.close()


async def test_azure_has_its_own_header(monkeypatch, api):
    monkeypatch.setattr("inference.openai.AZURE_HOSTS", ("127.0.0.1",))
    embedder = OpenAIEmbedder("dep", api.url, KEY, request_timeout_s=5)
    await embedder.start()
    assert api.requests[-1].path == "/openai/deployments/dep/embeddings?api-version=2024-10-21"
    assert api.requests[-1].headers["api-key"] == KEY and "authorization" not in api.requests[-1].headers
    await embedder.close()
    entra = OpenAIEmbedder("dep", api.url, "Bearer ey.token", request_timeout_s=5)
    await entra.start()
    assert api.requests[-1].headers["authorization"] == "Bearer ey.token"
    await entra.close()


async def test_dimensions_are_asked_for_and_checked(api):
    embedder = OpenAIEmbedder("m", api.url, dimensions=5, request_timeout_s=5)
    await embedder.start()
    assert embedder.dimension == 5 and api.requests[-1].body["dimensions"] == 5
    api.bend = lambda reply: {**reply, "data": [{"index": 0, "embedding": [1.0] * 8}]}
    await embedder.close()
    with pytest.raises(ModelMisconfigured, match="gives 8 dimensions, not the 5"):
        await embedder.start()
    await embedder.close()


async def test_numbers_are_asked_for_where_base64_is_refused(api):
    api.serves_base64 = False
    embedder = OpenAIEmbedder("m", api.url, request_timeout_s=5)
    await embedder.start()
    assert np.abs(await embedder.embed(["a"]) - hash_vectors(["a"], 8)).max() < 1e-6
    assert api.requests[-1].body["encoding_format"] == "float"
    await embedder.close()


async def test_numbers_are_read_though_base64_was_asked_for(api, started):
    api.bend = lambda reply: {"data": [{"embedding": [0.5] * 8}]}
    assert (await started.embed(["a"])).tolist() == [[0.5] * 8]


async def test_vectors_follow_the_index_not_the_order(api, started):
    texts = [f"text {i}" for i in range(5)]
    api.bend = lambda reply: {**reply, "data": reply["data"][::-1]}
    assert np.array_equal(await started.embed(texts), hash_vectors(texts, 8))


async def test_the_servers_count_of_tokens_is_kept(started):
    before = started.tokens_used
    await started.embed(["four", "12345"])
    assert started.tokens_used - before == 9


async def test_limits_of_tei_are_learnt(api):
    api.info = {"max_client_batch_size": 4, "max_input_length": 512}
    embedder = OpenAIEmbedder("m", api.url, request_timeout_s=5)
    await embedder.start()
    assert (embedder.limits.max_rows, embedder.limits.max_tokens) == (4, 512)
    api.requests.clear()
    await embedder.embed([str(i) for i in range(10)])
    assert [len(texts) for texts in api.asked] == [4, 4, 2]
    await embedder.close()


async def test_limits_of_vllm_are_learnt(api):
    api.models = {"data": [{"id": "other", "max_model_len": 1}, {"id": "m", "max_model_len": 2048}]}
    embedder = OpenAIEmbedder("m", api.url, request_timeout_s=5)
    await embedder.start()
    assert embedder.limits.max_tokens == 2048
    assert await embedder.served() == ["m", "other"]
    await embedder.close()


# -- what is too much -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "batch size 20 > maximum allowed batch size 7",
        "Value error, batch size is invalid, it should not be larger than 7.: input.contents",
        "Invalid 'input': array too long. Expected an array with maximum length 7, but got an array with length 20",
        "invalid request: total number of texts must be at most 7",
    ],
)
async def test_the_most_rows_a_server_takes_is_learnt_from_its_words(api, started, words):
    texts = [f"text {i}" for i in range(20)]
    api.script.append(complaint(400, words))
    assert np.array_equal(await started.embed(texts), hash_vectors(texts, 8))
    assert [len(texts) for texts in api.asked] == [20, 7, 7, 6]
    assert started.limits.max_rows == 7


async def test_a_request_that_is_too_large_is_halved(api, started):
    api.script.append(Answer(413, "<html>too large</html>"))
    texts = [f"text {i}" for i in range(5)]
    assert np.array_equal(await started.embed(texts), hash_vectors(texts, 8))
    assert [len(texts) for texts in api.asked] == [5, 3, 2]


async def test_a_text_that_is_too_long_is_cut_and_the_others_are_not(api, started):
    api.max_characters = 100
    texts = ["short", "x" * 400, "also short", "y" * 100]
    vectors = await started.embed(texts)
    assert np.array_equal(vectors, hash_vectors(["short", "x" * 95, "also short", "y" * 100], 8))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (413, "`inputs` must have less than 512 tokens. Given: 738"),
        (400, "the input length exceeds the context length"),
        (500, "input (738 tokens) is too large to process. increase the physical batch size (current batch size: 512)"),
        (400, "Invalid 'input[3]': maximum input length is 8192 tokens."),
    ],
)
async def test_too_long_in_the_words_of_many_servers(api, started, status, words):
    api.script.extend([complaint(status, words)] * (3 if status == 500 else 1))
    (vector,) = await started.embed(["z" * 1000])
    sent = api.asked[-1][0]
    assert 400 < len(sent) < 700 and np.array_equal(vector, hash_vectors([sent], 8)[0])


async def test_a_text_of_which_nothing_fits_is_refused(api, started):
    long = complaint(400, "maximum context length exceeded")
    api.script.extend([long] * 9)
    with pytest.raises(TextRefused) as caught:
        await started.embed(["w" * 10_000])
    assert caught.value.reason == "too_long"


# -- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        (complaint(401, f"Incorrect API key provided: {KEY}"), ModelMisconfigured, "unauthenticated"),
        (complaint(403, "no access"), ModelMisconfigured, "permission_denied"),
        (complaint(429, "You exceeded your current quota", "insufficient_quota"), ModelMisconfigured, "quota"),
        (complaint(404, "The model does not exist"), ModelMisconfigured, "not_found"),
        (Answer(308, "", {"location": "https://elsewhere/"}), ModelMisconfigured, "not_found"),
        (complaint(400, "model has no embedding head"), ModelMisconfigured, "bad_contract"),
        (complaint(503, "loading"), ModelUnavailable, "unavailable"),
        (Answer(502, "<html>Bad gateway</html>"), ModelUnavailable, "unavailable"),
        (complaint(500, "internal"), ModelUnavailable, "internal"),
        (Answer(200, "<html>Log in</html>"), ModelUnavailable, "bad_reply"),
    ],
)
async def test_starting_says_who_must_mend_it(api, answer, kind, reason):
    api.always = answer
    embedder = OpenAIEmbedder("m", api.url, KEY, request_timeout_s=5)
    with pytest.raises(EmbedError) as caught:
        await embedder.start()
    assert type(caught.value) is kind and caught.value.reason == reason
    assert KEY not in str(caught.value) and "127.0.0.1" in str(caught.value)
    await embedder.close()


async def test_a_refused_text_is_refused_and_a_refused_word_is_not_its_fault(api, started):
    api.refuses = lambda text: text == "poison"
    with pytest.raises(TextRefused):
        await started.embed(["fine", "poison"])
    api.refuses = lambda text: True
    with pytest.raises(ModelMisconfigured, match="refuses every input"):
        await started.embed(["fine"])


@pytest.mark.parametrize("status", [500, 424])
async def test_a_failure_is_the_requests_only_if_a_short_word_passes(api, started, status):
    failing = complaint(status, "CUDA error")
    api.script.extend([failing] * (3 if status == 500 else 1))
    with pytest.raises(ModelFailed):
        await started.embed(["a"])
    api.always = failing
    with pytest.raises(ModelUnavailable, match="short word fails too"):
        await started.embed(["a"])


async def test_a_model_that_is_gone_is_waited_for(api, started):
    api.always = complaint(404, "model not found")
    with pytest.raises(ModelUnavailable) as caught:
        await started.embed(["a"])
    assert caught.value.reason == "not_found"


def bent(**changes):
    return lambda reply: {**reply, "data": [{**item, **changes} for item in reply["data"]]}


@pytest.mark.parametrize(
    "bend",
    [
        lambda reply: {},
        lambda reply: [],
        lambda reply: {"data": None},
        lambda reply: {**reply, "data": reply["data"][1:]},
        lambda reply: {**reply, "data": [*reply["data"], *reply["data"]]},
        lambda reply: {**reply, "data": reply["data"] + reply["data"][:1]},
        bent(index=0),
        bent(index="1"),
        bent(embedding=[math.nan] + [1.0] * 7),
        bent(embedding=[1e39] + [1.0] * 7),
        bent(embedding=[10**400] + [1] * 7),
        bent(embedding=[0.0] * 8),
        bent(embedding=[]),
        bent(embedding=None),
        bent(embedding=["x"] * 8),
        bent(embedding="%%%"),
        bent(embedding="AAAA"),
        bent(embedding=[[1.0] * 8]),
    ],
)
async def test_a_bad_reply_is_never_a_vector(api, started, bend):
    whole = lambda reply: reply if len(reply["data"]) == 1 else bend(reply)  # noqa: E731
    api.bend = whole
    with pytest.raises(ModelFailed) as caught:
        await started.embed(["a", "b"])
    assert caught.value.reason == "bad_reply"


async def test_another_width_is_for_a_person(api, started):
    api.dimension = 9
    with pytest.raises(ModelMisconfigured, match="9 dimensions instead of 8"):
        await started.embed(["a"])


async def test_a_message_that_quotes_a_row_or_the_key_is_kept_back(api):
    embedder = OpenAIEmbedder("m", api.url, KEY, request_timeout_s=5)
    await embedder.start()
    secret = "the patient's name is Ada Example"
    api.script.append(complaint(400, f"cannot encode: {secret}"))
    with pytest.raises(TextRefused, match="withheld") as caught:
        await embedder.embed([secret])
    assert "Ada" not in str(caught.value)
    api.script.append(complaint(400, f"bad header {KEY}"))
    with pytest.raises(TextRefused, match=r"\*\*\*") as caught:
        await embedder.embed(["something else"])
    assert KEY not in str(caught.value)
    await embedder.close()


# -- the wire: shared by all HTTP runtimes --------------------------------------------------------------------------


async def test_a_short_pause_is_waited_out(api, started):
    api.script.append(Answer(429, {}, {"retry-after-ms": "200"}))
    began = time.monotonic()
    await started.embed(["a"])
    assert time.monotonic() - began >= 0.2 and len(api.asked) == 2


async def test_a_long_pause_is_the_callers_and_holds_back_everybody(api, started):
    api.script.append(Answer(429, {"error": {"message": "slow down"}}, {"retry-after": "20"}))
    with pytest.raises(ModelOverloaded) as caught:
        await started.embed(["a"])
    assert caught.value.retry_after_s == 20 and caught.value.reason == "rate_limited"
    with pytest.raises(ModelOverloaded) as caught:
        await started.embed(["b"])
    assert 19 < (caught.value.retry_after_s or 0) <= 20
    assert len(api.asked) == 1


@pytest.mark.parametrize("answer", [Answer(503), Answer(500), Answer(hang_up=True), Answer(body={"a": 1}, cut=True)])
async def test_a_hiccup_is_mended_by_another_try(api, started, answer):
    api.script.extend([answer, answer])
    assert np.array_equal(await started.embed(["a"]), hash_vectors(["a"], 8))
    assert len(api.asked) == 3


async def test_a_connection_that_keeps_breaking_is_an_outage(api, started):
    api.always = Answer(hang_up=True)
    with pytest.raises(ModelUnavailable) as caught:
        await started.embed(["a"])
    assert caught.value.reason == "broken"


async def test_an_idle_connection_that_was_closed_costs_nothing(api, started):
    api.drop_connections()
    await started.embed(["a"])


async def test_a_silent_server_costs_the_deadline_and_no_more(api):
    embedder = OpenAIEmbedder("m", api.url, request_timeout_s=0.3)
    await embedder.start()
    api.always = Answer(hang=True)
    began = time.monotonic()
    with pytest.raises(ModelUnavailable) as caught:
        await embedder.embed(["a"])
    assert caught.value.reason == "timeout" and time.monotonic() - began < 2
    await embedder.close()


async def test_nobody_there_is_an_outage():
    async with FakeApi() as server:
        url = server.url
    embedder = OpenAIEmbedder("m", url, request_timeout_s=5)
    with pytest.raises(ModelUnavailable) as caught:
        await embedder.start()
    assert caught.value.reason == "unavailable"
    await embedder.close()


async def test_tls_where_there_is_none_is_for_a_person(api):
    embedder = OpenAIEmbedder("m", api.url.replace("http:", "https:"), request_timeout_s=5)
    with pytest.raises(ModelMisconfigured, match="does not speak TLS") as caught:
        await embedder.start()
    assert caught.value.reason == "not_tls"
    await embedder.close()


async def test_closing_ends_what_is_under_way(api, started):
    api.always = Answer(hang=True)
    under_way = asyncio.create_task(started.embed(["a"]))
    while not api.asked:
        await asyncio.sleep(0.01)
    await started.close()
    with pytest.raises(EmbedError):
        await asyncio.wait_for(under_way, 3)


async def test_a_cancelled_request_frees_its_connection(api, started):
    api.always = Answer(hang=True)
    for _ in range(70):  # more than the pool holds
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(started.embed(["a"]), 0.01)
    api.always = None
    await started.embed(["b"])


async def test_connections_are_kept(api, started):
    before = api.connections
    for i in range(10):
        await started.embed([str(i)])
    assert api.connections == before


def test_a_body_is_plain_json():
    embedder = OpenAIEmbedder("m", "http://h")
    assert json.loads(embedder._encode(["é \x00 \n"], False))["input"] == ["é \x00 \n"]
