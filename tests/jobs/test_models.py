"""What jobs ask for, and the models that they get."""

import asyncio
from types import MappingProxyType

import numpy as np
import pytest
from structlog.testing import capture_logs

from cdc import config
from cdc.errors import ConfigError
from cdc.flow.disposition import Failure
from cdc.job_models import JobModels
from cdc.jobs import EmbeddingSpec, JobKind
from cdc.ports import EmbedFailed
from inference.hashing import hash_vectors
from inference.minilm import TOKENIZER_FILE, weights_file
from inference.testing import FakeModel, FakeTriton
from inference.testing_api import FakeApi
from inference.triton import CANARY_FILE

KEY, OTHER = "sk-daemon-0123456789", "sk-job-0123456789"
EMBEDDING, COMPLETION = JobKind.EMBEDDING, JobKind.COMPLETION
LANTERN = "microsoft/all-MiniLM-L12-v2"


def spec(model=LANTERN, runtime="ort", rows=None, **params):
    return EmbeddingSpec("title", "title_embedding", model, runtime, MappingProxyType(params), batch_rows=rows)


@pytest.fixture
async def jobs():
    made = []

    def make(environ=None, **settings):
        loaded = config.load({f"WALVEC_{name.upper()}": value for name, value in settings.items()})
        made.append(JobModels(loaded, environ or {}))
        return made[-1]

    yield make
    for models in made:
        await models.close()


def problem(jobs, asked, kind=EMBEDDING, **settings):
    with pytest.raises(ConfigError) as caught:
        jobs(**settings).choose(asked, kind)
    return str(caught.value)


# -- the ort runtime --------------------------------------------------------------------------------------------------


async def test_lanterns_own_insert_gets_a_model_that_says_what_it_is(jobs):
    with capture_logs() as logs:
        models = jobs()
        job = models.choose(spec(), EMBEDDING)
        models.choose(spec(), EMBEDDING)
    assert job.name == job.model.name == "all-minilm-l6-v2"
    assert "stands in for microsoft/all-MiniLM-L12-v2" in job.note and job.model.name == job.name
    (warning,) = logs  # once, and loudly
    assert (warning["event"], warning["log_level"]) == ("model_stand_in", "warning")
    assert await job.model.start() == 384
    vectors = await job.model.embed(["My articles title"])
    assert vectors.shape == (1, 384) and np.linalg.norm(vectors) == pytest.approx(1, abs=1e-5)


async def test_the_real_model_is_used_where_its_files_are(jobs, tmp_path):
    folder = tmp_path / "microsoft/all-MiniLM-L12-v2"
    folder.mkdir(parents=True)
    (folder / "model.onnx").symlink_to(weights_file())
    (folder / "tokenizer.json").symlink_to(TOKENIZER_FILE)
    for models, asked in (
        (jobs(models_dir=str(tmp_path)), spec()),
        (jobs(), spec(data_path=str(tmp_path), cache=True)),
    ):
        job = models.choose(asked, EMBEDDING)
        assert job.name == LANTERN and not job.note
        assert await job.model.start() == 384
    assert job.recipe != jobs().choose(spec(), EMBEDDING).recipe  # rows are embedded anew with it


def test_a_stand_in_can_be_refused(jobs):
    said = problem(jobs, spec(), model_stand_in="off")
    assert LANTERN in said and "WALVEC_MODEL_STAND_IN" in said


@pytest.mark.parametrize("model", ["BAAI/bge-base-en", "microsoft/all-mpnet-base-v2", "nonsense", "../../etc"])
def test_other_models_that_are_not_here_are_refused_by_naming_those_that_are(jobs, model):
    said = problem(jobs, spec(model))
    assert model in said and "all-minilm-l6-v2" in said and "WALVEC_MODELS_DIR" in said


def test_images_want_triton(jobs):
    assert "Triton" in problem(jobs, spec("clip/ViT-B-32-visual"))


# -- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (spec(runtime="opnai"), "did you mean openai?"),
        (spec(runtime="openai", api_tokn="x"), "did you mean api_token?"),
        (spec(runtime="ort", base_url="http://x"), "no parameter 'base_url'"),
        (spec(runtime="openai", api_token="x", dimensions="many"), "dimensions takes a whole number"),
        (spec(runtime="cohere", api_token="x", input_type="query"), "input_type takes one of search_document"),
        (spec(runtime="openai", api_token="x", system_prompt="Hi"), "job_type to completion"),
        (spec(runtime="openai"), "needs a key"),
        (spec(runtime="cohere"), "needs a key"),
        (spec(runtime="triton"), "WALVEC_TRITON_URL"),
        (spec(runtime="openai", base_url="ftp://x", api_token="x"), "http://"),
    ],
)
def test_what_will_not_do_is_said_in_a_sentence(jobs, asked, words):
    assert words in problem(jobs, asked)


def test_a_wrong_parameter_does_not_show_its_value(jobs):
    assert "hush" not in problem(jobs, spec(runtime="openai", api_token=["hush"]))


def test_completions_want_the_openai_runtime(jobs):
    assert "openai runtime alone" in problem(jobs, spec(), COMPLETION)
    assert "no dimensions" in problem(jobs, spec("gpt-4o", "openai", api_token="x", dimensions=3), COMPLETION)


@pytest.mark.parametrize(
    ("asked", "settings", "rows"),
    [
        (spec(), {}, 1000),
        (spec("BAAI/bge-large-en", "triton", url="grpc://x:1"), {}, 60),
        (spec("openai/text-embedding-3-small", "openai", api_token="x"), {}, 500),
        (spec("embed-english-v3.0", "cohere", api_token="x"), {}, 5000),
        (spec("unheard-of", "hash"), {}, 100),
        (spec(rows=7), {}, 7),
        (spec(rows=700), {"batch_rows": "64"}, 64),
    ],
)
def test_batches_are_as_the_job_says_or_as_lantern_made_them(jobs, asked, settings, rows):
    assert jobs(**settings).choose(asked, EMBEDDING).model._batch_rows == rows


async def test_batches_never_exceed_the_models_own_limits(jobs):
    job = jobs().choose(spec(rows=100_000), EMBEDDING)
    await job.model.start()
    assert max(map(len, job.model.pack([3] * 2000))) == 256


# -- sharing ----------------------------------------------------------------------------------------------------------


def test_equal_wishes_share_a_model_and_others_do_not(jobs):
    models = jobs()
    url = {"base_url": "http://x:1"}
    first = models.choose(spec("m", "openai", **url), EMBEDDING)
    same = models.choose(spec("m", "openai", url="http://x:1"), EMBEDDING)
    assert first.model is same.model and first.recipe == same.recipe
    smaller = models.choose(spec("m", "openai", rows=5, **url), EMBEDDING)
    assert smaller.model is not first.model and smaller.recipe == first.recipe
    assert smaller.model._embedder is first.model._embedder  # other batches, one model behind them
    for other in (
        spec("m", "openai", base_url="http://y:1"),
        spec("m", "openai", **url, api_token=OTHER),
        spec("n", "openai", **url),
    ):
        assert models.choose(other, EMBEDDING).model is not first.model
    assert models.choose(spec("m", "openai", **url, dimensions=8), EMBEDDING).recipe != first.recipe
    said = models.choose(spec("m", "openai", **url, system_prompt="A"), COMPLETION)
    assert said.recipe != models.choose(spec("m", "openai", **url, system_prompt="B"), COMPLETION).recipe


async def test_closing_closes_every_model_once(jobs):
    models = jobs()
    model = models.choose(spec(), EMBEDDING).model
    await model.start()
    await models.close()
    with pytest.raises(EmbedFailed) as caught:
        await model.embed(["x"])
    assert caught.value.failure is Failure.UNAVAILABLE


# -- keys -------------------------------------------------------------------------------------------------------------


async def key_sent(jobs, api, asked, kind=EMBEDDING, environ=None, **settings):
    """Return the key that a job's first request carries."""
    model = jobs(environ, **settings).choose(asked, kind).model
    await model.start()
    found = next(r.headers.get("authorization", "") for r in api.requests if r.method == "POST")
    api.requests.clear()
    return found.removeprefix("Bearer ")


@pytest.mark.parametrize(("runtime", "kind"), [("openai", EMBEDDING), ("openai", COMPLETION), ("cohere", EMBEDDING)])
async def test_the_daemons_key_goes_to_the_daemons_server_alone(jobs, runtime, kind):
    async with FakeApi(dimension=8) as own, FakeApi(dimension=8) as foreign:
        mine = {f"{runtime}_url": own.url, f"{runtime}_key": KEY}
        assert await key_sent(jobs, own, spec("m", runtime), kind, **mine) == KEY
        assert await key_sent(jobs, own, spec("m", runtime, base_url=f"{own.url}/v1"), kind, **mine) == KEY
        assert await key_sent(jobs, own, spec("m", runtime, api_token=OTHER), kind, **mine) == OTHER
        assert await key_sent(jobs, foreign, spec("m", runtime, base_url=foreign.url), kind, **mine) == ""
        asked = spec("m", runtime, base_url=foreign.url, api_token=OTHER)
        assert await key_sent(jobs, foreign, asked, kind, **mine) == OTHER


async def test_a_secret_can_be_named(jobs, tmp_path):
    (tmp_path / "key").write_text(OTHER + "\n")
    async with FakeApi(dimension=8) as api:
        where = {"base_url": api.url}
        named = spec("m", "openai", **where, api_token="env:TEAM_KEY")
        assert await key_sent(jobs, api, named, environ={"TEAM_KEY": OTHER}) == OTHER
        filed = spec("m", "openai", **where, api_token="file:key")
        assert await key_sent(jobs, api, filed, job_secrets=str(tmp_path)) == OTHER
        entra = spec("m", "openai", **where, azure_entra_token="env:TEAM_KEY")
        assert await key_sent(jobs, api, entra, environ={"TEAM_KEY": OTHER}) == OTHER


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("env:WALVEC_OPENAI_KEY", "the daemon's own"),
        ("env:PGPASSWORD", "the daemon's own"),
        ("env:NOTHING", "not set"),
        ("file:key", "WALVEC_JOB_SECRETS"),
    ],
)
def test_a_job_cannot_name_what_is_not_for_jobs(jobs, value, words):
    with pytest.raises(ConfigError, match=words):
        jobs({"WALVEC_OPENAI_KEY": KEY, "PGPASSWORD": KEY}).choose(spec("m", "openai", api_token=value), EMBEDDING)


def test_a_file_outside_of_the_folder_is_refused(jobs, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "key").write_text(OTHER)
    (tmp_path / "in/link").symlink_to(tmp_path / "key")
    for name in ("../key", str(tmp_path / "key"), "link"):
        said = problem(jobs, spec("m", "openai", api_token=f"file:{name}"), job_secrets=str(tmp_path / "in"))
        assert "outside" in said and OTHER not in said


def test_neither_recipe_nor_representation_holds_a_key(jobs):
    models = jobs(openai_key=KEY)
    job = models.choose(spec("m", "openai", api_token=OTHER), EMBEDDING)
    assert OTHER not in job.recipe and OTHER not in repr(job) and OTHER not in repr(models._embedders)


# -- triton and completions, to the end -------------------------------------------------------------------------------


async def test_jobs_of_the_ort_runtime_can_be_sent_to_triton(jobs):
    served = FakeModel(name="all-MiniLM-L12-v2", dimension=8, declared_dimension=8)
    async with FakeTriton(served) as triton:
        models = jobs(triton_url=triton.url, ort_jobs="triton", triton_token="hush")
        job = models.choose(spec(data_path="/var/lib/lantern-daemon"), EMBEDDING)
        assert job.name == LANTERN and not job.note
        assert await job.model.start() == 8
        assert np.abs(await job.model.embed(["x"]) - hash_vectors(["x"], 8)).max() < 1e-6
        assert served.seen[-1][2]["authorization"] == "Bearer hush"
        foreign = jobs(triton_url="grpc://elsewhere:1", triton_token="hush")
        model = foreign.choose(spec("all-MiniLM-L12-v2", "triton", url=triton.url), EMBEDDING).model
        await model.start()
        assert "authorization" not in served.seen[-1][2]
        await models.close()
        await foreign.close()


async def test_a_completion_is_an_answer_in_words(jobs):
    async with FakeApi() as api:
        job = jobs().choose(spec("gpt-4o", "openai", base_url=api.url, system_prompt="Sum up."), COMPLETION)
        model = job.model
        assert await model.start() == 0
        assert model.pack([model.tokens(9)] * 5) == [[0, 1], [2, 3], [4]]
        found = await model.embed(["one", "two"])
        assert found.dtype == object and found.tolist() == ["about one", "about two"]
        api.refuses = lambda text: True
        with pytest.raises(EmbedFailed) as caught:
            await model.embed(["three"])
        assert caught.value.failure is Failure.REFUSED


async def test_rows_name_images_for_lanterns_image_model(jobs, tmp_path):
    (tmp_path / "dot.png").write_bytes(CANARY_FILE)
    inputs = (("CONTENT", "BYTES", (-1, 1)),)
    async with FakeTriton(
        FakeModel(name="ViT-B-32-visual", dimension=8, declared_dimension=8, inputs=inputs)
    ) as triton:
        models = jobs(triton_url=triton.url, image_roots=str(tmp_path))
        model = models.choose(spec("clip/ViT-B-32-visual", "triton"), EMBEDDING).model
        triton.model.refuses = lambda content: not content.startswith(b"\x89PNG")
        assert await model.start() == 8
        found = await model.embed([str(tmp_path / "dot.png"), "\\x" + CANARY_FILE.hex()])
        assert np.array_equal(found[0], found[1])
        with pytest.raises(EmbedFailed) as caught:
            await model.embed(["/etc/passwd"])
        assert caught.value.failure is Failure.REFUSED and "WALVEC_IMAGE_ROOTS" in str(caught.value)
        await models.close()


# -- tokens -----------------------------------------------------------------------------------------------------------


async def test_tokens_are_those_that_the_runtime_counts(jobs):
    texts = ["read a zip archive", "zip"]
    async with FakeApi(dimension=8) as api:
        where = {"base_url": api.url}
        for asked, kind, counted in (
            (spec(), EMBEDDING, 9),  # MiniLM's word pieces and two marks a text
            (spec("m", "openai", **where), EMBEDDING, 21),  # the fake counts letters
            (spec("m", "cohere", **where), EMBEDDING, 21),
            (spec("m", "openai", **where), COMPLETION, 21 + sum(len(f"about {text}") for text in texts)),
            (spec("hash-8", "hash"), EMBEDDING, None),
        ):
            model = jobs().choose(asked, kind).model
            await model.start()
            # Side by side, so that one's tokens would be seen among another's.
            found = await asyncio.gather(*(model.embed_counted(texts) for _ in range(3)))
            assert [embedded.tokens for embedded in found] == [counted] * 3
