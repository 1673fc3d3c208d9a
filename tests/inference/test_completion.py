import asyncio
import time

import pytest

from inference.completion import GREETING, MAX_CHARACTERS, Completer
from inference.errors import (
    EmbedError,
    ModelFailed,
    ModelMisconfigured,
    ModelOverloaded,
    ModelUnavailable,
    TextRefused,
)
from inference.testing_api import Answer, FakeApi
from inference.tokens import tallied

KEY = "sk-secret-0123456789"


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch):
    monkeypatch.setattr("inference.http_api.FIRST_PAUSE_S", 0.01)


@pytest.fixture
async def api():
    async with FakeApi(key=KEY) as server:
        yield server


@pytest.fixture
async def model(api):
    completer = Completer("gpt-4o", api.url, KEY, system_prompt="Be brief.", timeout_s=3, at_once=3)
    await completer.start()
    api.requests.clear()
    yield completer
    await completer.close()


def texts_asked(api):
    return sorted(request.said[-1][1] for request in api.requests)


def reply(content="yes", reason="stop", **message):
    choice = {"message": {"content": content, **message}, "finish_reason": reason}
    return Answer(200, {"choices": [choice], "usage": {"total_tokens": 7}})


async def test_every_text_gets_its_answer_and_the_server_counts(model, api):
    with tallied() as tally:
        found = await model.answer(["a", "bb", "ccc"])
    assert found.tolist() == ["about a", "about bb", "about ccc"] and found.shape == (3,)
    assert found.dtype == object
    assert tally.tokens == sum(len(text) + len(f"about {text}") for text in ("a", "bb", "ccc"))
    assert {tuple(request.said[0]) for request in api.requests} == {("system", "Be brief.")}
    assert all(request.body["model"] == "gpt-4o" for request in api.requests)
    assert {request.path for request in api.requests} == {"/v1/chat/completions"}


async def test_no_more_requests_run_at_once_than_are_allowed(model, api):
    api.delay_s = 0.02
    await asyncio.gather(model.answer([f"a{i}" for i in range(8)]), model.answer([f"b{i}" for i in range(8)]))
    assert api.most_running == 3


async def test_one_refused_row_costs_the_others_nothing(model, api):
    api.refuses = lambda text: text == "poison"
    with pytest.raises(TextRefused):
        await model.answer(["good", "poison", "fine"])
    api.requests.clear()
    with tallied() as tally:
        assert (await model.answer(["good"])).tolist() == ["about good"]
        assert (await model.answer(["fine"])).tolist() == ["about fine"]
    assert api.requests == []  # they had been answered, and paid for
    assert tally.tokens == len("good" + "about good" + "fine" + "about fine")
    await model.answer(["good"])
    assert texts_asked(api) == ["good"]  # once handed over, an answer is not kept


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reply("half an ans", "length"), "answer_cut"),
        (reply(None, "content_filter"), "filtered"),
        (reply(None, "stop", refusal="I cannot help with that"), "declined"),
        (reply("", None), "no_answer"),
        (reply("x" * (2 << 20)), "answer_too_long"),
        (Answer(400, {"error": {"message": "flagged by policy"}}), "invalid_argument"),
    ],
)
async def test_what_is_no_answer_is_a_refusal_and_never_an_answer(model, api, answer, reason):
    api.answers = lambda text: answer
    with pytest.raises(TextRefused) as caught:
        await model.answer(["row"])
    assert caught.value.reason == reason


async def test_an_answer_may_be_empty_on_purpose_and_holds_nothing_that_postgresql_cannot(model, api):
    api.answers = lambda text: reply("" if text == "e" else "a\0b")
    assert (await model.answer(["e", "z"])).tolist() == ["", "ab"]


@pytest.mark.parametrize(
    "body", ["[]", "{}", {"choices": []}, {"choices": [{"message": {"content": None}}]}, "no JSON"]
)
async def test_a_reply_of_another_shape_is_the_models_failure(model, api, body):
    api.answers = lambda text: Answer(200, body)
    with pytest.raises(ModelFailed) as caught:
        await model.answer(["row"])
    assert caught.value.reason == "bad_reply"


async def test_a_429_is_waited_out_where_it_is_short_and_reported_where_it_is_long(model, api):
    api.script.append(Answer(429, {}, {"retry-after-ms": "60"}))
    started = time.monotonic()
    assert (await model.answer(["x"])).tolist() == ["about x"]
    assert time.monotonic() - started >= 0.06
    api.script.append(Answer(429, {}, {"retry-after": "33"}))
    with pytest.raises(ModelOverloaded) as caught:
        await model.answer(["y"])
    assert caught.value.retry_after_s == pytest.approx(33, abs=3)


async def test_servers_that_fail_are_tried_again_and_then_reported(model, api):
    api.script.extend([Answer(500), Answer(hang_up=True)])
    assert (await model.answer(["x"])).tolist() == ["about x"]
    api.always = Answer(500)
    with pytest.raises(ModelFailed):
        await model.answer(["y"])
    api.always = Answer(503)
    with pytest.raises(ModelUnavailable):
        await model.answer(["y"])


async def test_silence_is_an_outage(api):
    model = Completer("m", api.url, KEY, timeout_s=0.3)
    await model.start()
    api.always = Answer(hang=True)
    with pytest.raises(ModelUnavailable) as caught:
        await model.answer(["x"])
    assert caught.value.reason == "timeout"
    await model.close()


async def test_an_outage_outranks_a_refusal(model, api):
    # Both happen in one batch: were the refusal raised, rows would be looked for while the server is down.
    api.answers = lambda text: Answer(503) if text == "x" else Answer(400)
    with pytest.raises(ModelUnavailable):
        await model.answer(["y", "x", "z"])


async def test_long_texts_are_cut_until_they_fit(model, api):
    api.max_characters = 1000
    text = "word " * 600
    (found,) = await model.answer([text])
    sent = found.removeprefix("about ")
    assert 500 < len(sent) <= 1000 and text.startswith(sent)
    api.max_characters = 0
    (found,) = await model.answer(["x" * (MAX_CHARACTERS + 9)])
    assert len(found) == MAX_CHARACTERS + len("about ")


async def test_the_start_proves_key_and_model(api):
    wrong = Completer("m", api.url, "sk-wrong-0123456789")
    with pytest.raises(ModelMisconfigured) as caught:
        await wrong.start()
    assert caught.value.reason == "unauthenticated" and "sk-wrong" not in str(caught.value)
    await wrong.close()
    right = Completer("m", api.url, KEY)
    await right.start()
    assert api.requests[-1].said == [("system", GREETING[0]), ("user", GREETING[1])]
    await right.close()


async def test_a_probe_asks_without_the_jobs_prompt(model, api):
    api.answers = lambda text: reply(None, refusal="Not with this prompt") if text != GREETING[1] else "yes"
    await model.probe()
    assert [request.said for request in api.requests] == [[("system", GREETING[0]), ("user", GREETING[1])]]
    api.always = Answer(500)
    with pytest.raises(ModelUnavailable):
        await model.probe()


async def test_no_message_quotes_a_row_a_prompt_or_the_key(model, api):
    secret = "the patient of room twelve is called Miller"
    api.answers = lambda text: Answer(400, {"error": {"message": f"cannot take {text!r} with {KEY}"}})
    with pytest.raises(EmbedError) as caught:
        await model.answer([secret])
    assert "Miller" not in str(caught.value) and KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://vllm:8000", "/v1/chat/completions"),
        ("http://vllm:8000/v1/chat/completions", "/v1/chat/completions"),
        (
            "https://me.openai.azure.com",
            "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
        ),
        (
            "https://me.openai.azure.com/openai/deployments/mine/chat/completions?api-version=2023-05-15",
            "/openai/deployments/mine/chat/completions?api-version=2023-05-15",
        ),
    ],
)
def test_the_call_is_found_under_any_base_url(url, path):
    assert Completer("gpt-4o", url, KEY)._path == path


def test_openai_itself_wants_a_key():
    with pytest.raises(ModelMisconfigured, match="needs a key"):
        Completer("gpt-4o")
