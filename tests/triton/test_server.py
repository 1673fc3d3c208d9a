"""The exported repositories, served by a real Triton."""

import asyncio
import struct

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from cdc.testing.triton import SHARED_MEMORY, TritonError, TritonServer, _runs
from inference.errors import ModelUnavailable
from inference.repository.checks import TEXTS, in_process
from inference.triton import TritonEmbedder

MODEL = "all-minilm-l6-v2"
pytestmark = [pytest.mark.xdist_group("triton"), pytest.mark.triton]


def request(texts, **parameters):
    message = service_pb2.ModelInferRequest(model_name=MODEL)
    tensor = message.inputs.add(name="text", datatype="BYTES")
    tensor.shape.extend([len(texts), 1])
    message.raw_input_contents.append(b"".join(struct.pack("<I", len(text)) + text for text in texts))
    for name, value in parameters.items():
        message.parameters[name].uint64_param = value
    return message


async def vectors_of(server, texts=TEXTS):
    embedder = TritonEmbedder(MODEL, [server.url])
    await embedder.start()
    try:
        return await embedder.embed(texts)
    finally:
        await embedder.close()


async def test_vectors_are_those_of_the_model_in_process(triton):
    assert np.abs(await vectors_of(triton) - await in_process()).max() <= 1e-6


async def test_a_text_that_is_not_utf8_fails_its_own_request_alone(triton):
    before = triton.statistics(MODEL)
    async with grpc.aio.insecure_channel(triton.url.removeprefix("grpc://")) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        long = asyncio.ensure_future(stub.ModelInfer(request([b"word " * 300] * 24)))  # keeps the model busy meanwhile
        await asyncio.sleep(0.1)
        bad = stub.ModelInfer(request([b"good", b"\xff\xfe"]))
        good = [stub.ModelInfer(request([b"good", b"better"])) for _ in range(6)]
        for call in good:
            assert (await call).outputs[0].shape == [2, 384]
        with pytest.raises(grpc.aio.AioRpcError, match="A text is not UTF-8") as caught:
            await bad
        await long
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    after = triton.statistics(MODEL)
    executions = int(after["execution_count"]) - int(before["execution_count"])
    assert executions < 8, "the requests did not share a batch, so nothing was shown"


async def test_live_requests_overtake_those_that_can_wait(triton):

    async with grpc.aio.insecure_channel(triton.url.removeprefix("grpc://")) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        small = request([b"now"], priority=1)
        scans = [asyncio.ensure_future(stub.ModelInfer(request([b"word " * 18] * 128, priority=2))) for _ in range(6)]
        await asyncio.sleep(0.1)
        await stub.ModelInfer(small)
        waiting = sum(not scan.done() for scan in scans)
        await asyncio.gather(*scans)
    assert waiting >= 4


async def test_a_full_queue_refuses_and_the_server_goes_on(tmp_path, models):
    # Written as an operator may set it: one request may wait.
    from inference.repository import Options, export

    await export(tmp_path / "models", Options(instances=1, queue_requests=1, max_batch_size=8))
    with TritonServer(tmp_path / "models") as server:
        server.start()
        async with grpc.aio.insecure_channel(server.url.removeprefix("grpc://")) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            calls = [stub.ModelInfer(request([b"word " * 200] * 8)) for _ in range(8)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            refused = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
            assert refused and len(refused) < 8
            assert {call.code() for call in refused} == {grpc.StatusCode.UNAVAILABLE}
            assert "Exceeds maximum queue size" in (refused[0].details() or "")
            await stub.ModelInfer(request([b"again"]))


async def test_work_that_nobody_waits_for_is_left_out(triton):
    async with grpc.aio.insecure_channel(triton.url.removeprefix("grpc://")) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        first = asyncio.ensure_future(stub.ModelInfer(request([b"word " * 200] * 32)))
        await asyncio.sleep(0.1)
        given_up = [stub.ModelInfer(request([b"word " * 300] * 256), timeout=0.2) for _ in range(3)]
        for call in given_up:
            with pytest.raises(grpc.aio.AioRpcError):
                await call
        await first
        loop = asyncio.get_running_loop()
        started = loop.time()
        await stub.ModelInfer(request([b"now"]))
    assert loop.time() - started < 5.0  # computing those 768 rows takes half a minute


async def test_a_dead_model_process_is_an_outage_although_the_server_says_ready(triton):
    embedder = TritonEmbedder(MODEL, [triton.url], request_timeout_s=10)
    await embedder.start()
    triton.kill_models()
    with pytest.raises(ModelUnavailable):
        await embedder.embed(["text"])
    assert triton.is_ready()
    await asyncio.to_thread(triton.unload, MODEL, wait=False)
    await asyncio.to_thread(triton.load, MODEL)
    assert (await embedder.embed(["text"])).shape == (1, 384)
    await embedder.close()


async def test_the_ensemble_gives_the_same_vectors(ensemble):
    with TritonServer(ensemble) as server:
        server.start()
        assert np.abs(await vectors_of(server) - await in_process()).max() <= 1e-6
        assert len(server.index()) == 3


def test_a_killed_server_leaves_no_process_and_no_shared_memory(triton):
    assert list(SHARED_MEMORY.glob(f"{triton._memory_prefix}*"))
    children = triton._children()
    triton.kill()
    assert not list(SHARED_MEMORY.glob(f"{triton._memory_prefix}*"))
    assert children and not [pid for pid in children if _runs(pid)]
    triton.start()


def test_a_server_that_is_not_installed_is_named(models, tmp_path):
    with TritonServer(models, environment=tmp_path) as server, pytest.raises(TritonError, match="make setup-triton"):
        server.start()


def test_a_repository_without_a_model_that_loads_ends_with_the_servers_words(tmp_path):
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "config.pbtxt").write_text('backend: "nothing"')
    with TritonServer(tmp_path) as server, pytest.raises(TritonError, match="broken"):
        server.start()
