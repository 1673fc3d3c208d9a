import pytest

from inference.errors import ModelMisconfigured
from inference.registry import ApiOptions, make_embedder


@pytest.mark.parametrize("runtime", ["hash", "ort"])
def test_known_runtimes(runtime):
    embedder = make_embedder(runtime, "all-minilm-l6-v2")
    assert (embedder.runtime, embedder.model) == (runtime, "all-minilm-l6-v2")


def test_triton():
    embedder = make_embedder("triton", "m", triton_urls=["grpc://a:1,grpcs://b"], request_timeout_s=3)
    assert (embedder.runtime, embedder.model) == ("triton", "m")


@pytest.mark.parametrize("runtime", ["openai", "cohere"])
def test_runtimes_over_http(runtime):
    options = ApiOptions(openai_key="k", cohere_key="k", dimensions=256)
    embedder = make_embedder(runtime, "m", api=options)
    assert (embedder.runtime, embedder.model) == (runtime, "m")
    with pytest.raises(ModelMisconfigured, match=f"WALVEC_{runtime.upper()}_KEY"):
        make_embedder(runtime, "m")


def test_unknown_runtime_names_what_there_is():
    with pytest.raises(ModelMisconfigured, match=r"no runtime 'tirton'.*triton, ort, openai, cohere, hash"):
        make_embedder("tirton", "m")


def test_unknown_model_of_ort_names_what_there_is():
    with pytest.raises(ModelMisconfigured, match="'bge-m3' to run in this process, only all-minilm-l6-v2"):
        make_embedder("ort", "bge-m3")


def test_no_threads():
    with pytest.raises(ModelMisconfigured, match="at least one thread"):
        make_embedder("ort", "all-minilm-l6-v2", threads=0)
