"""The Triton client against a server on a real socket. What a real Triton does beyond that is in its own tests."""

import asyncio
import logging
import ssl
import time

import numpy as np
import pytest
from grpc import StatusCode

from inference import errors as e
from inference.address import Access, parse_urls
from inference.contract import ModelOptions
from inference.hashing import hash_vectors
from inference.minilm import TOKENIZER_FILE, load_tokenizer
from inference.pooling import unit
from inference.testing import FakeModel, FakeTriton, Fault
from inference.testing_http import FakeTritonHttp
from inference.triton import CANARY, CANARY_FILE, TritonEmbedder

WIRES = {"grpc": FakeTriton, "http": FakeTritonHttp}


@pytest.fixture(params=WIRES)
def wire(request) -> type[FakeTriton] | type[FakeTritonHttp]:
    return WIRES[request.param]


@pytest.fixture
async def server(wire):
    async with wire() as fake:
        yield fake


def client(
    *urls: str, timeout_s: float = 10.0, model: str = "fake", access: Access | None = None, **options
) -> TritonEmbedder:
    return TritonEmbedder(model, urls, request_timeout_s=timeout_s, access=access, options=ModelOptions(**options))


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
async def test_serves_every_form_of_the_contract(model, wire):
    async with wire(model) as fake:
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
    with pytest.raises(e.RequestTooLarge, match="64 rows at once, not 65"):
        await triton.embed(["x"] * 65)
    assert not server.model.requests


async def test_a_large_request_goes_in_portions(triton, server, monkeypatch):
    monkeypatch.setattr("inference.triton.MOST_BYTES", 1000)
    texts = [str(i) * 300 for i in range(10)]
    assert np.array_equal(await triton.embed(texts), hash_vectors(texts))
    assert [len(texts) for texts in server.model.requests] == [3, 3, 3, 1]


async def test_messages_past_four_megabytes_pass_both_ways(wire):
    async with wire(FakeModel(dimension=8192, declared_dimension=8192, max_batch_size=0)) as fake:
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
        (Fault(StatusCode.RESOURCE_EXHAUSTED, "slow down"), e.ModelOverloaded, "overloaded"),
        (Fault(StatusCode.UNAUTHENTICATED, "who?"), e.ModelMisconfigured, "unauthenticated"),
        (Fault(StatusCode.PERMISSION_DENIED, "This API is restricted"), e.ModelMisconfigured, "permission_denied"),
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
    server.model.bend = lambda vectors: bend(vectors) if len(vectors) > 1 else vectors
    with pytest.raises(e.ModelFailed, match="look into the model"):
        await triton.embed(["a", "b"])


async def test_a_model_that_fails_on_everything_costs_no_text(triton, server):
    server.model.bend = lambda vectors: vectors * np.nan
    with pytest.raises(e.ModelUnavailable, match="fails on every input") as caught:
        await triton.embed(["a"])
    assert caught.value.reason == "model_broken"
    server.model.bend = lambda vectors: vectors
    server.model.script.extend([Fault(StatusCode.INTERNAL, "broken")] * 2)
    with pytest.raises(e.ModelUnavailable, match="fails on every input"):
        await triton.embed(["a"])
    assert (await triton.embed(["a"])).shape == (1, 384)


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
    with pytest.raises(e.ModelSilent) as caught:
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


@pytest.mark.parametrize("wire", [FakeTriton], ids=["grpc"])  # over HTTP a server need not notice
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


@pytest.mark.parametrize("second", WIRES.values(), ids=WIRES)
async def test_servers_take_turns_and_a_dead_one_is_survived(wire, second):
    async with wire() as one:
        two = await second().__aenter__()
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


async def test_a_member_without_the_model_leaves_the_work_to_the_other(wire):
    async with wire() as one, wire(FakeModel(loaded=False)) as two:
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
        embedder = client(server.url.replace(str(server.port), str(relay.port)), timeout_s=0.5)
        await embedder.start()
        relay.swallow()
        outcomes = await asyncio.gather(*(embedder.embed(["x"]) for _ in range(3)), return_exceptions=True)
        lost = [outcome.reason for outcome in outcomes if isinstance(outcome, e.EmbedError)]
        assert lost == ["timeout"] * (3 if server.url.startswith("grpc") else 1)  # HTTP opens a connection for each
        outcomes = await asyncio.gather(*(embedder.embed(["x"]) for _ in range(3)))
        assert all(outcome.shape == (1, 384) for outcome in outcomes)
        await embedder.close()


async def test_a_silent_member_is_asked_last(server, wire):
    async with wire(FakeModel()) as silent:
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


@pytest.mark.parametrize("scheme", ["grpc", "grpcs", "http", "https"])
async def test_nobody_there(scheme):
    embedder = client(f"{scheme}://127.0.0.1:1")
    with pytest.raises(e.ModelUnavailable, match=r"://127\.0\.0\.1:1, model fake, cannot be reached"):
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


async def test_a_grpc_server_on_an_http_url_is_named():
    async with FakeTriton() as fake:
        embedder = client(fake.url.replace("grpc:", "http:"))
        with pytest.raises(e.ModelMisconfigured, match="HTTP port, 8000"):
            await embedder.start()
        await embedder.close()


async def test_a_web_server_that_is_no_triton_is_named():
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as web:
        embedder = client(f"http://127.0.0.1:{web.sockets[0].getsockname()[1]}")
        with pytest.raises(e.ModelMisconfigured, match="does not speak the KServe v2 protocol"):
            await embedder.start()
        await embedder.close()


async def test_tls_where_there_is_none_is_named(server):
    embedder = client(server.url.replace("://", "s://"))
    with pytest.raises(e.ModelMisconfigured, match=r"does not speak TLS on that port: try (grpc|http)://"):
        await embedder.start()
    await embedder.close()


def tls_server_of(wire, certificate, *, clients: bool = False):
    key, signed = certificate
    if wire is FakeTriton:
        pems = key.read_bytes(), signed.read_bytes()
        return FakeTriton(tls=pems, clients=signed.read_bytes() if clients else None)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=signed if clients else None)
    context.load_cert_chain(signed, key)
    context.verify_mode = ssl.CERT_REQUIRED if clients else ssl.CERT_NONE
    return FakeTritonHttp(tls=context)


@pytest.fixture
async def tls_server(wire, certificate):
    async with tls_server_of(wire, certificate) as fake:
        yield fake


async def test_tls_with_a_trusted_certificate(tls_server, certificate):
    embedder = client(tls_server.url, access=Access(ca_file=str(certificate[1])))
    await embedder.start()
    assert embedder.dimension == 384
    await embedder.close()


async def test_a_client_certificate_is_shown_and_its_lack_is_named(wire, certificate):
    key, signed = map(str, certificate)
    async with tls_server_of(wire, certificate, clients=True) as fake:
        embedder = client(fake.url, access=Access(ca_file=signed, cert_file=signed, key_file=key))
        await embedder.start()
        assert (await embedder.embed(["x"])).shape == (1, 384)
        await embedder.close()
        embedder = client(fake.url, access=Access(ca_file=signed))
        with pytest.raises(e.ModelMisconfigured, match=r"wants a client certificate.*WALVEC_TRITON_CERT_FILE"):
            await embedder.start()
        await embedder.close()


async def test_no_tls_where_there_is_some_is_named(tls_server):
    embedder = client(tls_server.url.replace("s://", "://"))
    with pytest.raises(e.ModelMisconfigured, match=r"speaks TLS on that port: use (grpcs|https)://"):
        await embedder.start()
    await embedder.close()


async def test_an_untrusted_certificate_is_named(tls_server):
    embedder = client(tls_server.url)
    with pytest.raises(e.ModelMisconfigured, match=r"not trusted here.*set WALVEC_TRITON_CA_FILE"):
        await embedder.start()
    await embedder.close()


async def test_a_certificate_for_another_name_is_named(tls_server, certificate):
    embedder = client(tls_server.url.replace("127.0.0.1", "127.0.0.2"), access=Access(ca_file=str(certificate[1])))
    with pytest.raises(e.EmbedError) as caught:
        await embedder.start()
    assert isinstance(caught.value, e.ModelMisconfigured | e.ModelUnavailable)
    await embedder.close()


@pytest.mark.parametrize(
    ("names", "url", "words"),
    [
        ({"cert_file": "certificate"}, "grpcs://t", "belong together"),
        ({"ca_file": "certificate"}, "grpc://t", "not encrypted: use grpcs://"),
        ({"ca_file": "nothing"}, "grpcs://t", "WALVEC_TRITON_CA_FILE names .*nothing, which cannot be read"),
        ({"ca_file": "words"}, "https://t", "not in PEM"),
        ({"cert_file": "certificate", "key_file": "words"}, "https://t", "not in PEM"),
    ],
)
def test_files_that_will_not_do_are_named_at_once(names, url, words, certificate, tmp_path):
    (tmp_path / "words").write_text("words")
    files = {"certificate": certificate[1]}
    paths = {name: str(files.get(file, tmp_path / file)) for name, file in names.items()}
    access = Access(**paths)  # type: ignore[arg-type]  # names of files alone
    with pytest.raises(e.ModelMisconfigured, match=words):
        client(url, access=access)


# --- what goes with a request ----------------------------------------------------------------------------------------


async def test_headers_ids_and_priorities_reach_the_server(wire, caplog):
    async with wire(FakeModel(priority_levels=3)) as fake:
        embedder = client(fake.url, access=Access(headers={"Authorization": "Bearer hush", "x-team": "search"}))
        await embedder.start()
        fake.model.seen.clear()
        with caplog.at_level(logging.DEBUG, "inference"):
            await embedder.embed(["live"])
            await embedder.embed(["old"], bulk=True)
        await embedder.close()
        (first, live, headers), (second, bulk, _) = fake.model.seen
        assert (live, bulk) == (1, 3)
        assert headers["authorization"] == "Bearer hush" and headers["x-team"] == "search"
        assert first != second and first.startswith("walvec-")
        assert first in caplog.text and second in caplog.text
        assert "hush" not in caplog.text and "hush" not in repr(embedder._access)


# --- other models than text to vector --------------------------------------------------------------------------------

IDS = tuple((name, "INT64", (-1, -1)) for name in ("input_ids", "attention_mask"))
STATES = (("last_hidden_state", "FP16", (-1, -1, 8)),)


def expected(text, pooling):
    (ids,) = load_tokenizer().encode([text])
    states = hash_vectors([str(i) for i in ids], 8)
    return {"mean": states.mean(axis=0), "cls": states[0], "last": states[-1]}[pooling]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("normalize", [None, False])
async def test_a_network_of_token_ids_is_pooled_as_declared(wire, pooling, normalize):
    async with wire(FakeModel(dimension=8, inputs=IDS, outputs=STATES)) as fake:
        embedder = client(fake.url, tokenizer=TOKENIZER_FILE, pooling=pooling, normalize=normalize)
        await embedder.start()
        texts = ["zip", "read a zip archive of many members"]
        vectors = await embedder.embed(texts)
        want = np.stack([expected(text, pooling) for text in texts]).astype(np.float32)
        assert np.abs(vectors - (want if normalize is False else unit(want))).max() < 2e-3
        assert embedder.limits.max_tokens == 128
        await embedder.close()


async def test_a_network_of_a_fixed_length_is_filled_up(wire):
    fixed = tuple((name, kind, (-1, 16)) for name, kind, _ in IDS)
    async with wire(FakeModel(dimension=8, inputs=fixed, outputs=STATES)) as fake:
        embedder = client(fake.url, tokenizer=TOKENIZER_FILE, max_tokens=64)
        await embedder.start()
        await embedder.embed(["zip", "word " * 100])
        assert [len(row) // 8 for row in fake.model.requests[-1]] == [16, 16]
        await embedder.close()


async def test_token_ids_need_a_tokenizer(wire):
    async with wire(FakeModel(dimension=8, inputs=IDS, outputs=STATES)) as fake:
        embedder = client(fake.url)
        with pytest.raises(e.ModelMisconfigured, match="wants token ids: set WALVEC_TOKENIZER"):
            await embedder.start()
        await embedder.close()


@pytest.mark.parametrize("name", ["image", "RAW"])
async def test_a_model_of_images_takes_files(wire, name):
    model = FakeModel(inputs=((name, "BYTES", (-1, 1)),), refuses=lambda row: not row.startswith(b"\x89PNG"))
    async with wire(model) as fake:
        embedder = client(fake.url)
        await embedder.start()
        assert fake.model.requests[-1] == [CANARY_FILE]
        vectors = await embedder.embed_bytes([CANARY_FILE, CANARY_FILE + b"\xff\x00"])
        assert vectors.shape == (2, 384) and not np.array_equal(vectors[0], vectors[1])
        with pytest.raises(e.TextRefused):
            await embedder.embed_bytes([b"GIF89a"])
        with pytest.raises(e.ModelMisconfigured, match="takes files, not texts"):
            await embedder.embed(["words"])
        await embedder.close()


async def test_a_model_of_both_takes_each_by_its_input(wire):
    both = (("text", "BYTES", (-1, 1)), ("image", "BYTES", (-1, 1)))
    async with wire(FakeModel(inputs=both, optional=("text", "image"))) as fake:
        embedder = client(fake.url)
        await embedder.start()
        assert fake.model.requests[-1] == [CANARY.encode()]
        assert np.array_equal(await embedder.embed(["x"]), await embedder.embed_bytes([b"x"]))
        await embedder.close()


async def test_files_do_not_travel_as_json():
    async with FakeTritonHttp(FakeModel(inputs=(("image", "BYTES", (-1, 1)),)), binary=False) as fake:
        embedder = client(fake.url)
        with pytest.raises(e.ModelMisconfigured, match="over HTTP; use grpc://"):
            await embedder.start()
        await embedder.close()


# --- HTTP alone ------------------------------------------------------------------------------------------------------


async def test_an_idle_connection_that_the_server_closed_is_no_error():
    async with FakeTritonHttp() as fake:
        embedder = client(fake.url)
        await embedder.start()
        fake.drops = 1
        assert (await embedder.embed(["x"])).shape == (1, 384)
        fake.drops = 2
        with pytest.raises(e.ModelUnavailable, match="cannot be reached"):
            await embedder.embed(["x"])
        await embedder.close()


async def test_a_path_before_the_protocol_and_a_pause_that_is_asked_for():
    async with FakeTritonHttp(prefix="/serving/team") as fake:
        embedder = client(fake.url)
        await embedder.start()
        fake.retry_after = "7"
        fake.model.script.append(Fault(StatusCode.UNAVAILABLE, "Exceeds maximum queue size"))
        with pytest.raises(e.ModelOverloaded) as caught:
            await embedder.embed(["x"])
        assert caught.value.retry_after_s == 7
        await embedder.close()


# --- URLs ----------------------------------------------------------------------------------------------------------


def test_urls():
    addresses = parse_urls(["grpc://a:1, grpcs://b", "grpc://[::1]:9"])
    assert [a.url for a in addresses] == ["grpc://a:1", "grpcs://b:8001", "grpc://[::1]:9"]
    assert [a.target for a in addresses] == ["dns:///a:1", "dns:///b:8001", "dns:///[::1]:9"]
    over_http = parse_urls(["http://a,https://b/path/v2/,http://[::1]:9"])
    assert [a.url for a in over_http] == ["http://a:8000", "https://b:443/path", "http://[::1]:9"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "has no server: set WALVEC_TRITON_URL"),
        ("ftp://t:8000", "not of the form"),
        ("http://t:8000/v2?x=1", "a host and a port and nothing else"),
        ("https://me:secret@t", "WALVEC_TRITON_TOKEN"),
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
