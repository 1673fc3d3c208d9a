"""The Triton client against a server on a real socket. What a real Triton does beyond that is in its own tests."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from grpc import StatusCode

from inference import errors as e
from inference.hashing import hash_vectors
from inference.members import parse_urls
from inference.testing import FakeModel, FakeTriton, Fault
from inference.triton import TritonEmbedder

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def server():
    async with FakeTriton() as fake:
        yield fake


def client(*urls: str, timeout_s: float = 10.0, model: str = "fake") -> TritonEmbedder:
    return TritonEmbedder(model, urls, request_timeout_s=timeout_s)


@pytest.fixture
async def triton(server):
    embedder = client(server.url)
    await embedder.start()
    server.model.requests.clear()
    yield embedder
    await embedder.close()


# --- what the model says of itself ---------------------------------------------------------------------------------


async def test_learns_dimension_and_rows_from_the_server(triton):
    assert triton.dimension == 384
    assert triton.limits.max_rows == 64


@pytest.mark.parametrize(
    "model",
    [
        FakeModel(dimension=8, declared_dimension=-1),
        FakeModel(dimension=8, declared_dimension=8, input_shape=(-1,), max_batch_size=0),
        FakeModel(dimension=8, declared_dimension=8, has_config=False),
        FakeModel(dimension=8, declared_dimension=8, typed_contents=True),
        FakeModel(dimension=8, declared_dimension=8, output_type="FP16"),
    ],
)
async def test_serves_every_form_of_the_contract(model):
    async with FakeTriton(model) as fake:
        embedder = client(fake.url)
        await embedder.start()
        vectors = await embedder.embed(["a", "b"])
        assert embedder.dimension == 8
        assert np.abs(vectors - hash_vectors(["a", "b"], 8)).max() < 1e-3
        await embedder.close()


async def test_a_declared_dimension_must_be_true(server):
    server.model.declared_dimension = 768
    embedder = client(server.url)
    with pytest.raises(e.ModelMisconfigured, match="384 dimensions instead of 768"):
        await embedder.start()
    await embedder.close()


async def test_more_rows_than_the_model_takes_are_not_sent(triton, server):
    with pytest.raises(e.RequestTooLarge, match="64 texts at once, not 65"):
        await triton.embed(["x"] * 65)
    assert not server.model.requests


async def test_a_large_request_goes_in_portions(triton, server, monkeypatch):
    monkeypatch.setattr("inference.triton.MOST_BYTES", 1000)
    texts = [str(i) * 300 for i in range(10)]
    assert np.array_equal(await triton.embed(texts), hash_vectors(texts))
    assert [len(texts) for texts in server.model.requests] == [3, 3, 3, 1]


async def test_messages_past_four_megabytes_pass_both_ways():
    async with FakeTriton(FakeModel(dimension=8192, declared_dimension=8192, max_batch_size=0)) as fake:
        embedder = client(fake.url)
        await embedder.start()
        vectors = await embedder.embed([str(i) * 30_000 for i in range(200)])
        assert vectors.nbytes > 4 << 20 and vectors.shape == (200, 8192)
        await embedder.close()


# --- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        (Fault(StatusCode.UNAVAILABLE, "Exceeds maximum queue size"), e.ModelOverloaded, "queue_full"),
        (Fault(StatusCode.UNAVAILABLE, "This protocol is restricted, expecting h"), e.ModelMisconfigured, "restricted"),
        (Fault(StatusCode.NOT_FOUND, "unknown model"), e.ModelUnavailable, "not_found"),
        (Fault(StatusCode.INTERNAL, "Failed to process the request(s)"), e.ModelFailed, "internal"),
        (Fault(StatusCode.INTERNAL, "Stub process 'x' is not healthy."), e.ModelUnavailable, "model_process_died"),
        (Fault(StatusCode.INVALID_ARGUMENT, "bad text"), e.TextRefused, "invalid_argument"),
        (Fault(StatusCode.INVALID_ARGUMENT, "batch-size must be <= 1"), e.RequestTooLarge, "too_many_rows"),
    ],
)
async def test_a_fault_on_the_wire_is_its_kind_and_the_next_request_passes(triton, server, fault, kind, reason):
    server.model.script.append(fault)
    with pytest.raises(e.EmbedError) as caught:
        await triton.embed(["one", "two"])
    assert (type(caught.value), caught.value.reason) == (kind, reason)
    assert (await triton.embed(["one"])).shape == (1, 384)


@pytest.mark.parametrize(
    "bend",
    [lambda v: v[:-1], lambda v: v * np.nan, lambda v: v * 0, lambda v: v.ravel()],
    ids=["rows", "nan", "zero", "shape"],
)
async def test_a_wrong_reply_is_never_taken(triton, server, bend):
    server.model.bend = bend
    with pytest.raises(e.ModelFailed, match="look into the model"):
        await triton.embed(["a", "b"])


async def test_a_text_is_blamed_only_while_a_short_one_passes(triton, server):
    server.model.refuses = lambda text: b"bad" in text
    with pytest.raises(e.TextRefused):
        await triton.embed(["good", "bad"])
    server.model.refuses = lambda text: True
    with pytest.raises(e.ModelMisconfigured, match="refuses every input"):
        await triton.embed(["good"])


async def test_a_model_replaced_by_one_asked_otherwise_costs_no_text(triton, server):
    server.model.input_shape = (-1,)
    server.model.script.append(Fault(StatusCode.INVALID_ARGUMENT, "unexpected shape"))
    with pytest.raises(e.ModelUnavailable, match="replaced"):
        await triton.embed(["x"])
    assert (await triton.embed(["x"])).shape == (1, 384)


async def test_smaller_batches_are_learned_from_a_refusal(triton, server):
    server.model.max_batch_size = 4
    with pytest.raises(e.RequestTooLarge):
        await triton.embed(["x"] * 8)
    assert triton.limits.max_rows == 4


async def test_a_model_of_another_dimension_needs_a_person(triton, server):
    server.model.dimension = 768
    with pytest.raises(e.ModelMisconfigured, match="768 dimensions instead of 384"):
        await triton.embed(["x"])


async def test_a_model_not_loaded_is_waited_for(server):
    server.model.loaded = False
    embedder = client(server.url)
    with pytest.raises(e.ModelUnavailable, match="does not have the model loaded"):
        await embedder.start()
    with pytest.raises(e.ModelUnavailable, match="not started"):
        _ = embedder.dimension
    server.model.loaded = True
    await embedder.start()
    assert embedder.dimension == 384
    await embedder.close()


async def test_silence_ends_at_the_deadline(server):
    embedder = client(server.url, timeout_s=0.3)
    await embedder.start()
    server.model.delay_s = 30
    started = time.monotonic()
    with pytest.raises(e.ModelUnavailable) as caught:
        await embedder.embed(["x"])
    assert caught.value.reason == "timeout" and time.monotonic() - started < 2
    server.model.delay_s = 0
    assert (await embedder.embed(["x"])).shape == (1, 384)
    await embedder.close()


async def test_a_server_that_restarts_is_found_again_soon(server):
    embedder = client(server.url)
    await embedder.start()
    await server.__aexit__()
    down = time.monotonic()
    while time.monotonic() - down < 3:  # long enough for gRPC's own backoff to have grown past the bound below
        with pytest.raises(e.ModelUnavailable):
            await embedder.embed(["x"])
        await asyncio.sleep(0.05)
    await server.__aenter__()
    back = time.monotonic()
    while True:
        try:
            await embedder.embed(["x"])
            break
        except e.ModelUnavailable:
            assert time.monotonic() - back < 1.4
            await asyncio.sleep(0.02)
    await embedder.close()


async def test_closing_during_a_request_is_not_a_cancellation(triton, server):
    server.model.delay_s = 30
    request = asyncio.create_task(triton.embed(["x"]))
    while not server.model.requests:
        await asyncio.sleep(0.005)
    await triton.close()
    with pytest.raises(e.ModelUnavailable, match="closed"):
        await request


async def test_cancelling_a_request_cancels_it_on_the_server(triton, server):
    server.model.delay_s = 30
    request = asyncio.create_task(triton.embed(["x"]))
    while not server.model.requests:
        await asyncio.sleep(0.005)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    while not server.model.cancelled:
        await asyncio.sleep(0.005)


# --- several servers, and servers that are none ----------------------------------------------------------------------


async def test_servers_take_turns_and_a_dead_one_is_survived():
    async with FakeTriton() as one:
        two = await FakeTriton().__aenter__()
        embedder = client(f"{one.url},{two.url}")
        await embedder.start()
        one.model.requests.clear()
        two.model.requests.clear()
        for _ in range(10):
            await embedder.embed(["x"])
        assert (len(one.model.requests), len(two.model.requests)) == (5, 5)
        await two.__aexit__()
        for _ in range(10):
            await embedder.embed(["x"])
        assert len(one.model.requests) == 15
        await two.__aenter__()
        async with asyncio.timeout(5):
            while len(two.model.requests) < 8:
                await embedder.embed(["x"])
                await asyncio.sleep(0.02)
        await embedder.close()
        await two.__aexit__()


async def test_a_member_without_the_model_leaves_the_work_to_the_other():
    async with FakeTriton() as one, FakeTriton(FakeModel(loaded=False)) as two:
        embedder = client(two.url, one.url)
        await embedder.start()
        for _ in range(4):
            await embedder.embed(["x"])
        assert not two.model.requests
        await embedder.close()


class Relay:
    """A TCP relay whose present connections can be made deaf and dumb, as when a host vanishes without a word."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._generation = 0
        self._tasks: set[asyncio.Task] = set()
        self.port = 0

    def swallow(self) -> None:
        self._generation += 1

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader, writer):
        theirs, ours = await asyncio.open_connection("127.0.0.1", self._to)
        generation = self._generation
        pumps = [self._pump(reader, ours, generation), self._pump(theirs, writer, generation)]
        self._tasks.update(map(asyncio.create_task, pumps))

    async def _pump(self, reader, writer, generation):
        try:
            while data := await reader.read(65536):
                if self._generation == generation:
                    writer.write(data)
        finally:
            writer.close()


async def test_a_half_open_connection_costs_one_deadline_and_not_more(server):
    async with Relay(server.port) as relay:
        embedder = client(f"grpc://127.0.0.1:{relay.port}", timeout_s=0.5)
        await embedder.start()
        relay.swallow()
        outcomes = await asyncio.gather(*(embedder.embed(["x"]) for _ in range(3)), return_exceptions=True)
        assert [outcome.reason for outcome in outcomes] == ["timeout"] * 3
        outcomes = await asyncio.gather(*(embedder.embed(["x"]) for _ in range(3)))
        assert all(outcome.shape == (1, 384) for outcome in outcomes)
        await embedder.close()


async def test_a_silent_member_is_asked_last(server):
    async with FakeTriton(FakeModel()) as silent:
        embedder = client(server.url, silent.url, timeout_s=0.4)
        await embedder.start()
        silent.model.delay_s = 30
        failures = 0
        for _ in range(6):
            try:
                await embedder.embed(["x"])
            except e.ModelUnavailable:
                failures += 1
        assert failures == 1
        await embedder.close()


async def test_nobody_there():
    embedder = client("grpc://127.0.0.1:1")
    with pytest.raises(e.ModelUnavailable, match=r"grpc://127\.0\.0\.1:1.*cannot be reached.*refused"):
        await embedder.start()
    await embedder.close()


async def test_a_web_server_on_that_port_is_named():
    async def answer(reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as web:
        embedder = client(f"grpc://127.0.0.1:{web.sockets[0].getsockname()[1]}")
        with pytest.raises(e.ModelMisconfigured, match="gRPC port, 8001"):
            await embedder.start()
        await embedder.close()


async def test_tls_where_there_is_none_is_named(server):
    embedder = client(server.url.replace("grpc:", "grpcs:"))
    with pytest.raises(e.ModelMisconfigured, match="does not speak TLS on that port: try grpc://"):
        await embedder.start()
    await embedder.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    """A key and a certificate for this machine, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.fail("the openssl command is missing: run `apt-get install openssl`")
    key, certificate = (tmp_path_factory.mktemp("tls") / name for name in ("key.pem", "certificate.pem"))
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} -days 2 -subj /CN=localhost"
    subprocess.run([*command.split(), "-addext", names], check=True, capture_output=True)
    return key, certificate


@pytest.fixture
async def tls_server(certificate):
    key, signed = certificate
    async with FakeTriton(tls=(key.read_bytes(), signed.read_bytes())) as fake:
        yield fake


async def test_tls_with_a_trusted_certificate(tls_server, certificate):
    # gRPC reads the roots once per process, so this client gets one of its own.
    program = (
        "import asyncio, sys; from inference.triton import TritonEmbedder as T\n"
        "async def main():\n t = T('fake', sys.argv[1:]); await t.start(); print(t.dimension); await t.close()\n"
        "asyncio.run(main())"
    )
    client = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        tls_server.url,
        env={**os.environ, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(certificate[1]), "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await client.communicate()
    assert output == b"384\n" and client.returncode == 0


async def test_no_tls_where_there_is_some_is_named(tls_server):
    embedder = client(tls_server.url.replace("grpcs:", "grpc:"))
    with pytest.raises(e.ModelMisconfigured, match="speaks TLS on that port: use grpcs://"):
        await embedder.start()
    await embedder.close()


async def test_an_untrusted_certificate_is_named(tls_server):
    embedder = client(tls_server.url)
    with pytest.raises(e.ModelMisconfigured, match="not trusted here: set GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"):
        await embedder.start()
    await embedder.close()


# --- URLs ----------------------------------------------------------------------------------------------------------


def test_urls():
    addresses = parse_urls(["grpc://a:1, grpcs://b", "grpc://[::1]:9"])
    assert [a.url for a in addresses] == ["grpc://a:1", "grpcs://b:8001", "grpc://[::1]:9"]
    assert [a.target for a in addresses] == ["dns:///a:1", "dns:///b:8001", "dns:///[::1]:9"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "has no server: set WALVEC_TRITON_URL"),
        ("http://t:8000", r"give grpc://t:8001"),
        ("https://t", r"give grpcs://t:8001"),
        ("t:8001", "not of the form"),
        ("grpc://", "not of the form"),
        ("grpc://t:x", "not a URL"),
        ("grpc://t:8001/v2", "a host and a port and nothing else"),
        ("grpc://me:secret@t:8001", "a host and a port and nothing else"),
    ],
)
def test_bad_urls_are_refused_without_repeating_secrets(url, words):
    with pytest.raises(e.ModelMisconfigured, match=words) as caught:
        client(url)
    assert "secret" not in str(caught.value)


def test_a_deadline_is_positive():
    with pytest.raises(e.ModelMisconfigured, match="more than 0"):
        client("grpc://t", timeout_s=0)
