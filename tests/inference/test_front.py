import pytest

from inference.errors import ModelMisconfigured, ModelUnavailable
from inference.front import Front
from inference.hashing import HashEmbedder, hash_vectors
from inference.openai import OpenAIEmbedder
from inference.prefixes import Prefixes, choose, known
from inference.registry import ApiOptions, make_embedder
from inference.testing_api import Answer, FakeApi


@pytest.mark.parametrize(
    ("model", "query", "document"),
    [
        ("intfloat/e5-base-v2", "query: ", "passage: "),
        ("multilingual_e5_small", "query: ", "passage: "),
        ("BAAI/bge-small-en-v1.5", "Represent this sentence for searching relevant passages: ", ""),
        ("nomic-embed-text:latest", "search_query: ", "search_document: "),
        ("snowflake-arctic-embed-l-v2.0", "query: ", ""),
        ("all-minilm-l6-v2", "", ""),
        ("bge-m3", "", ""),
        ("jinaai/jina-embeddings-v2-small-en", "", ""),
        ("text-embedding-3-small", "", ""),
    ],
)
def test_what_models_want_before_a_text(model, query, document):
    assert known(model) == Prefixes(query, document)


def test_a_setting_wins_over_the_table_and_none_means_nothing():
    assert choose("e5-small", "q> ", "") == Prefixes("q> ", "passage: ")
    assert choose("e5-small", "none", "none") == Prefixes()
    assert choose("mine", "", "doc: ") == Prefixes("", "doc: ")


async def test_prefixes_are_put_before_questions_and_documents():
    front = make_embedder("hash", "e5-small")
    await front.start()
    (document,), (question,) = await front.embed(["a"]), await front.embed(["a"], query=True)
    assert document.tolist() == hash_vectors(["passage: a"])[0].tolist()
    assert question.tolist() == hash_vectors(["query: a"])[0].tolist()


async def test_usage_is_estimated_where_the_runtime_does_not_count():
    front = Front(HashEmbedder("hash-8"))
    with pytest.raises(ModelUnavailable):
        await front.embed(["early"])
    await front.start()
    await front.embed(["a", "b" * 40])
    usage = front.usage
    assert (usage.requests, usage.rows, usage.tokens, usage.exact) == (2, 2, 3 + 12, False)
    assert usage.failures == {"not_started": 1}


async def test_usage_is_the_servers_count_where_it_counts():
    async with FakeApi(dimension=8) as api:
        front = Front(OpenAIEmbedder("m", api.url))
        await front.start()
        begun = front.usage.tokens
        await front.embed(["four", "12345"])
        assert front.usage.exact and front.usage.tokens - begun == 9
        api.always = Answer(401)
        with pytest.raises(ModelMisconfigured):
            await front.embed(["a"])
        assert front.usage.failures == {"unauthenticated": 1} and front.usage.rows == 2
        await front.close()


async def test_files_are_refused_by_a_runtime_that_reads_text():
    with pytest.raises(ModelMisconfigured, match="takes text, not files"):
        await Front(HashEmbedder("hash")).embed_bytes([b"\x89PNG"])


def test_options_name_no_key():
    assert "sk-1" not in repr(ApiOptions(openai_key="sk-1"))


@pytest.mark.parametrize("api", [ApiOptions(dimensions=8), ApiOptions(input_type="clustering")])
def test_what_only_an_api_can_be_asked_is_refused_elsewhere(api):
    with pytest.raises(ModelMisconfigured, match="unset WALVEC_DIMENSIONS"):
        make_embedder("hash", "hash-4", api=api)
