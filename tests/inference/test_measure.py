import asyncio
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from inference.catalogue import describe, entries, named
from inference.embedder import Limits
from inference.errors import ModelUnavailable
from inference.front import Front
from inference.measure import LONG, SHORT, Effort, Point, make_texts, measure, run
from inference.minilm import TOKENIZER_FILE
from inference.openai import OpenAIEmbedder
from inference.plot import draw, nice_ticks
from inference.testing_api import FakeApi

QUICK = Effort(texts=64, seconds=0.05)


class Slow:
    """A runtime that takes 2 ms a request, one at a time, and whose bare loop takes 1 ms."""

    runtime, model, dimension = "slow", "m", 4
    limits = Limits(max_rows=8, max_padded_tokens=1024, max_tokens=128, concurrency=1)

    def __init__(self):
        self.turn = asyncio.Lock()
        self.rows, self.under_way, self.most_under_way, self.closed = [], 0, 0, False
        self.tokens_used = 0

    async def start(self): ...

    async def embed(self, texts, *, query=False, bulk=False):
        self.rows.append(len(texts))
        self.under_way += 1
        self.most_under_way = max(self.under_way, self.most_under_way)
        await self._compute(0.002)
        self.under_way -= 1
        self.tokens_used += 7 * len(texts)
        return np.ones((len(texts), 4), np.float32)

    def bare(self, texts):
        return lambda: self._compute(0.001)

    async def _compute(self, seconds):
        async with self.turn:
            await asyncio.sleep(seconds)

    async def close(self):
        self.closed = True


async def test_rates_are_those_of_the_runtime():
    slow = Slow()
    told: list[Point] = []
    points = await measure(Front(slow), Effort(texts=400, seconds=0.06, inflight=3), told.append)
    assert [(point.length, point.rows) for point in points] == [(k, n) for k in ("short", "long") for n in (1, 4, 8)]
    assert len(told) == 6 and slow.most_under_way == 3
    for point in points:
        assert 0.1 * 500 * point.rows < point.texts_per_s <= 500 * point.rows  # 2 ms a request; sleeping lasts longer
        assert point.tokens_per_s == pytest.approx(7 * point.texts_per_s) and point.tokens == 7
        assert point.request_ms >= 2
        best = max(p.bare_texts_per_s or 0 for p in points if p.length == point.length)
        assert point.share == pytest.approx(point.texts_per_s / best)
    assert 0.2 < (points[2].share or 0) < 0.9  # the bare loop is twice as fast, whatever the timer adds


async def test_a_request_is_never_over_the_limits():
    slow = Slow()
    await measure(Front(slow), Effort(texts=400, seconds=0.02, max_rows=3))
    assert max(slow.rows) == 3
    slow = Slow()
    points = await measure(Front(slow), Effort(texts=400, seconds=0.02, max_tokens=256))
    assert [point.rows for point in points if point.length == "long"] == [1, 2]


async def test_a_runtime_without_a_bare_loop_has_no_share():
    class Closed(Slow):
        bare = None  # type: ignore[assignment]  # so that it has none

    points = await run(Front(Closed()), QUICK)
    assert {(point.share, point.bare_texts_per_s) for point in points} == {(None, None)}


async def test_the_bare_loop_of_an_api_sends_the_same_requests():
    async with FakeApi(dimension=8) as api:
        front = Front(OpenAIEmbedder("m", api.url))
        await front.start()
        await front.embed(["a", "b"])
        asked = api.requests[-1].body
        await front.bare(["a", "b"])()
        assert api.requests[-1].body == asked and len(api.asked) == 3
        await front.close()


async def test_what_does_not_start_is_closed_all_the_same():
    class Dead(Slow):
        async def start(self):
            raise ModelUnavailable("down", reason="unavailable")

    dead = Dead()
    with pytest.raises(ModelUnavailable):
        await run(Front(dead), QUICK)
    assert dead.closed


@pytest.mark.parametrize("tokens", [SHORT, LONG])
def test_texts_have_the_tokens_they_should(tokens):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TOKENIZER_FILE))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    texts = make_texts(tokens, 50)
    assert {len(tokenizer.encode(text).ids) for text in texts} == {tokens}
    assert len(set(texts)) == 50 and texts == make_texts(tokens, 50)


# -- the plot -------------------------------------------------------------------------------------------------------


def points(bare=True):
    return [
        Point(length, tokens, rows, rate, rate * tokens, 1.0, rate * 2 if bare else None, 0.5 if bare else None)
        for length, tokens, rates in (("short", 12.0, (100.0, 400.0)), ("long", 128.0, (9.5, 12.0)))
        for rows, rate in zip((1, 16), rates, strict=True)
    ]


def test_the_plot_is_a_whole_picture():
    root = ElementTree.fromstring(draw(points(), 'a <model> & "more"'))
    space = "{http://www.w3.org/2000/svg}"
    words = [element.text for element in root.iter(f"{space}text")]
    assert 'a <model> & "more"' in words
    assert {"short texts, 12 tokens each", "long texts, 128 tokens each", "400", "9.5", "16"} <= set(words)
    assert len(list(root.iter(f"{space}circle"))) == 4
    assert len(list(root.iter(f"{space}polyline"))) == 4 + 2  # a line and a dashed one in each panel; the legend's
    width, height = float(root.get("width", "nan")), float(root.get("height", "nan"))
    places = [(float(dot.get("cx", "nan")), float(dot.get("cy", "nan"))) for dot in root.iter(f"{space}circle")]
    assert all(0 < across < width and 0 < up < height for across, up in places)
    (_, first), (_, second), *_ = places
    assert first > second  # up is more


def test_the_plot_without_a_bare_loop_has_no_line_for_it():
    assert "stroke-dasharray" not in draw(points(bare=False), "t")


@pytest.mark.parametrize(("most", "ticks"), [(95, [0, 25, 50, 75, 100]), (400, [0, 100, 200, 300, 400]), (0, [0, 1])])
def test_ticks_are_round(most, ticks):
    assert nice_ticks(most) == pytest.approx(ticks)


# -- the catalogue --------------------------------------------------------------------------------------------------


def test_every_runtime_is_in_the_catalogue_once_per_model():
    listed = [(entry.runtime, entry.model) for entry in entries()]
    assert {runtime for runtime, _ in listed} == {"ort", "triton", "openai", "cohere", "hash"}
    assert len(set(listed)) == len(listed)


async def test_a_model_is_described_by_its_server():
    async with FakeApi(dimension=5) as api:
        api.info = {"max_client_batch_size": 32, "max_input_length": 512}
        entry, state = await describe(Front(OpenAIEmbedder("intfloat/e5-base-v2", api.url)))
        assert (entry.dimension, entry.tokens, entry.licence) == (5, 512, "MIT")
        assert state == "it answers; at most 32 texts go into one request."
    entry, state = await describe(Front(OpenAIEmbedder("mine", api.url)))
    assert entry.dimension is None and "cannot be reached" in state


def test_a_model_that_is_not_listed_has_its_name():
    assert named("triton", "mine").to_json()["model"] == "mine"
    assert named("openai", "BAAI/bge-m3").dimension == 1024
