"""The client's wires and credentials against a real Triton: HTTP, TLS in both directions, restricted protocols."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cdc.testing.triton import TritonServer
from inference.address import Access
from inference.contract import ModelOptions
from inference.errors import EmbedError, ModelMisconfigured, ModelUnavailable, RequestTooLarge, TextRefused
from inference.minilm import MAX_TOKENS, TOKENIZER_FILE
from inference.repository.checks import TEXTS, in_process
from inference.triton import TritonEmbedder

MODEL = "all-minilm-l6-v2"
pytestmark = [pytest.mark.xdist_group("triton"), pytest.mark.triton]


@pytest.fixture
async def over_http(triton):
    embedder = TritonEmbedder(MODEL, [triton.http_url], request_timeout_s=20)
    await embedder.start()
    yield embedder
    await embedder.close()


async def test_http_gives_the_vectors_of_the_model_in_process(over_http):
    assert np.abs(await over_http.embed(TEXTS) - await in_process()).max() <= 1e-6
    assert np.abs(await over_http.embed(TEXTS, bulk=True) - await in_process()).max() <= 1e-6


async def test_http_reads_the_models_config(over_http, triton):
    over_grpc = TritonEmbedder(MODEL, [triton.url])
    await over_grpc.start()
    assert over_http._contract == over_grpc._contract and over_http._contract.priority_levels > 1
    await over_grpc.close()


async def test_http_statuses_are_what_they_are_over_grpc(over_http, triton):
    missing = TritonEmbedder("nothing", [triton.http_url])
    with pytest.raises(ModelUnavailable) as caught:
        await missing.start()
    assert caught.value.reason == "not_found"
    await missing.close()
    triton.unload(MODEL)
    with pytest.raises(ModelUnavailable) as caught:
        await over_http.embed(["text"])
    assert caught.value.reason == "not_found"
    triton.load(MODEL)
    with pytest.raises(TextRefused):
        await over_http.embed_bytes([b"good", b"\xff\xfe"])
    too_many = ["x"] * (over_http.limits.max_rows + 1)
    with pytest.raises(RequestTooLarge):
        await over_http.embed(too_many)


async def test_a_dead_model_process_is_an_outage_over_http_too(over_http, triton):
    triton.kill_models()
    with pytest.raises(ModelUnavailable):
        await over_http.embed(["text"])
    triton.unload(MODEL, wait=False)
    triton.load(MODEL)
    assert (await over_http.embed(["text"])).shape == (1, 384)


@pytest.mark.parametrize("wire", ["url", "http_url"])
async def test_a_network_of_token_ids_is_fed_from_here(ensemble, wire):
    with TritonServer(ensemble) as server:
        server.start()
        options = ModelOptions(tokenizer=TOKENIZER_FILE, max_tokens=MAX_TOKENS)
        embedder = TritonEmbedder(f"{MODEL}-network", [getattr(server, wire)], options=options)
        await embedder.start()
        assert [tensor.role for tensor in embedder._contract.inputs] == ["ids", "mask"]
        assert np.abs(await embedder.embed(TEXTS) - await in_process()).max() <= 1e-6
        await embedder.close()


@pytest.fixture(scope="module")
def guarded(models: Path, certificate: tuple[Path, Path]) -> Iterator[TritonServer]:
    """A server that asks for a client certificate over gRPC, and for a header over both."""
    key, signed = certificate
    options = [
        "--grpc-use-ssl=1", "--grpc-use-ssl-mutual=1",
        f"--grpc-server-cert={signed}", f"--grpc-server-key={key}", f"--grpc-root-cert={signed}",
        "--grpc-restricted-protocol=inference:team=hush", "--http-restricted-api=inference:team=hush",
        "--log-verbose=1",
    ]  # fmt: skip
    with TritonServer(models, options=options) as server:
        yield server.start()


async def attempt(url: str, access: Access) -> TritonEmbedder | EmbedError:
    embedder = TritonEmbedder(MODEL, [url], request_timeout_s=15, access=access)
    try:
        await embedder.start()
        await embedder.embed(["text"])
    except EmbedError as error:
        return error
    finally:
        await embedder.close()
    return embedder


async def test_certificates_and_headers_open_the_door(guarded, certificate):
    key, signed = map(str, certificate)
    url = guarded.url.replace("grpc:", "grpcs:")
    grpc_headers, http_headers = {"triton-grpc-protocol-team": "hush"}, {"team": "hush"}
    embedder = await attempt(url, Access(signed, signed, key, grpc_headers))
    assert isinstance(embedder, TritonEmbedder), embedder
    assert isinstance(await attempt(guarded.http_url, Access(headers=http_headers)), TritonEmbedder)

    refusals = {
        "no header": await attempt(url, Access(signed, signed, key)),
        "no header over HTTP": await attempt(guarded.http_url, Access()),
        "no client certificate": await attempt(url, Access(ca_file=signed, headers=grpc_headers)),
        "untrusted": await attempt(url, Access(cert_file=signed, key_file=key, headers=grpc_headers)),
        "no TLS": await attempt(guarded.url, Access(headers=grpc_headers)),
    }
    assert {name: type(error) for name, error in refusals.items()} == dict.fromkeys(refusals, ModelMisconfigured)
    reasons = {name: error.reason for name, error in refusals.items() if isinstance(error, EmbedError)}
    assert reasons == {
        "no header": "restricted",
        "no header over HTTP": "permission_denied",
        "no client certificate": "client_certificate",
        "untrusted": "certificate",
        "no TLS": "tls",
    }


async def test_a_requests_id_is_in_the_servers_log(guarded):
    embedder = TritonEmbedder(MODEL, [guarded.http_url], access=Access(headers={"team": "hush"}))
    await embedder.start()
    await embedder.embed(["text"])
    last = next(embedder._ids)
    await embedder.close()
    assert last.rpartition("-")[0] in guarded.log
