"""A way to each model: started once, shared by who uses the same, and none the worse for another's trouble."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from cdc.errors import PipelineFault
from cdc.flow.disposition import Failure
from cdc.ports import EmbedFailed, ModelChoice, Models
from cdc.services import models as module
from cdc.services.gate import Priority
from cdc.services.models import ModelGates
from cdc.testing.twins import DIMENSION, ScriptedModel, Tally


class Startable(ScriptedModel):
    """A model that cannot be started while there is something in ``broken``."""

    def __init__(self) -> None:
        super().__init__()
        self.starts = 0
        self.broken: EmbedFailed | None = None

    async def start(self) -> int:
        self.starts += 1
        if self.broken is not None:
            raise self.broken
        return DIMENSION


class ByName:
    """A model per pipeline, as the table says."""

    def __init__(self, eager: Sequence[ModelChoice] = (), **models: ModelChoice) -> None:
        self.models, self.eager = models, eager

    def choose(self, pipeline: str) -> ModelChoice:
        if pipeline not in self.models:
            raise PipelineFault(f"{pipeline} has no model.")
        return self.models[pipeline]

    def at_start(self) -> Sequence[ModelChoice]:
        return self.eager


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(module, "backoff_s", lambda *_, **__: 0.001)


@pytest.fixture
async def made():
    """Makes gates that are closed at the end, and counts how often a model has answered for the first time."""
    all_made: list[ModelGates] = []

    def make(models: Models) -> ModelGates:
        all_made.append(ModelGates(models, 2, 2, Tally(), lambda: answers.append(1)))
        return all_made[-1]

    answers: list[int] = []
    make.answers = answers  # type: ignore[attr-defined]
    yield make
    for gates in all_made:
        await gates.close()


async def test_a_model_is_started_once_for_all_who_use_it(made):
    model = Startable()
    gates = made(ByName(a=ModelChoice("m", "m", model), b=ModelChoice("m", "m", model)))
    (_, first), (_, second) = gates.choose("a"), gates.choose("b")
    assert first is second and not first.is_up
    await asyncio.wait_for(first.ready(), 5)
    assert (model.starts, first.dimension, len(made.answers)) == (1, DIMENSION, 1)


async def test_one_that_cannot_be_started_leaves_the_other_alone(made):
    good, bad = Startable(), Startable()
    bad.broken = EmbedFailed(Failure.MISCONFIGURED, "unknown", "There is no model bad.")
    gates = made(ByName(a=ModelChoice("good", "good", good), b=ModelChoice("bad", "bad", bad)))
    (_, up), (_, down) = gates.choose("a"), gates.choose("b")
    await asyncio.wait_for(up.ready(), 5)
    async with asyncio.timeout(5):
        while bad.starts < 3:
            await asyncio.sleep(0.001)
    assert up.trouble is None and not down.is_up and down.needs_person
    assert [(name, str(trouble)) for name, trouble in gates.troubles] == [("bad", "There is no model bad.")]
    assert len((await up.embed("a", ["x"], Priority.LIVE)).results) == 1
    bad.broken = None
    await asyncio.wait_for(down.ready(), 5)
    assert gates.troubles == [] and not down.needs_person


async def test_models_wanted_at_the_start_are_started_unasked_and_kept(made):
    model = Startable()
    gates = made(ByName(eager=[ModelChoice("m", "m", model)]))
    gates.start()
    (gate,) = gates.gates
    await asyncio.wait_for(gate.ready(), 5)
    await gates.keep([])
    assert gates.gates == [gate]


async def test_what_nobody_uses_any_more_is_let_go_of(made):
    one, other = Startable(), Startable()
    other.broken = EmbedFailed(Failure.UNAVAILABLE, "away", "Away.")
    gates = made(ByName(a=ModelChoice("one", "one", one), b=ModelChoice("other", "other", other)))
    (_, kept), _ = gates.choose("a"), gates.choose("b")
    await gates.keep([kept])
    assert gates.gates == [kept] and gates.troubles == []
    tried = other.starts
    await asyncio.sleep(0.02)
    assert other.starts == tried, "nobody waits for it any more"


async def test_a_pipeline_without_a_model_is_told_so(made):
    with pytest.raises(PipelineFault, match="has no model"):
        made(ByName()).choose("a")
