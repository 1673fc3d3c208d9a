"""The pipelines of one consumer: started, stopped and made anew as the publication and the control schema say.

Each runs in a task of its own. One that fails is set aside with its reason, a reconcile is noted for it, and it is
tried again after a while; the others never notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

import structlog

from cdc.errors import Fenced, ModelUnknown, PipelineFault, Unavailable, WalvecError
from cdc.flow.counts import SourceCount
from cdc.flow.dirty import DirtyKeys
from cdc.flow.disposition import backoff_s
from cdc.ports import Failures, ModelChoice, Observer, Registry, Request, Wanted
from cdc.services.desk import Desk
from cdc.services.intake import Intake
from cdc.services.lanes import Lane
from cdc.services.member import Member
from cdc.services.models import ModelGates
from cdc.services.pipeline import Pipeline, Tuning
from cdc.services.scan import Progress
from cdc.services.tasks import end
from cdc.status import PipelineState, PipelineStatus

log = structlog.get_logger()

RETRY_S = 5.0
"""Seconds after which a pipeline that failed is tried again, doubling up to the next figure."""

RETRY_MOST_S = 20.0


class Fleet:
    """Keeps one :class:`Member` per pipeline that should run.

    Args:
        registry: Says what should run.
        intake: Told which changes to follow.
        gates: The ways to the models, and which pipeline uses which.
        observer: Told what happens.
        failures: Told of rows that are set aside; None: nobody is.
        tuning: Of work.
        settled: Called when work settled, so that it may be acknowledged.
        wake: Called when the fleet should be looked at soon.
    """

    def __init__(
        self,
        registry: Registry,
        intake: Intake,
        gates: ModelGates,
        observer: Observer,
        failures: Failures | None,
        tuning: Tuning,
        settled: Callable[[], None],
        wake: Callable[[], None],
    ) -> None:
        self.members: dict[str, Member] = {}
        self.fenced: Fenced | None = None
        self._registry = registry
        self._intake = intake
        self._gates = gates
        self._observer = observer
        self._failures = failures
        self._tuning = tuning
        self._settled = settled
        self._wake = wake

    @property
    def pipelines(self) -> list[Pipeline]:
        """The pipelines that run."""
        return [member.pipeline for member in self.members.values() if member.pipeline is not None]

    def notify(self) -> None:
        """Say to all pipelines that there may be work."""
        for pipeline in self.pipelines:
            pipeline.notify()

    # -- keeping in step with what is wanted ------------------------------------------------------------------------

    async def sync(self) -> None:
        """Start, stop and restart pipelines so that those run which should.

        Raises:
            PublicationMissing: there is nothing to go by.
            Unavailable: the database is out of reach.
        """
        wanted = await self._registry.wanted()
        fresh: list[Member] = []
        for want in wanted:
            member = self.members.get(want.name)
            if want.warning and (member is None or member.wanted.warning != want.warning):
                log.warning("publication_incomplete", pipeline=want.name, message=want.warning)
            if member is None:
                log.info("table_added", pipeline=want.name)
                member = self.members[want.name] = Member(want)
                fresh += await self._ready(member)
            elif why := self._why_anew(member, want):
                log.info("schema_changed", pipeline=want.name, reason=why)
                await self._set_aside(member, why)
                member.wanted, member.tries = want, 0
                fresh += await self._ready(member)
            else:
                fresh += await self._refresh(member, want)
        left = set(self.members) - {want.name for want in wanted}
        for name in left | set(await self._registry.gone()):
            await self._leave(name)
        if fresh or left:
            self._attach(fresh)
        await self._gates.keep([member.gate for member in self.members.values() if member.gate is not None])

    def _why_anew(self, member: Member, want: Wanted) -> str:
        """Return why a member must be made anew, empty where it need not be."""
        if want.target_gone and member.pipeline is not None:
            return "the destination was dropped"
        if member.wanted.digest != want.digest:
            return "the table's definition changed"
        choice = self._choice(want.name)
        before = member.choice
        if choice is None or before is None:
            return "" if choice is before else "the model changed"
        same = choice.recipe == before.recipe and choice.model is before.model
        return "" if same else "the model changed"

    def _choice(self, name: str) -> ModelChoice | None:
        try:
            return self._gates.choose(name)[0]
        except PipelineFault:
            return None

    async def _refresh(self, member: Member, want: Wanted) -> list[Member]:
        moved = member.wanted.storage != want.storage
        member.wanted = want
        if member.pipeline is not None:
            if moved and member.followed is not None:
                await self.reconcile(
                    member.followed.id, "the table was rewritten, truncated, or its partitions changed"
                )
                await self._registry.moved(want.name, want.storage)
            member.pipeline.writer.buried = want.errors
            if want.queued:
                await member.pipeline.look_at_queue()
            if member.pipeline.paused != want.paused:
                if want.paused:
                    log.info("pipeline_paused", pipeline=want.name)
                else:
                    log.info("pipeline_resumed", pipeline=want.name)
                member.pipeline.paused = want.paused
                member.pipeline.notify()
            return []
        answered = member.unanswered and member.gate is not None and member.gate.dimension is not None
        due = answered or time.monotonic() >= member.retry_at
        return await self._ready(member) if due else []

    async def _ready(self, member: Member) -> list[Member]:
        """Make a member's pipeline; return it if it can run."""
        want = member.wanted
        member.choice = member.gate = None
        member.unanswered = False
        try:
            choice, gate = self._gates.choose(want.name)
            member.choice, member.gate = choice, gate
            if want.fault is not None:
                raise want.fault
            followed = await self._registry.follow(want.name, choice, gate.dimension)
        except ModelUnknown as exc:
            said = f"{exc} {member.gate.trouble}" if member.gate is not None and member.gate.trouble else str(exc)
            member.state, member.reason, member.retry_at = PipelineState.WAITING, said, time.monotonic() + 1.0
            member.unanswered = True
            return []
        except WalvecError as exc:
            self._fail(member, exc)
            return []
        with self._intake.lock:
            count = SourceCount(followed.counted)
            desk = Desk(
                want.name,
                self._intake.lock,
                DirtyKeys(self._intake.budget),
                count,
                fingerprint=followed.target.fingerprint,
                # Where a scan is due, rows may have changed with no event: what the stream says of earlier times is not
                # trusted, for nothing newer might come to overtake it.
                replay_until=max(followed.written_lsn, followed.counted.until if followed.scan.reason else 0),
                mark=followed.target.mark,
            )
        scan = followed.scan
        member.followed = followed
        member.backfilled = followed.backfilled
        member.pipeline = Pipeline(
            desk,
            followed.target,
            gate,
            self._observer,
            self._failures,
            self._tuning,
            Progress(scan.reason, scan.phase, scan.cursor, scan.done, scan.total),
            barrier=lambda: self._barrier(member),
            settled=self._settled,
            backfilled=lambda: self._backfilled(member),
        )
        member.pipeline.paused = want.paused
        member.pipeline.writer.embeddings = followed.embeddings
        member.pipeline.writer.buried = followed.errors
        return [member]

    def _attach(self, fresh: Sequence[Member]) -> None:
        """Have the stream followed for all members that can run, and set the fresh ones to work."""
        xid = self._intake.attach(
            [
                Lane(member.pipeline.desk, member.followed.route)
                for member in self.members.values()
                if member.pipeline is not None and member.followed is not None
            ]
        )
        for member in fresh:
            if member.pipeline is None:
                continue
            member.xid = xid
            member.state, member.reason = PipelineState.READY, _note(member)
            if member.pipeline.progress.reason is not None:
                member.state, member.reason = PipelineState.BACKFILLING, member.pipeline.progress.reason
                log.info("reconcile_started", pipeline=member.wanted.name, reason=member.reason)
            member.task = asyncio.create_task(member.pipeline.run(), name=member.wanted.name)
            if member.pipeline.progress.reason is None:
                self._index(member)
            member.task.add_done_callback(lambda task, member=member: self._ended(member, task))  # type: ignore[misc]

    async def _barrier(self, member: Member) -> None:
        """Wait until a scan can see whatever was written before the stream was followed for this table."""
        followed = member.followed
        assert followed is not None
        pause = 0.005
        while member.xid and not (await followed.target.snapshot()).covers(member.xid):
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.25)
        member.xid = 0
        writers = await self._registry.writers(member.wanted.name)
        while writers:
            member.reason = f"waits for {len(writers)} open transactions that wrote the table before it was followed"
            await asyncio.sleep(0.1)
            writers &= await self._registry.writers(member.wanted.name)
        if member.pipeline is not None:
            member.state = PipelineState.BACKFILLING
            member.reason = member.pipeline.progress.reason or ""

    async def _backfilled(self, member: Member) -> None:
        """A scan is complete: say so, and see to the index."""
        assert member.followed is not None
        member.state, member.reason, member.tries = PipelineState.READY, _note(member), 0
        member.backfilled = True
        log.info("reconcile_finished", pipeline=member.wanted.name)
        await self._registry.finish_requests(member.followed.id)
        self._wake()
        self._index(member)

    def _index(self, member: Member) -> None:
        """See to the index of a member whose backfill is complete, beside everything else."""
        if member.indexing is None or member.indexing.done():
            member.indexing = asyncio.create_task(self._build_index(member), name=f"{member.wanted.name} index")

    async def _build_index(self, member: Member) -> None:
        try:
            if await self._registry.build_index(member.wanted.name) == "built":
                log.info("index_built", pipeline=member.wanted.name)
        except WalvecError as exc:
            log.warning("index_failed", pipeline=member.wanted.name, message=str(exc))

    # -- failing and leaving ----------------------------------------------------------------------------------------

    def _ended(self, member: Member, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task is not member.task:
            return
        exc = task.exception()
        if isinstance(exc, Fenced):
            self.fenced = exc
        member.task = None
        first = member.tries == 0
        self._fail(member, exc or WalvecError("The pipeline ended by itself."))
        if first:  # perhaps the table has just changed: it is made anew at once, and only a second failure is an error
            member.state, member.retry_at = PipelineState.WAITING, 0.0
        self._wake()

    def _fail(self, member: Member, exc: BaseException) -> None:
        member.tries += 1
        member.retry_at = time.monotonic() + backoff_s(member.tries, first=RETRY_S, most=RETRY_MOST_S)
        waits = isinstance(exc, Unavailable)
        member.state = PipelineState.WAITING if waits else PipelineState.ERROR
        reason = str(exc) if isinstance(exc, WalvecError) else f"{type(exc).__name__}: {exc}"
        if reason != member.reason:
            log.error("pipeline_failed", pipeline=member.wanted.name, message=reason)
        member.reason = reason

    async def bury_failed(self) -> None:
        """Release what failed pipelines still hold, once a reconcile is durably noted for them."""
        for member in self.members.values():
            if member.pipeline is not None and member.task is None:
                await self._set_aside(member, "it had failed")

    async def _set_aside(self, member: Member, reason: str) -> None:
        """Stop a member's pipeline; what it had pending is made up for by a scan when it runs again."""
        if member.pipeline is None:
            return
        await self._halt(member)
        if member.followed is not None:
            await self._registry.need_reconcile(reason, member.followed.id)
        pipeline, member.pipeline, member.followed = member.pipeline, None, None
        self._attach([])
        with self._intake.lock:
            pipeline.desk.release()
        self._settled()

    @staticmethod
    async def _halt(member: Member) -> None:
        tasks = [task for task in (member.task, member.indexing) if task is not None]
        member.task = member.indexing = None
        await end(tasks)

    async def _leave(self, name: str) -> None:
        member = self.members.pop(name, None)
        await self._registry.detach(name)
        log.info("table_left", pipeline=name)
        if member is not None and member.pipeline is not None:
            self.members[name] = member
            await self._set_aside(member, "it had left the publication, or was detached")
            del self.members[name]

    async def stop(self) -> None:
        """Stop all pipelines. What they had pending was not acknowledged, and comes again."""
        await asyncio.gather(*(self._halt(member) for member in self.members.values()))
        self._intake.attach([])
        self.members.clear()

    # -- scans, counts, reports -------------------------------------------------------------------------------------

    async def answer(self, requests: Sequence[Request]) -> None:
        """Have the pipelines scanned from the start for which manual runs were asked for."""
        for id in sorted({request.pipeline for request in requests}):
            await self.reconcile(id, "asked for", [request.id for request in requests if request.pipeline == id])

    async def reconcile(self, id: int | None, reason: str, requests: Sequence[int] = ()) -> None:
        """Have one pipeline, or all, scanned from the start, in answer to ``requests`` if there are any."""
        told: list[Pipeline] = []
        for member in self.members.values():
            if member.pipeline is not None and member.followed is not None and id in (None, member.followed.id):
                log.info("reconcile_started", pipeline=member.wanted.name, reason=reason)
                member.pipeline.reconcile(reason)
                told.append(member.pipeline)
                member.state, member.reason = PipelineState.BACKFILLING, reason
        try:
            # After telling the pipeline: a scan that ends now must not strike the new reason out.
            await self._registry.need_reconcile(reason, id)
            if requests:
                # Before the scan begins, which finishes what was taken up; not before it was asked for, or the end of
                # an earlier scan would finish it.
                await self._registry.start_requests(requests)
        finally:
            for pipeline in told:
                pipeline.noted()

    async def close_gaps(self) -> None:
        """Have pipelines scanned whose changes the stream cannot tell, then let those commits settle."""
        for member in self.members.values():
            pipeline = member.pipeline
            if pipeline is None or member.followed is None:
                continue
            with self._intake.lock:
                gaps = list(pipeline.desk.gaps)
            if gaps:
                await self.reconcile(member.followed.id, "a partition was truncated")
                with self._intake.lock:
                    for commit in gaps:
                        pipeline.desk.gaps.remove(commit)
                        commit.outstanding -= 1
                self._settled()

    def statuses(self, lag_s: float) -> list[PipelineStatus]:
        """Return what all members say about themselves; ``lag_s`` is the age of the oldest unsettled commit."""
        with self._intake.lock:
            return [member.status(lag_s) for member in self.members.values()]

    def recent_errors(self) -> tuple[dict[str, object], ...]:
        """Return the latest dead letters of all pipelines, without their keys."""
        return tuple(error for pipeline in self.pipelines for error in pipeline.writer.recent_errors)

    async def publish(self, statuses: Sequence[PipelineStatus]) -> None:
        """Write the statuses that have changed into the control schema."""
        changed = []
        for status in statuses:
            member = self.members.get(status.pipeline)
            report = member.report(status) if member is not None else None
            if report is not None:
                changed.append(report)
        try:
            await self._registry.publish(changed)
        except Unavailable:  # a lock, or the database itself, which others notice: it is said the next time
            for member in self.members.values():
                member.reported = None

    async def save_counts(self) -> None:
        """Make the counts of source rows durable where they are not; one that must wait for a lock comes later."""
        for pipeline in self.pipelines:
            with contextlib.suppress(Unavailable):
                await pipeline.save_count()


def _note(member: Member) -> str:
    """Return what people should know of a pipeline's model while all is well."""
    return member.choice.note if member.choice is not None else ""
