"""Autotune jobs: what is written to the job's row and to the table of results, whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from cdc.errors import ConfigError, Unavailable
from cdc.jobs import AutotuneSpec, IndexSpec, Job, JobId, JobKind
from cdc.ports.tuning import AutotuneResult, Earlier, Say, Trial
from cdc.rows import Table
from cdc.services.autotune import AutotuneRunner, earlier_of, row_of

SPEC = AutotuneSpec("e", "l2sq", 0.95, 10, create_index=False, model="m")
JOB = Job(
    id=JobId("host:5432/jobs", Table("public", "index_autotune_jobs"), 7),
    kind=JobKind.AUTOTUNE,
    url="postgresql://nowhere",
    place="nowhere",
    table=Table("public", "docs"),
    spec=SPEC,
)
TRIALS = [
    Trial("hnswlib", 16, 64, 40, 0.951, 0.2, 0.4, 1.5, 1_000, 900, 100, "held out"),
    Trial("pgvector", 16, 64, 22, 0.9525, 0.7, 1.4, 3.5, 2_000, 900, 100, "held out"),
]


class Report:
    def __init__(self) -> None:
        self.said: list[Any] = []

    async def anew(self) -> None:
        """Nothing."""

    async def started(self) -> None:
        self.said.append("started")

    async def progress(self, percent: int) -> None:
        await asyncio.sleep(0)
        self.said.append(percent)

    async def finished(self) -> None:
        self.said.append("finished")

    async def failed(self, reason: str) -> None:
        self.said.append(reason)

    async def waits(self, reason: str) -> None:
        raise AssertionError("an autotune job that waits says so by Unavailable")

    async def result(self, row: Mapping[str, object]) -> None:
        await asyncio.sleep(0.01)  # a control database answers when it answers: order and number must not depend on it
        self.said.append(row)

    async def forget_results(self) -> None:
        self.said = [said for said in self.said if not isinstance(said, dict)]


class Tuner:
    def __init__(self, ends: BaseException | None = None) -> None:
        self.ends = ends
        self.earlier: Sequence[Earlier] = ()
        self.discarded: list[str] = []

    async def tune(
        self, url: str, table: Table, spec: AutotuneSpec, *, owner: str, earlier: Sequence[Earlier], say: Say
    ) -> AutotuneResult:
        self.earlier = earlier

        def work() -> None:
            for at, trial in enumerate(TRIALS):
                say.progress(50 * at)
                say.trial(trial, 384)
            say.progress(100)

        await asyncio.to_thread(work)
        if self.ends is not None:
            raise self.ends
        return AutotuneResult(tuple(TRIALS), TRIALS[1], True, "It is good.", None, 384)

    async def discard(self, url: str, table: Table, spec: AutotuneSpec, *, owner: str) -> None:
        self.discarded.append(owner)


class Experiments:
    async def of(self, job: Job) -> list[Mapping[str, object]]:
        return [row_of(TRIALS[1], SPEC, 384, best=True), {"ef": 3}, {"ef": None, "m": "x"}]


async def test_every_trial_is_a_row_and_the_winner_says_why() -> None:
    report, tuner = Report(), Tuner()
    await AutotuneRunner(tuner, Experiments()).run(JOB, report)
    rows = [row for row in report.said if isinstance(row, dict)]
    assert report.said[0] == "started" and report.said[-1] == "finished"
    assert [(r["backend"], r["ef"], r["best"], r["summary"]) for r in rows] == [
        ("hnswlib", 40, False, None), ("pgvector", 22, False, None), ("pgvector", 22, True, "It is good.")
    ]  # fmt: skip
    assert list(rows[1])[:6] == ["ef", "efc", "m", "recall", "latency", "build_time"]
    assert (rows[1]["recall"], rows[1]["latency"], rows[1]["latency_p99"], rows[1]["build_time"]) == (
        95.25,
        0.7,
        1.4,
        3.5,
    )
    assert (rows[1]["metric"], rows[1]["k"], rows[1]["model"], rows[1]["dimension"]) == ("l2", 10, "m", 384)
    assert [said for said in report.said if isinstance(said, int)] == [0, 50, 99]
    assert tuner.earlier == [Earlier(16, 64, 22, "pgvector", 0.9525, "l2", 10, 900, 384)]


async def test_one_runs_trials_stand() -> None:
    """A run that is broken off leaves its trials until the next one has some; then those alone are the experiment's."""
    report, runner = Report(), AutotuneRunner(Tuner(Unavailable("Away.")))
    with pytest.raises(Unavailable):
        await runner.run(JOB, report)
    await AutotuneRunner(Tuner()).run(JOB, report)
    await AutotuneRunner(Tuner()).run(JOB, report)
    rows = [row for row in report.said if isinstance(row, dict)]
    assert [r["best"] for r in rows] == [False, False, True]


async def test_jobs_are_searched_one_after_the_other() -> None:
    """The second one is not even begun: its row says that it is queued."""
    tuner, let_go = Tuner(), asyncio.Event()
    search, running = tuner.tune, []

    async def tune(*args: Any, owner: str, **kwargs: Any) -> AutotuneResult:
        running.append(owner)
        await let_go.wait()
        return await search(*args, owner=owner, **kwargs)

    tuner.tune = tune  # type: ignore[method-assign]
    runner, reports = AutotuneRunner(tuner), [Report(), Report(), Report()]
    tasks = [asyncio.create_task(runner.run(JOB, report)) for report in reports]
    await asyncio.sleep(0.05)
    assert len(running) == 1 and [len(report.said) for report in reports] == [1, 0, 0]
    tasks[1].cancel()  # one that waits can be cancelled, and keeps nobody
    let_go.set()
    await asyncio.wait(tasks)
    assert len(running) == 2 and [report.said[-1:] for report in reports] == [["finished"], [], ["finished"]]


async def test_no_model_no_earlier_experiments() -> None:
    tuner = Tuner()
    await AutotuneRunner(tuner, Experiments()).run(replace(JOB, spec=replace(SPEC, model="")), Report())
    assert tuner.earlier == ()


@pytest.mark.parametrize("ends", [Unavailable("Away."), ConfigError("Wrong.")])
async def test_failures_are_left_to_who_runs_jobs(ends: Exception) -> None:
    report = Report()
    with pytest.raises(type(ends)):
        await AutotuneRunner(Tuner(ends)).run(JOB, report)
    assert "finished" not in report.said
    assert len(asyncio.all_tasks()) == 1


async def test_another_kind_of_job_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not ask for index parameters"):
        await AutotuneRunner(Tuner()).run(replace(JOB, spec=IndexSpec("e", "l2", 16, 64, 40)), Report())


async def test_discard_names_the_same_owner() -> None:
    tuner = Tuner()
    await AutotuneRunner(tuner).discard(JOB)
    assert tuner.discarded == ["host:5432/jobs/public.index_autotune_jobs/7"]


def test_what_does_not_tell_enough_is_no_experiment() -> None:
    assert earlier_of({"m": 16, "efc": 64, "ef": 40, "recall": 95.0}) is None
