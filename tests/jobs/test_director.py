"""The director with tables, claims and runners that do as they are told: what it does, and when."""

import asyncio
import contextlib
from collections import defaultdict

import pytest
from structlog.testing import capture_logs

from cdc.errors import ConfigError, PipelineFault, Unavailable
from cdc.jobs import JobId, JobKind
from cdc.rows import Table
from cdc.services.director import Director
from cdc.services.job_meter import JobMeter

EMBEDDINGS, INDEXES = Table("public", "embedding_generation_jobs"), Table("public", "external_index_jobs")
AUTOTUNES = Table("public", "index_autotune_jobs")
SECRET = "hunter2"


class FakeReport:
    def __init__(self, books, id, kind):
        self.books, self.id = books, id
        self.prefix = "init_" if kind in (JobKind.EMBEDDING, JobKind.COMPLETION) else ""

    async def _write(self, **columns):
        await asyncio.sleep(0)
        self.books.rows[self.id][1].update(columns)
        self.books.written.append((self.id.id, columns))

    async def started(self):
        await self._write(**{f"{self.prefix}started_at": "t", f"{self.prefix}failed_at": None})

    async def anew(self):
        await self._write(started_at=None, finished_at=None, progress=0)

    async def progress(self, percent):
        await self._write(**{f"{self.prefix}progress": percent})

    async def finished(self):
        await self._write(**{f"{self.prefix}finished_at": "t"})

    async def failed(self, reason):
        await self._write(**{f"{self.prefix}failed_at": "t", f"{self.prefix}failure_reason": reason})

    async def waits(self, reason):
        await self._write(**{f"{self.prefix}failure_reason": reason})

    async def result(self, row):
        raise AssertionError("no autotune here")

    async def forget_results(self):
        raise AssertionError("no autotune here")


class FakeClaim:
    def __init__(self, books, id):
        self.books, self.id, self.event = books, id, asyncio.Event()

    async def lost(self):
        await self.event.wait()

    async def release(self):
        self.books.claims.pop(self.id, None)


class FakeBooks:
    place = "host:1/control"

    def __init__(self):
        self.rows, self.written, self.claims = {}, [], {}
        self.reads = 0
        self.seen = set()
        self.elsewhere = set()
        self.fault = None
        self.slow = 0.0
        self.used = []

    def add(self, id, table=EMBEDDINGS, **columns):
        kind = JobKind.EMBEDDING if table is EMBEDDINGS else JobKind.EXTERNAL_INDEX
        row = {"id": id, "table": f"t{id}", "src_column": "body", "dst_column": "v", "embedding_model": "m"}
        if table is INDEXES:
            row = {"id": id, "table": f"t{id}", "column": "v"}
        if table is AUTOTUNES:
            kind, row = JobKind.AUTOTUNE, {"id": id, "table": f"t{id}", "column": "v", "target_recall": 95}
        self.rows[JobId(self.place, table, id)] = (kind, {**row, **columns})

    def row(self, id, table=EMBEDDINGS):
        return self.rows[JobId(self.place, table, id)][1]

    async def open(self):
        pass

    async def read(self):
        self.reads += 1
        if self.fault:
            raise self.fault
        before = {id: (kind, dict(row)) for id, (kind, row) in self.rows.items()}
        await asyncio.sleep(self.slow)
        return before

    def covers(self, xid):
        return xid in self.seen

    def report(self, id, kind):
        return FakeReport(self, id, kind)

    async def claim(self, id):
        if id.id in self.elsewhere or id in self.claims:
            return None
        self.claims[id] = FakeClaim(self, id)
        return self.claims[id]

    async def experiments(self, model):
        return []

    async def use(self, usage, uncastable):
        self.used.append((list(usage), list(uncastable)))

    async def close(self):
        pass


class FakeRunner:
    def __init__(self):
        self.log, self.faults, self.running = [], defaultdict(list), {}

    async def run(self, job, report):
        self.log.append(("run", job.id.id, job.column))
        assert job.id not in self.running, "one run at a time"
        self.running[job.id] = job
        try:
            if self.faults[job.id.id]:
                raise self.faults[job.id.id].pop(0)
            await report.started()
            await report.finished()
            await asyncio.Event().wait()
        finally:
            del self.running[job.id]

    async def discard(self, job):
        assert job.id not in self.running, "a run ends before what it keeps is cleared away"
        self.log.append(("discard", job.id.id, job.column))


class FakeFeed:
    def __init__(self, changed):
        self.changed = changed

    async def run(self):
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def directing(books, runner, label="", meter=None):
    async def resolve(connection):
        if connection == "broken":
            raise ConfigError(f"{SECRET} is wrong.")
        return f"postgres://{connection or 'control'}", connection or "control"

    kinds = dict.fromkeys(JobKind, runner)
    director = Director(books, kinds, resolve, label, meter or JobMeter(), lambda text: text.replace(SECRET, "***"))
    running = asyncio.create_task(director.run(FakeFeed))
    try:
        yield director
    finally:
        director.stop()
        await asyncio.wait_for(running, 5)
        await director.close()
        assert not runner.running


async def until(true, timeout_s=3.0):
    async def wait():
        while not true():
            await asyncio.sleep(0.002)

    await asyncio.wait_for(wait(), timeout_s)


async def test_a_commit_that_is_heard_of_is_looked_for_until_it_is_visible():
    books, runner = FakeBooks(), FakeRunner()
    async with directing(books, runner) as director:
        await until(lambda: books.reads >= 1)
        director.changed(77)
        await until(lambda: books.reads >= 5)
        books.add(1)
        books.seen.add(77)
        await until(lambda: runner.running)
        await asyncio.sleep(0.02)
        reads = books.reads
        await asyncio.sleep(0.1)
        assert books.reads == reads, "it looks no longer"


async def test_an_unexpected_fault_of_reading_is_told_and_tried_again_while_jobs_go_on():
    books, runner = FakeBooks(), FakeRunner()
    books.add(1)
    async with directing(books, runner) as director:
        await until(lambda: runner.running)
        books.fault = TypeError(SECRET)
        director.changed(None)
        await until(lambda: director.trouble == "TypeError")
        assert director.check().status == "error"
        assert runner.running
        books.fault = None
        books.add(2)
        await until(lambda: len(runner.running) == 2 and not director.trouble)


async def test_failures_are_said_without_secrets_and_stop_nobody_else():
    books, runner = FakeBooks(), FakeRunner()
    runner.faults[1] = [PipelineFault(f"No such thing as {SECRET}.")]
    runner.faults[2] = [KeyError(SECRET)]
    books.add(1)
    books.add(2)
    books.add(3, db_connection="broken")
    books.add(4, job_type="poem")
    books.add(5)
    async with directing(books, runner) as director:
        await until(lambda: sum("init_failed_at" in row for _, row in books.rows.values()) >= 4)
        await until(lambda: books.row(5).get("init_finished_at"))
        assert books.row(1)["init_failure_reason"] == "No such thing as ***."
        assert "KeyError" in books.row(2)["init_failure_reason"]
        assert "poem" in books.row(4)["init_failure_reason"]
        assert SECRET not in str([columns for _, columns in books.written])
        assert director.counts()[("embedding_generation", "failed")] == 4
        await until(lambda: books.row(1)["init_failed_at"] is None)  # tried again after a second


async def test_an_autotune_job_that_failed_is_left_alone_until_its_row_is_another():
    """A search takes minutes, and what it was refused for once it would be refused for again."""
    books, runner = FakeBooks(), FakeRunner()
    runner.faults[1] = [Unavailable("Away."), PipelineFault("No such column."), KeyError("x"), PipelineFault("no")]
    books.add(1, AUTOTUNES)

    def tries(count):
        return lambda: len(runner.log) == count and books.row(1, AUTOTUNES).get("failed_at")

    async with directing(books, runner) as director:
        await until(tries(2))  # a server that is away is waited for
        await asyncio.sleep(1.2)
        director.changed(None)
        await asyncio.sleep(0.1)
        assert len(runner.log) == 2, runner.log
        books.row(1, AUTOTUNES)["target_recall"] = 90  # edited
        director.changed(None)
        await until(tries(3))
        books.row(1, AUTOTUNES)["failed_at"] = None  # struck out
        director.changed(None)
        await until(tries(4))
        for canceled in ("t", None):  # and resumed
            books.row(1, AUTOTUNES)["canceled_at"] = canceled
            director.changed(None)
            await asyncio.sleep(0.1)
        await until(lambda: books.row(1, AUTOTUNES).get("finished_at"))


async def test_a_server_that_is_away_is_no_failure():
    books, runner = FakeBooks(), FakeRunner()
    runner.faults[1] = [Unavailable("Away.")]
    books.add(1)
    async with directing(books, runner):
        await until(lambda: books.row(1).get("init_finished_at"))
        assert not any("init_failure_reason" in columns for _, columns in books.written)


async def test_a_job_that_waits_says_why_at_once_and_in_its_row_once_that_has_lasted(monkeypatch):
    monkeypatch.setattr("cdc.services.job_member.WAITS_S", 0.3)
    monkeypatch.setattr("cdc.services.job_life.AWAY_S", 0.1)
    books, runner = FakeBooks(), FakeRunner()
    runner.faults[1] = [Unavailable(f"Away, {SECRET}.", "Correct WALVEC_DATABASE_URL.")] * 7
    runner.faults[2] = [Unavailable("Away.")] * 2
    runner.faults[3] = [Unavailable("Away.")] * 7
    for id in (1, 2):
        books.add(id)
    books.add(3, init_started_at="t")
    with capture_logs() as logs:
        async with directing(books, runner) as director:
            await until(lambda: "job" in director.check().message)
            assert director.check().status == "warn"
            await until(lambda: books.row(1).get("init_failure_reason"))
            assert books.row(1)["init_failure_reason"] == "Away, ***. Correct db_connection."
            assert "Away, ***. Correct db_connection." in director.check().message
            assert not any("init_failed_at" in columns and columns["init_failed_at"] for _, columns in books.written)
            assert director.counts()[("embedding_generation", "failed")] == 0
            await until(lambda: all(books.row(id).get("init_finished_at") for id in (1, 2, 3)))
            assert director.check().status == "ok"
            assert [id for id, columns in books.written if columns.get("init_failure_reason")] == [1], (
                "once, and no other"
            )
    said = [entry["message"] for entry in logs if entry["event"] == "job_waits" and "/1" in entry["job"]]
    assert set(said) == {"Away, ***. Correct db_connection."}


async def test_a_stale_look_does_not_bring_the_next_try_forward():
    books, runner = FakeBooks(), FakeRunner()
    runner.faults[1] = [PipelineFault("no")] * 50
    books.add(1)
    books.slow = 0.02
    async with directing(books, runner) as director:
        for _ in range(200):  # looks under way whenever the failure is written
            director.changed(None)
            await asyncio.sleep(0)
        await asyncio.sleep(0.3)
        assert len(runner.log) == 1, runner.log


async def test_edits_end_the_old_run_first_and_clear_away_what_moved():
    books, runner = FakeBooks(), FakeRunner()
    books.add(1)
    async with directing(books, runner) as director:
        await until(lambda: runner.running)
        books.row(1)["embedding_model"] = "other"
        director.changed(None)
        await until(lambda: len(runner.log) == 2)
        books.row(1)["dst_column"] = "w"
        director.changed(None)
        await until(lambda: len(runner.log) == 4)
        assert runner.log == [("run", 1, "v"), ("run", 1, "v"), ("discard", 1, "v"), ("run", 1, "w")]


async def test_cancel_delete_resume_and_labels():
    books, runner = FakeBooks(), FakeRunner()
    for id in (1, 2, 3, 4):
        books.add(id, label="gpu" if id == 4 else None)
    async with directing(books, runner) as director:
        await until(lambda: len(runner.running) == 3)
        books.row(1)["canceled_at"] = "t"
        del books.rows[JobId(books.place, EMBEDDINGS, 2)]
        books.row(3)["label"] = "gpu"
        director.changed(None)
        await until(lambda: not runner.running)
        await until(lambda: {entry[:2] for entry in runner.log} >= {("discard", 1), ("discard", 2), ("discard", 3)})
        books.row(1)["canceled_at"] = None
        director.changed(None)
        await until(lambda: [job.id for job in runner.running] == [1])
        assert [entry for entry in runner.log if entry[1] == 4] == []
        assert not any("init_failed_at" in columns for id, columns in books.written if columns.get("init_failed_at"))


async def test_claims_are_waited_for_and_their_loss_ends_the_run():
    books, runner = FakeBooks(), FakeRunner()
    books.elsewhere = {1}
    books.add(1, INDEXES)
    async with directing(books, runner) as director:
        await asyncio.sleep(0.1)
        assert runner.log == []
        books.elsewhere = set()
        await until(lambda: runner.running)
        next(iter(books.claims.values())).event.set()
        await until(lambda: not runner.running)
        assert books.row(1, INDEXES).get("failed_at") is None
        await until(lambda: runner.running)
        books.row(1, INDEXES)["canceled_at"] = "t"
        director.changed(None)
        await until(lambda: runner.log[-1][0] == "discard")
        await until(lambda: not books.claims)


async def test_tables_that_cannot_be_read_leave_running_jobs_alone():
    books, runner = FakeBooks(), FakeRunner()
    books.add(1)
    async with directing(books, runner) as director:
        await until(lambda: runner.running)
        books.fault = ConfigError("There is no table.")
        director.changed(None)
        await until(lambda: director.trouble)
        assert director.check().status == "error"
        assert runner.running
        books.fault = None
        director.changed(None)
        await until(lambda: not director.trouble)


async def test_what_jobs_used_is_written_once_and_kept_while_it_cannot_be(monkeypatch):
    monkeypatch.setattr("cdc.services.director.USAGE_S", 0.01)
    books, runner, meter = FakeBooks(), FakeRunner(), JobMeter()
    lost = []

    async def away(usage, uncastable):
        lost.append(list(usage))
        raise Unavailable("Away.")

    monkeypatch.setattr(books, "use", away)
    async with directing(books, runner, meter=meter):
        id = JobId(books.place, EMBEDDINGS, 1)
        meter.add(id, rows=2, tokens=9)
        meter.add(JobId("elsewhere", EMBEDDINGS, 1), rows=100)
        await until(lambda: lost)
        meter.add(id, rows=3, failed_rows=4)
        monkeypatch.undo()
        await until(lambda: books.used)
    used = [one for usage, _ in books.used for one in usage]
    assert sum(one.rows for one in used) == 5
    assert (sum(one.tokens for one in used), sum(one.failed_rows for one in used)) == (9, 4)


@pytest.mark.parametrize("id", [1, 2])
async def test_the_later_of_two_jobs_for_one_column_gives_way_until_the_earlier_is_gone(id):
    books, runner = FakeBooks(), FakeRunner()
    for n in (1, 2):
        books.add(n)
    books.rows = {JobId(books.place, EMBEDDINGS, n): (k, {**r, "table": "same"}) for n, (k, r) in
                  zip((1, 2), books.rows.values(), strict=True)}  # fmt: skip
    async with directing(books, runner) as director:
        await until(lambda: books.row(2).get("init_failed_at"))
        assert "/1 already" in books.row(2)["init_failure_reason"]
        assert [job.id for job in runner.running] == [1]
        books.row(id)["canceled_at"] = "t"
        director.changed(None)
        if id == 1:
            await until(lambda: [job.id for job in runner.running] == [2], 0.5)
            await until(lambda: books.row(2)["init_failed_at"] is None)
        else:
            await until(lambda: ("discard", 2, "v") in runner.log)
            assert [job.id for job in runner.running] == [1]
