from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from inference.contract import ModelOptions
from inference.embedder import Embedder
from inference.minilm import TOKENIZER_FILE
from inference.registry import ApiOptions, make_embedder
from inference.testing import FakeModel, FakeTriton
from inference.testing_api import FakeApi
from inference.testing_http import FakeTritonHttp

NETWORK = FakeModel(
    max_batch_size=0,
    inputs=tuple((name, "INT64", (-1, -1)) for name in ("input_ids", "attention_mask", "token_type_ids")),
    outputs=(("last_hidden_state", "FP32", (-1, -1, 384)),),
)
"""A model that wants token ids and gives token states, as an exported encoder does."""

SERVERS: dict[str, Callable[[], FakeTriton | FakeTritonHttp]] = {
    "triton-grpc": lambda: FakeTriton(FakeModel(max_batch_size=0)),
    "triton-http": lambda: FakeTritonHttp(FakeModel(max_batch_size=0)),
    "triton-json": lambda: FakeTritonHttp(FakeModel(max_batch_size=0, has_config=False), binary=False),
    "triton-tokens": lambda: FakeTriton(NETWORK),
    "triton-tokens-http": lambda: FakeTritonHttp(NETWORK),
}
LOCAL = ("hash", "ort")
APIS = ("openai", "cohere")


@pytest.fixture(params=[*LOCAL, *APIS, *SERVERS])
async def unstarted(request: pytest.FixtureRequest) -> AsyncIterator[Embedder]:
    """An embedder of each runtime and each way to reach it, not started; what it needs is running."""
    async with AsyncExitStack() as stack:
        if request.param in LOCAL:
            embedder: Embedder = make_embedder(request.param, "all-minilm-l6-v2")
        elif request.param in APIS:
            api = await stack.enter_async_context(FakeApi())
            urls = ApiOptions(openai_url=api.url, cohere_url=api.url)
            embedder = make_embedder(request.param, "fake", request_timeout_s=20, api=urls)
        else:
            server: FakeTriton | FakeTritonHttp = await stack.enter_async_context(SERVERS[request.param]())
            options = ModelOptions(tokenizer=TOKENIZER_FILE)
            embedder = make_embedder("triton", "fake", triton_urls=[server.url], request_timeout_s=20, options=options)
        yield embedder
        await embedder.close()


@pytest.fixture
async def embedder(unstarted: Embedder) -> Embedder:
    """An embedder of each runtime, started."""
    await unstarted.start()
    return unstarted
