"""What every runtime promises, asked of every runtime."""

import asyncio
import random

import numpy as np
import pytest

from inference.errors import EmbedError, ModelUnavailable

WORDS = ["the", "zip", "archive", "reads", "rows", "of", "a", "table", "and", "writes", "them", "back", "in", "turn"]


def mixed(count: int, seed: int = 5) -> list[str]:
    print(f"seed {seed}")
    chance = random.Random(seed)
    return [f"{i} " + " ".join(chance.choices(WORDS, k=chance.choice([1, 3, 10, 40, 300]))) for i in range(count)]


async def test_shape_type_and_norm(embedder):
    vectors = await embedder.embed(["one", "two words", "three little words"])
    assert vectors.shape == (3, embedder.dimension) == (3, 384)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous and vectors.flags.writeable
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)


async def test_nothing_gives_nothing(embedder):
    vectors = await embedder.embed([])
    assert vectors.shape == (0, 384) and vectors.dtype == np.float32


async def test_vectors_come_in_the_order_of_the_texts(embedder):
    texts = mixed(40)
    together = await embedder.embed(texts)
    again = list(range(0, 40, 7))
    alone = np.concatenate([await embedder.embed([texts[i]]) for i in again])
    assert np.abs(together[again] - alone).max() <= 1e-6
    assert len({vector.tobytes() for vector in together}) == 40


async def test_company_does_not_change_a_vector(embedder):
    text = "Read a zip archive."
    alone = await embedder.embed([text])
    for company in (["a"], ["word " * 400], mixed(30, seed=6)):
        vectors = await embedder.embed([*company, text])
        assert np.abs(vectors[-1] - alone[0]).max() <= 1e-6


async def test_the_same_text_twice_is_the_same_vector(embedder):
    first, second = await embedder.embed(["again", "again"])
    assert np.abs(first - second).max() <= 1e-6


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t ",
        "héllo wörld",
        "机器学习",
        "👩‍👩‍👧‍👦 family",
        "\u202eright to left\u202c",
        "nul \\u0000 escape, \x00 byte",
        "\ufffd\ufffe\uffff",
        "combining e\u0301\u0301\u0301",
        "lone surrogate \ud800 inside",
        "x" * 5000,
    ],
)
async def test_odd_texts_have_a_vector(embedder, text):
    (vector,) = await embedder.embed([text])
    assert np.isfinite(vector).all() and vector.any()


@pytest.mark.parametrize("text", ["word " * 200_000, " " * 1_000_000 + "end", "y" * 1_000_000, "[]{}" * 250_000])
async def test_a_megabyte(embedder, text):
    async with asyncio.timeout(20):
        vectors = await embedder.embed(["short", text])
    assert np.isfinite(vectors).all() and vectors.any(axis=1).all()
    assert np.abs(vectors[:1] - await embedder.embed(["short"])).max() <= 1e-6


async def test_requests_at_once_do_not_mix(embedder):
    texts = mixed(24, seed=7)
    apart = await embedder.embed(texts)
    parts = await asyncio.gather(*(embedder.embed(texts[i : i + 3]) for i in range(0, 24, 3)))
    assert np.abs(np.concatenate(parts) - apart).max() <= 1e-6


async def test_a_question_has_a_vector_of_the_same_width(embedder):
    assert (await embedder.embed(["how?"], query=True)).shape == (1, embedder.dimension)


async def test_limits_are_usable(embedder):
    limits = embedder.limits
    assert limits.max_rows >= 1 and limits.concurrency >= 1
    assert limits.max_padded_tokens >= limits.max_tokens >= 1


async def test_embedding_before_start_says_so(unstarted):
    with pytest.raises(ModelUnavailable, match="not started") as caught:
        await unstarted.embed(["early"])
    assert caught.value.reason == "not_started"


async def test_embedding_after_close_is_an_error_of_the_family(embedder):
    await embedder.close()
    with pytest.raises(EmbedError):
        await embedder.embed(["late"])


async def test_close_may_come_first_and_twice(unstarted):
    await unstarted.close()
    await unstarted.close()


async def test_start_may_come_twice(embedder):
    await embedder.start()
    assert (await embedder.embed(["still here"])).shape == (1, 384)


async def test_the_bare_loop_runs_as_often_as_one_likes(embedder):
    call = embedder.bare(["one", "two words"])
    assert call is not None
    await asyncio.gather(call(), call())
    await call()


async def test_usage_counts_rows_tokens_and_failures(embedder):
    before = embedder.usage.rows, embedder.usage.tokens
    await embedder.embed(["one", "two words"])
    assert embedder.usage.rows - before[0] == 2 and embedder.usage.tokens > before[1]
    await embedder.close()
    with pytest.raises(EmbedError) as caught:
        await embedder.embed(["late"])
    assert embedder.usage.failures == {caught.value.reason: 1}
