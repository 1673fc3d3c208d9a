"""The way to the model: so many requests at once, live rows before scans, and nobody while it is down."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from enum import IntEnum

from cdc.flow.disposition import Failure, backoff_s
from cdc.ports import EmbedFailed, Model, Observer, Vectors

CANARY = "walvec"


class Priority(IntEnum):
    """Who goes first."""

    LIVE = 0
    SCAN = 1


class ModelGate:
    """Lets at most ``inflight`` requests through to the model, and keeps all back while a probe waits for it."""

    def __init__(self, model: Model, inflight: int, observer: Observer) -> None:
        self.model = model
        self._observer = observer
        self._free = inflight
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._up = asyncio.Event()
        self._up.set()
        self._probe: asyncio.Task[None] | None = None
        self.trouble: EmbedFailed | None = None
        self.requests = 0

    @property
    def is_up(self) -> bool:
        """Whether the model answered last time."""
        return self._up.is_set()

    async def ready(self) -> None:
        """Wait until the model answers."""
        await self._up.wait()

    def hold(self) -> None:
        """Keep all back until :meth:`release`."""
        self._up.clear()

    def release(self) -> None:
        """Let requests through: the model answers."""
        self.trouble = None
        self._up.set()

    async def embed(self, pipeline: str, texts: Sequence[str], priority: Priority) -> Vectors:
        """Return the vectors of ``texts``.

        Raises:
            EmbedFailed: as the model says; after one that calls for waiting, :meth:`ready` says when to go on.
        """
        async with self._slot(priority):
            self._observer.batch(pipeline, len(texts))
            started = time.perf_counter()
            try:
                vectors = await self.model.embed(texts)
            except EmbedFailed as exc:
                self._observer.inference(pipeline, "error", time.perf_counter() - started)
                self._observer.inference_error(pipeline, exc.reason)
                if exc.failure in (Failure.UNAVAILABLE, Failure.MISCONFIGURED):
                    self._down(exc)
                raise
            self._observer.inference(pipeline, "ok", time.perf_counter() - started)
            return vectors

    @asynccontextmanager
    async def _slot(self, priority: Priority) -> AsyncIterator[None]:
        if self._free > 0:
            self._free -= 1
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (priority, next(self._order), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._release()
                raise
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1
            self._release()

    def _release(self) -> None:
        while self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _down(self, exc: EmbedFailed) -> None:
        self.trouble = exc
        self._up.clear()
        if self._probe is None or self._probe.done():
            self._probe = asyncio.get_running_loop().create_task(self._await_model(), name="model probe")

    async def _await_model(self) -> None:
        for attempt in itertools.count(1):
            wait = backoff_s(attempt, most=2.0)
            if self.trouble is not None and self.trouble.retry_after_s:
                wait = max(wait, self.trouble.retry_after_s)
            await asyncio.sleep(wait)
            try:
                await self.model.embed([CANARY])
            except EmbedFailed as exc:
                self.trouble = exc
                continue
            self.release()
            return

    async def close(self) -> None:
        """End the probe, if one is under way."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)
