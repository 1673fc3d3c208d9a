"""The gate before the model: turns, in-flight bound, the canary's verdict."""

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from cdc.flow.disposition import Failure
from cdc.ports import CANARY, Embedded, EmbedFailed
from cdc.services import gate as gates
from cdc.services.gate import ModelGate, Priority


class Silence:
    """Hears everything, says nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: None


class ScriptedModel:
    """Answers each request as ``script`` says: a Failure, or anything else for vectors."""

    name = "scripted"

    def __init__(self) -> None:
        self.fails: Callable[[Sequence[str]], Failure | None] = lambda texts: None
        self.asked: list[tuple[Sequence[str], bool]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.running = 0
        self.most_running = 0
        self.delay_s: Callable[[Sequence[str]], float] = lambda texts: 0.0

    async def embed(self, texts, *, query=False, bulk=False):
        self.asked.append((texts, bulk))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.open.wait()
            await asyncio.sleep(self.delay_s(texts))
            if (failure := self.fails(texts)) is not None:
                raise EmbedFailed(failure, failure.value, f"scripted {failure.value}")
        finally:
            self.running -= 1
        return np.ones((len(texts), 2), np.float32)

    async def embed_counted(self, texts, *, bulk=False):
        return Embedded(await self.embed(texts, bulk=bulk), None)

    async def probe(self):
        await self.embed([CANARY])


@pytest.fixture
def model():
    return ScriptedModel()


@pytest.fixture
async def gate(model):
    made = ModelGate(model, 2, Silence(), 2)
    yield made
    await made.close()


def ask(gate, *texts, priority=Priority.LIVE):
    return asyncio.create_task(gate.embed("p", list(texts) or ["x"], priority))


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


async def failure_of(task):
    with pytest.raises(EmbedFailed) as caught:
        await task
    return caught.value.failure


async def test_no_more_at_once_than_the_bound_and_live_rows_first(gate, model):
    model.open.clear()
    tasks = [ask(gate, name, priority=Priority.SCAN) for name in "abc"]
    await until(lambda: model.running == 2)
    tasks.append(ask(gate, "live"))
    await asyncio.sleep(0)
    model.open.set()
    await asyncio.gather(*tasks)
    assert model.most_running == 2
    assert model.asked == [(["a"], True), (["b"], True), (["live"], False), (["c"], True)]


async def test_cancelled_waiters_leave_their_turn_to_others(gate, model):
    model.open.clear()
    tasks = [ask(gate) for _ in range(5)]
    await until(lambda: model.running == 2)
    for task in tasks[1:4]:
        task.cancel()
    model.open.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(ask(gate), ask(gate))
    assert gate.requests == 0 and model.most_running == 2


async def test_more_at_once_while_the_model_keeps_up(model):
    gate = ModelGate(model, 2, Silence(), 6)
    model.delay_s = lambda texts: 0.003
    await asyncio.gather(*(ask(gate) for _ in range(150)))
    assert gate.limit > 2 and 2 < model.most_running <= 6
    await gate.close()


async def test_a_full_queue_is_tried_again_with_less_and_costs_nothing(gate, model):
    left, bounds = 3, set()

    def fails(texts):
        nonlocal left
        left -= 1
        bounds.add(gate.limit)
        return Failure.OVERLOADED if left >= 0 else None

    model.fails = fails
    vectors = await asyncio.gather(ask(gate), ask(gate))
    assert [v.results.shape for v in vectors] == [(1, 2)] * 2 and gate.is_up
    assert all(texts != [CANARY] for texts, _ in model.asked)
    assert 1 in bounds


async def test_a_queue_that_stays_full_is_an_outage(gate, model, monkeypatch):
    monkeypatch.setattr(gates, "PATIENCE_S", 0.2)
    model.fails = lambda texts: Failure.OVERLOADED
    assert await failure_of(ask(gate)) is Failure.UNAVAILABLE
    assert not gate.is_up
    model.fails = lambda texts: None
    async with asyncio.timeout(2):
        await gate.ready()


@pytest.mark.parametrize("failure", [Failure.FAILED, Failure.REFUSED])
async def test_a_row_is_blamed_only_while_the_canary_passes(gate, model, failure):
    model.fails = lambda texts: failure if "bad" in texts else None
    assert await failure_of(ask(gate, "good", "bad")) is failure and gate.is_up
    model.fails = lambda texts: failure
    assert await failure_of(ask(gate, "good")) is Failure.UNAVAILABLE and not gate.is_up
    model.fails = lambda texts: None
    async with asyncio.timeout(2):
        await gate.ready()


@pytest.mark.parametrize(("texts", "verdict"), [(["a", "b"], Failure.TOO_LARGE), (["a"], Failure.FAILED)])
async def test_silence_was_too_much_asked_where_the_canary_is_quick(gate, model, texts, verdict):
    model.fails = lambda asked: None if asked == [CANARY] else Failure.SILENT
    model.delay_s = lambda asked: 0.0 if asked == [CANARY] else 0.05
    assert await failure_of(ask(gate, *texts)) is verdict
    assert gate.is_up and gate.limit == 1


async def test_silence_is_an_outage_where_the_canary_is_silent_or_slow(gate, model):
    model.fails = lambda asked: Failure.SILENT
    assert await failure_of(ask(gate, "a", "b")) is Failure.UNAVAILABLE and not gate.is_up
    model.fails = lambda asked: None if asked == [CANARY] else Failure.SILENT
    model.delay_s = lambda asked: 0.05
    async with asyncio.timeout(2):
        await gate.ready()
    assert await failure_of(ask(gate, "a")) is Failure.UNAVAILABLE


async def test_down_and_back(gate, model):
    model.fails = lambda texts: Failure.UNAVAILABLE
    assert await failure_of(ask(gate)) is Failure.UNAVAILABLE
    assert gate.trouble is not None and not gate.is_up
    model.fails = lambda texts: None
    async with asyncio.timeout(2):
        await gate.ready()
    assert gate.trouble is None and (await ask(gate)).results.shape == (1, 2)


async def test_a_misconfigured_model_stays_so_in_words(gate, model):
    model.fails = lambda texts: Failure.MISCONFIGURED
    assert await failure_of(ask(gate)) is Failure.MISCONFIGURED
    assert gate.trouble.failure is Failure.MISCONFIGURED
