"""The way to the model: so many requests at once, live rows before scans, and nobody while it is down.

A failure costs a row something only after a short text, the canary, has passed: a model that fails on everything is
down, whatever it calls the failure. A request that got no answer in time, from a model that answers the canary at once,
was too much to ask.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from enum import IntEnum

import structlog

from cdc.flow.disposition import Failure, backoff_s
from cdc.flow.inflight import Inflight
from cdc.ports import Embedded, EmbedFailed, Model, Observer

log = structlog.get_logger()

PATIENCE_S = 10.0
"""How long a full queue is tried again before it counts as an outage, in which rows may go to the durable queue."""
PROBE_S = 0.5
"""The longest pause between two looks at a model that is down: a server that is back is used again within a second."""
PROBE_PERSON_S = 5.0
"""The same where a person must mend something first."""
AT_ONCE = 0.5
"""A canary that took more than this share of a silent request's time shows a slow server, not a heavy request."""


class Priority(IntEnum):
    """Who goes first."""

    LIVE = 0
    SCAN = 1


class ModelGate:
    """Lets some requests through to the model at once, and keeps all back while a probe waits for it.

    It begins with ``inflight`` at once and goes up to ``most`` (by default no further) while the model keeps up.
    """

    def __init__(self, model: Model, inflight: int, observer: Observer, most: int = 0) -> None:
        self.model = model
        self._observer = observer
        self._inflight = Inflight(inflight, most)
        self._busy = 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._up = asyncio.Event()
        self._up.set()
        self._probe: asyncio.Task[None] | None = None
        self._check: asyncio.Task[tuple[EmbedFailed | None, float]] | None = None
        self.trouble: EmbedFailed | None = None
        self.dimension: int | None = None  # known once the model has been started; 0 where it answers in words
        self.requests = 0

    @property
    def limit(self) -> int:
        """How many requests may be in flight now."""
        return self._inflight.limit

    @property
    def needs_person(self) -> bool:
        """Whether the model does not answer until a person mends something."""
        return self.trouble is not None and self.trouble.failure is Failure.MISCONFIGURED

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

    async def embed(self, pipeline: str, texts: Sequence[str], priority: Priority) -> Embedded:
        """Return what the model makes of ``texts``, and the tokens it counted. While its queue is full, wait and retry.

        Raises:
            EmbedFailed: as the model says; after one that calls for waiting, :meth:`ready` says when to go on.
        """
        began = time.monotonic()
        for attempt in itertools.count(1):
            started = time.perf_counter()
            try:
                return await self._ask(pipeline, texts, priority)
            except EmbedFailed as exc:
                pause = exc.retry_after_s or backoff_s(attempt, first=0.05, most=1.0)
                if exc.failure is Failure.OVERLOADED and time.monotonic() + pause < began + PATIENCE_S:
                    await asyncio.sleep(pause)
                    continue
                raise await self._judge(exc, len(texts), time.perf_counter() - started) from exc
        raise AssertionError("unreachable")

    async def _ask(self, pipeline: str, texts: Sequence[str], priority: Priority) -> Embedded:
        async with self._slot(priority) as full:
            self._observer.batch(pipeline, len(texts))
            ticket, started = self._inflight.ticket(), time.perf_counter()
            try:
                embedded = await self.model.embed_counted(texts, bulk=priority is Priority.SCAN)
            except EmbedFailed as exc:
                self._observer.inference(pipeline, "error", time.perf_counter() - started)
                self._observer.inference_error(pipeline, exc.reason)
                if exc.failure in (Failure.OVERLOADED, Failure.SILENT):
                    self._inflight.overloaded(ticket)
                raise
            seconds = time.perf_counter() - started
            self._inflight.succeeded(ticket, sum(map(len, texts)), seconds, full=full)
            self._observer.inference(pipeline, "ok", seconds)
            return embedded

    async def _judge(self, exc: EmbedFailed, rows: int, seconds: float) -> EmbedFailed:
        """Return what a failure is once the canary has been asked; keep all back if the model is down."""
        match exc.failure:
            case Failure.TOO_LARGE:
                return exc
            case Failure.FAILED | Failure.REFUSED:
                trouble, _ = await self._canary()
                if trouble is None:
                    return exc
            case Failure.SILENT:
                self._up.clear()  # the others would but lose their time
                trouble, took = await self._canary()
                if trouble is None:
                    if self.trouble is None:
                        self._up.set()
                    if took < seconds * AT_ONCE:
                        asked_too_much = Failure.TOO_LARGE if rows > 1 else Failure.FAILED
                        return EmbedFailed(asked_too_much, exc.reason, str(exc))
                    trouble = exc
            case _:
                trouble = exc
        if trouble.failure is not Failure.MISCONFIGURED:
            trouble = EmbedFailed(Failure.UNAVAILABLE, trouble.reason, str(trouble), trouble.retry_after_s)
        self._down(trouble)
        return trouble

    async def _canary(self) -> tuple[EmbedFailed | None, float]:
        """Embed a short text; return why that failed, if it did, and how long it took. One is asked for all."""
        if self._check is None or self._check.done():
            self._check = asyncio.get_running_loop().create_task(self._ask_canary(), name="model canary")
        return await asyncio.shield(self._check)

    async def _ask_canary(self) -> tuple[EmbedFailed | None, float]:
        started = time.perf_counter()
        try:
            await self.model.probe()
        except EmbedFailed as exc:
            return exc, time.perf_counter() - started
        return None, time.perf_counter() - started

    @asynccontextmanager
    async def _slot(self, priority: Priority) -> AsyncIterator[bool]:
        """Wait for a turn; give whether it was the last that there was to have."""
        if self._busy < self.limit and not self._waiting:
            self._busy += 1
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
            yield self._busy >= self.limit
        finally:
            self.requests -= 1
            self._release()

    def _release(self) -> None:
        self._busy -= 1
        while self._waiting and self._busy < self.limit:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                self._busy += 1
                turn.set_result(None)

    def _down(self, exc: EmbedFailed) -> None:
        self._note(exc)
        self._up.clear()
        if self._probe is None or self._probe.done():
            self._probe = asyncio.get_running_loop().create_task(self._await_model(), name="model probe")

    async def _await_model(self) -> None:
        for attempt in itertools.count(1):
            trouble = self.trouble
            wait = backoff_s(attempt, most=PROBE_PERSON_S if self.needs_person else PROBE_S)
            if trouble is not None and trouble.retry_after_s:
                wait = max(wait, trouble.retry_after_s)
            await asyncio.sleep(wait)
            try:
                await self.model.probe()
            except EmbedFailed as exc:
                self._note(exc)
                continue
            log.info("model_recovered", model=self.model.name)
            self.release()
            return

    def _note(self, exc: EmbedFailed) -> None:
        """Keep why the model does not answer, and say it when it is news."""
        if self.trouble is None or str(self.trouble) != str(exc):
            log.warning("model_unavailable", model=self.model.name, message=str(exc))
        self.trouble = exc

    async def close(self) -> None:
        """End the probe and the canary, if they are under way."""
        tasks = [task for task in (self._probe, self._check) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
