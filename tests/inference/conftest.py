from collections.abc import AsyncIterator

import pytest

from inference.embedder import Embedder
from inference.registry import make_embedder
from inference.testing import FakeModel, FakeTriton


@pytest.fixture(params=["hash", "ort", "triton"])
async def unstarted(request: pytest.FixtureRequest) -> AsyncIterator[Embedder]:
    """An embedder of each runtime, not started; what it needs is running."""
    if request.param == "triton":
        async with FakeTriton(FakeModel(max_batch_size=0)) as server:
            embedder = make_embedder("triton", "fake", triton_urls=[server.url], request_timeout_s=20)
            yield embedder
            await embedder.close()
    else:
        embedder = make_embedder(request.param, "all-minilm-l6-v2")
        yield embedder
        await embedder.close()


@pytest.fixture
async def embedder(unstarted: Embedder) -> Embedder:
    """An embedder of each runtime, started."""
    await unstarted.start()
    return unstarted
