"""The models that pipelines use: each started in the background, and let through by a gate of its own.

Pipelines whose choices hold the same model share its gate; what one model suffers from never reaches the pipelines of
another.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass

import structlog

from cdc.flow.disposition import backoff_s
from cdc.ports import EmbedFailed, ModelChoice, Models, Observer
from cdc.services.gate import ModelGate
from cdc.services.tasks import end

log = structlog.get_logger()

PAUSE_S = 2.0
"""The longest pause between two attempts to start a model."""


@dataclass(frozen=True, slots=True)
class Started:
    """A model that was asked for: its gate, and the task that starts it, which ends when the model has answered."""

    name: str
    gate: ModelGate
    starting: asyncio.Task[None]


class ModelGates:
    """One gate per model, made when a pipeline first asks for it.

    Args:
        models: Says which pipeline uses which.
        inflight: Requests that a model may have in flight at first.
        most: How many there may be while it keeps up.
        observer: Told of requests.
        answered: Called when a model has answered for the first time, and its dimension is known.
    """

    def __init__(
        self, models: Models, inflight: int, most: int, observer: Observer, answered: Callable[[], None]
    ) -> None:
        self._models = models
        self._inflight = inflight
        self._most = most
        self._observer = observer
        self._answered = answered
        self._started: dict[int, Started] = {}  # by the model's identity; the gate keeps the model alive

    def start(self) -> None:
        """Start the models that are wanted before any pipeline asks for them."""
        for choice in self._models.at_start():
            self._gate(choice)

    def choose(self, pipeline: str) -> tuple[ModelChoice, ModelGate]:
        """Return the model of ``pipeline`` and the way to it.

        Raises:
            PipelineFault: there is none for it.
        """
        choice = self._models.choose(pipeline)
        return choice, self._gate(choice)

    def _gate(self, choice: ModelChoice) -> ModelGate:
        known = self._started.get(id(choice.model))
        if known is None:
            gate = ModelGate(choice.model, self._inflight, self._observer, self._most)
            gate.hold()
            starting = asyncio.get_running_loop().create_task(self._start(choice, gate), name="model start")
            known = self._started[id(choice.model)] = Started(choice.name, gate, starting)
        return known.gate

    async def _start(self, choice: ModelChoice, gate: ModelGate) -> None:
        for attempt in itertools.count(1):
            try:
                gate.dimension = await choice.model.start()
            except EmbedFailed as exc:
                if gate.trouble is None or str(gate.trouble) != str(exc):
                    log.warning("model_unavailable", model=choice.name, message=str(exc))
                gate.trouble = exc
                gate.hold()
                await asyncio.sleep(exc.retry_after_s or backoff_s(attempt, most=PAUSE_S))
                continue
            if gate.trouble is not None:
                log.info("model_recovered", model=choice.name)
            gate.release()
            self._answered()
            return

    async def keep(self, used: Collection[ModelGate]) -> None:
        """Let go of the ways to models that nobody uses any more; the models themselves are their maker's to close."""
        wanted = {id(choice.model) for choice in self._models.at_start()} | {id(gate.model) for gate in used}
        for key in self._started.keys() - wanted:
            await self._close(self._started.pop(key))

    @property
    def gates(self) -> list[ModelGate]:
        """The ways to all models in use."""
        return [started.gate for started in self._started.values()]

    @property
    def requests(self) -> int:
        """How many requests are in flight, at all models together."""
        return sum(gate.requests for gate in self.gates)

    @property
    def troubles(self) -> list[tuple[str, EmbedFailed]]:
        """The models that do not answer, by name, and what they said last."""
        found = [(started.name, started.gate.trouble) for started in self._started.values()]
        return [(name, trouble) for name, trouble in found if trouble is not None]

    async def close(self) -> None:
        """End what runs in the background for any model."""
        while self._started:
            await self._close(self._started.popitem()[1])

    @staticmethod
    async def _close(started: Started) -> None:
        await end([started.starting])
        await started.gate.close()
