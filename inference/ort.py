"""Runtime ``ort``: a model inside this process, on ONNX Runtime and the CPU.

all-MiniLM-L6-v2 comes along; others stand in a folder (:mod:`inference.onnx_models`). A request goes: tokens, batches
of alike length, token states, one vector from those of a text, norm 1. All of it runs in worker threads (tokenizer and
network release the GIL), so the event loop never waits for arithmetic.

A text's vector must not depend on its company, for a row is embedded again and compared. Networks whose int8 weights
are scaled by what is in the batch break that. It is found out at the start, and such a network gets one text at a time.

One session is shared by one worker per core, each computing alone. Measured on two cores against one worker that uses
both, that is 2 to 25 % more texts per second, with no second copy of the weights. Batches of 512 padded tokens were
the fastest per token (4096: 40 % slower), for they stay in the caches.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from inference import minilm, onnx_models
from inference.embedder import Limits, Vectors
from inference.errors import EmbedError, ModelMisconfigured, ModelUnavailable
from inference.onnx_network import Network
from inference.packing import pack
from inference.tokens import count

_A = TypeVar("_A")
_R = TypeVar("_R")

REQUEST_TOKENS = 2_048
BATCH_TOKENS = 512
SMALLEST_BATCH_TOKENS = 192
"""A request smaller than a batch is still shared out between the workers, down to this many tokens each."""
ALIKE = 0.7
MOST_THREADS = 8


class OrtEmbedder:
    """A model in process."""

    runtime = "ort"

    def __init__(
        self,
        model: str = minilm.NAME,
        *,
        threads: int | None = None,
        folder: Path | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """Name the model; nothing is loaded yet.

        Args:
            model: ``all-minilm-l6-v2``, or a model of the folder; in any case, publisher or not.
            threads: workers, one core each; by default the cores this process may use, at most 8.
            folder: of further models, see :mod:`inference.onnx_models`.
            max_tokens: where texts are cut, if that is before the model's own bound.

        Raises:
            ModelMisconfigured: another model, a file of it that cannot be read, or no thread.
        """
        if threads is not None and threads < 1:
            raise ModelMisconfigured("The embedded runtime needs at least one thread.", reason="bad_threads")
        self.files = onnx_models.find(model, folder).cut(max_tokens)
        self.model = model
        self.threads = threads or min(MOST_THREADS, usable_cores())
        self.limits = Limits(
            max_rows=256,
            max_padded_tokens=REQUEST_TOKENS,
            max_tokens=self.files.max_tokens,
            concurrency=max(2, self.threads),
        )
        self.tokens_used = 0
        """Tokens computed so far, padding left out."""
        self._pool: ThreadPoolExecutor | None = None
        self._network: Network | None = None
        self._loading: asyncio.Task[None] | None = None
        self._dimension = minilm.DIMENSION if self.files is onnx_models.BUILT_IN else 0

    @property
    def dimension(self) -> int:
        """Width of the vectors.

        Raises:
            ModelUnavailable: the model stands in a folder, and :meth:`start` has not succeeded yet.
        """
        if not self._dimension:
            raise ModelUnavailable("The embedded model is not started: call start() first.", reason="not_started")
        return self._dimension

    async def start(self) -> None:
        """Load tokenizer and network in a thread (about half a second), and embed two texts.

        Raises:
            ModelMisconfigured: a file or a package is missing or not the one expected, or the network does not embed.
        """
        if self._loading is None:
            self._loading = asyncio.create_task(self._load(), name="model load")
        try:
            await asyncio.shield(self._loading)
        except EmbedError:
            self._loading = None
            raise

    async def _load(self) -> None:
        network = await asyncio.to_thread(Network.load, self.files)
        self._dimension = await asyncio.to_thread(network.prove)
        self._network = network
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="walvec-ort")

    async def embed(self, texts: Sequence[str], *, query: bool = False, bulk: bool = False) -> Vectors:
        """Return vectors, shape ``(texts, dimension)``. The network treats questions and documents alike.

        A request over :attr:`limits` is computed too, in more batches.

        Raises:
            ModelUnavailable: before :meth:`start` or after :meth:`close`.
            ModelFailed: the network broke or gave what is not a vector.
        """
        network = self._network
        if network is None:
            raise ModelUnavailable("The embedded model is not started: call start() first.", reason="not_started")
        vectors = np.empty((len(texts), self.dimension), np.float32)
        if not texts:
            return vectors
        ids = await self._work(network.tokens.encode, texts)
        batches = self._batches(ids)
        parts = await asyncio.gather(*(self._work(network.forward, [ids[i] for i in batch]) for batch in batches))
        for batch, part in zip(batches, parts, strict=True):
            vectors[batch] = part
        self.tokens_used += sum(map(len, ids))
        count(sum(map(len, ids)))
        return vectors

    def bare(self, texts: Sequence[str]) -> Callable[[], Awaitable[object]]:
        """Return the bare loop's body: the network alone, on batches that are cut and filled beforehand.

        Raises:
            ModelUnavailable: before :meth:`start` or after :meth:`close`.
        """
        network = self._network
        if network is None:
            raise ModelUnavailable("The embedded model is not started: call start() first.", reason="not_started")
        ids = network.tokens.encode(texts)
        feeds = [network.feed([ids[i] for i in batch]) for batch in self._batches(ids)]

        async def compute() -> None:
            await asyncio.gather(*(self._work(network.states, feed) for feed in feeds))

        return compute

    async def close(self) -> None:
        """Finish the batches at work, then let the threads and the network go."""
        loading, self._loading = self._loading, None
        if loading is not None:  # a thread cannot be called off
            await asyncio.gather(loading, return_exceptions=True)
        pool, self._pool, self._network = self._pool, None, None
        if pool is not None:
            await asyncio.to_thread(pool.shutdown)

    def _batches(self, ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return batches of alike length, small enough that a small request, too, uses every core."""
        if self._network is not None and self._network.alone:
            return [[i] for i in range(len(ids))]
        share = sum(map(len, ids)) // self.threads
        tokens = min(BATCH_TOKENS, max(SMALLEST_BATCH_TOKENS, share))
        limits = Limits(self.limits.max_rows, tokens, self.limits.max_tokens, 1)
        return pack([len(row) for row in ids], limits, alike=ALIKE)

    async def _work(self, function: Callable[[_A], _R], argument: _A) -> _R:
        if self._pool is None:
            raise ModelUnavailable("The embedded model was closed during a request.", reason="closed")
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, argument)


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not every system has affinities
        return os.cpu_count() or 1
