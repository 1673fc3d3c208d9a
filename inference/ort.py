"""Runtime ``ort``: all-MiniLM-L6-v2 inside this process, on ONNX Runtime and the CPU.

A request goes: tokens, batches of alike length, token states, mean over the real tokens, norm 1. All of it runs in
worker threads (tokenizer and network release the GIL), so the event loop never waits for arithmetic.

One session is shared by one worker per core, each computing alone. Measured on two cores against one worker that uses
both, that is 2 to 25 % more texts per second, with no second copy of the weights. Batches of 512 padded tokens were
the fastest per token (4096: 40 % slower), for they stay in the caches.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from inference import minilm
from inference.embedder import Limits, Vectors
from inference.errors import ModelFailed, ModelMisconfigured, ModelUnavailable
from inference.packing import pack
from inference.pooling import pad, pool, unit
from inference.tokenizer import ModelTokenizer

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_A = TypeVar("_A")
_R = TypeVar("_R")

REQUEST_TOKENS = 2_048
BATCH_TOKENS = 512
SMALLEST_BATCH_TOKENS = 192
"""A request smaller than a batch is still shared out between the workers, down to this many tokens each."""
ALIKE = 0.7
MOST_THREADS = 8


class OrtEmbedder:
    """MiniLM in process."""

    runtime = "ort"
    dimension = minilm.DIMENSION

    def __init__(self, model: str = minilm.NAME, *, threads: int | None = None) -> None:
        """Name the model; nothing is loaded yet.

        Args:
            model: ``all-minilm-l6-v2``, in any case, with or without its publisher's prefix.
            threads: workers, one core each; by default the cores this process may use, at most 8.

        Raises:
            ModelMisconfigured: another model, or no thread.
        """
        if model.lower().removeprefix("sentence-transformers/") != minilm.NAME:
            raise ModelMisconfigured(
                f"The embedded runtime has no model {model[:80]!r}, only {minilm.NAME}: "
                f"set WALVEC_MODEL={minilm.NAME}, or WALVEC_TRITON_URL to the server that has yours.",
                reason="unknown_model",
            )
        if threads is not None and threads < 1:
            raise ModelMisconfigured("The embedded runtime needs at least one thread.", reason="bad_threads")
        self.model = model
        self.threads = threads or min(MOST_THREADS, usable_cores())
        self.limits = Limits(
            max_rows=256,
            max_padded_tokens=REQUEST_TOKENS,
            max_tokens=minilm.MAX_TOKENS,
            concurrency=max(2, self.threads),
        )
        self.tokens_used = 0
        """Tokens computed so far, padding left out."""
        self._pool: ThreadPoolExecutor | None = None
        self._network: _Network | None = None

    async def start(self) -> None:
        """Load tokenizer and network in a thread (about half a second).

        Raises:
            ModelMisconfigured: a file or a package is missing or not the one expected.
        """
        if self._network is None:
            self._network = await asyncio.to_thread(_Network.load)
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="walvec-ort")

    async def embed(self, texts: Sequence[str], *, query: bool = False, bulk: bool = False) -> Vectors:
        """Return unit vectors, shape ``(texts, 384)``. MiniLM treats questions and documents alike.

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
        batches = pack([len(row) for row in ids], self._batch_limits(ids), alike=ALIKE)
        parts = await asyncio.gather(*(self._work(network.forward, [ids[i] for i in batch]) for batch in batches))
        for batch, part in zip(batches, parts, strict=True):
            vectors[batch] = part
        self.tokens_used += sum(map(len, ids))
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
        batches = pack([len(row) for row in ids], self._batch_limits(ids), alike=ALIKE)
        feeds = [network.feed([ids[i] for i in batch]) for batch in batches]

        async def compute() -> None:
            await asyncio.gather(*(self._work(network.states, feed) for feed in feeds))

        return compute

    async def close(self) -> None:
        """Finish the batches at work, then let the threads and the network go."""
        pool, self._pool, self._network = self._pool, None, None
        if pool is not None:
            await asyncio.to_thread(pool.shutdown)

    def _batch_limits(self, ids: Sequence[Sequence[int]]) -> Limits:
        """Return bounds for one batch: small enough that a small request, too, uses every core."""
        share = sum(map(len, ids)) // self.threads
        tokens = min(BATCH_TOKENS, max(SMALLEST_BATCH_TOKENS, share))
        return Limits(self.limits.max_rows, tokens, minilm.MAX_TOKENS, 1)

    async def _work(self, function: Callable[[_A], _R], argument: _A) -> _R:
        if self._pool is None:
            raise ModelUnavailable("The embedded model was closed during a request.", reason="closed")
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, argument)


class _Network:
    """The loaded network and its tokenizer; every method may run in any thread."""

    def __init__(self, session: InferenceSession, tokens: ModelTokenizer) -> None:
        self._session = session
        self.tokens = tokens

    @classmethod
    def load(cls) -> _Network:
        """Read, prove and load both files.

        Raises:
            ModelMisconfigured: a file or a package is missing or not the one expected.
        """
        try:
            import onnxruntime
            import tokenizers  # noqa: F401 - asked for here so that both absences read the same
        except ImportError as error:
            raise ModelMisconfigured(
                f"The embedded runtime needs the package {error.name}: pip install onnxruntime tokenizers, "
                "or name a Triton server in WALVEC_TRITON_URL.",
                reason="package_missing",
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # plans are kept per input shape, and shapes here never end
        options.log_severity_level = 3
        weights = minilm.read_proved(minilm.weights_file(), minilm.WEIGHTS_SHA256)
        session = onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
        return cls(session, minilm.load_tokenizer())

    def forward(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """Return the vectors of one batch of token ids, shape ``(rows, 384)``.

        Raises:
            ModelFailed: the network broke or gave what is not a vector.
        """
        feed = self.feed(rows)
        try:
            states, mask = self.states(feed), feed["attention_mask"]
        except Exception as error:  # ONNX Runtime's exceptions share no base but this
            raise ModelFailed(
                f"The embedded model failed on a batch of {len(rows)} texts ({type(error).__name__}).",
                reason="internal",
            ) from error
        vectors = unit(pool(states, mask, "mean"))
        if not np.isfinite(vectors).all():
            raise ModelFailed("The embedded model gave a vector that is not finite.", reason="bad_reply")
        return vectors

    @staticmethod
    def feed(rows: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Return the network's inputs for one batch of token ids."""
        ids, mask = pad(rows)
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

    def states(self, feed: dict[str, Any]) -> Any:
        """Return the state of every token, shape ``(rows, tokens, 384)``; raises as ONNX Runtime does."""
        (states,) = self._session.run(["last_hidden_state"], feed)
        return states


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not every system has affinities
        return os.cpu_count() or 1
