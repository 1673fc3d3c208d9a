"""The consumer: attaches to the slot, keeps the fleet in step, acknowledges, and starts again when something breaks.

The slot is the leader lock. Whoever holds it starts a new epoch, and with that shuts out the writes of any predecessor
that does not know yet that it lost the slot. Everybody else stands by and tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from cdc.errors import (
    DecodeError,
    Fenced,
    NeedsPerson,
    PublicationMissing,
    SlotInUse,
    SlotLost,
    SlotStuck,
    Unavailable,
    WalvecError,
)
from cdc.flow.dirty import Budget
from cdc.flow.disposition import backoff_s
from cdc.ports import Failures, Models, Observer, Registry, SlotKeeper, Stream
from cdc.services.fleet import Fleet
from cdc.services.intake import Intake
from cdc.services.models import ModelGates
from cdc.services.overflow import Overflow
from cdc.services.pipeline import Tuning
from cdc.services.standing import Standing
from cdc.services.tasks import end
from cdc.status import EngineStatus, SlotState

log = structlog.get_logger()

TURN_S = 0.25
"""Seconds between looks at queues and acknowledgements."""

LOOK_S = 1.0
"""Seconds between looks at the publication and the requests: changes take effect within two."""

RESERVED_BYTES = 16 << 20
"""WAL that may be acknowledged between two durable notes of how far that may go."""

DRAIN_S = 20.0
"""Seconds that a polite stop gives to work under way."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the engine needs to know. ``reconcile_lost_slot``: make a new slot by itself when the old one is lost."""

    slot: str
    reconcile_lost_slot: bool
    queue_bytes: int
    queue_rows: int
    inflight: int
    most_inflight: int
    tuning: Tuning


Open = Callable[[Intake, Callable[[], None]], Awaitable[Stream]]
"""(listener, called when the stream ended by itself) → an attached stream."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the engine works: the slot, the pipelines' definitions, and the stream."""

    slots: SlotKeeper
    registry: Registry
    open_stream: Open


class Engine:
    """Runs until :meth:`stop`, or until something needs a person.

    Args:
        settings: What can be set.
        places: Where it works.
        models: Which model each pipeline uses; they are not closed.
        observer: Told what happens.
        failures: Told of rows that are set aside; None: nobody is.
        at_look: Awaited whenever the catalogue is looked at: once a second, and when a message of ours is heard.
    """

    def __init__(
        self,
        settings: EngineSettings,
        places: Places,
        models: Models,
        observer: Observer,
        failures: Failures | None = None,
        at_look: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._settings = settings
        self._at_look = at_look
        self._slots = places.slots
        self._registry = places.registry
        self._observer = observer
        self._open_stream = places.open_stream
        self._stopping = asyncio.Event()
        self._turn = asyncio.Event()
        self._over = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._stream: Stream | None = None
        self._looked = 0.0
        self.gates = ModelGates(models, settings.inflight, settings.most_inflight, observer, self._look_soon)
        budget = Budget(settings.queue_bytes, settings.queue_rows)
        self.intake = Intake(threading.Lock(), budget, observer, self._marked, self._heard)
        self.fleet = Fleet(
            places.registry, self.intake, self.gates, observer, failures, settings.tuning, self._settled, self._turn.set
        )
        self._overflow = Overflow(self.intake)
        self._standing = Standing(settings.slot, self.intake, self.fleet, self.gates, places.slots, observer)

    # -- from outside -----------------------------------------------------------------------------------------------

    def status(self) -> EngineStatus:
        """Return the latest snapshot. Any thread."""
        return self._standing.snapshot

    def heartbeat_age_s(self) -> float:
        """Return the seconds since the loop last turned. Any thread."""
        return time.monotonic() - self._standing.beat

    def stop(self) -> None:
        """Finish what is in flight, acknowledge it, and end :meth:`run`."""
        self._stopping.set()
        self._turn.set()

    # -- callbacks --------------------------------------------------------------------------------------------------

    def _marked(self) -> None:
        self._loop.call_soon_threadsafe(self.fleet.notify)

    def _heard(self) -> None:
        self._loop.call_soon_threadsafe(self._look_soon)

    def _look_soon(self) -> None:
        self._looked = 0.0
        self._turn.set()

    def _settled(self) -> None:
        if self._stream is not None:
            self._stream.acknowledge()

    # -- running ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Consume until stopped.

        Raises:
            ConfigError: the server, the role or a setting will not do.
            NeedsPerson: the slot is lost, and a person is to decide.
        """
        log.info("engine_started")
        self.gates.start()
        pulse = asyncio.create_task(self._standing.pulse(), name="pulse")
        try:
            attempt = 0
            while not self._stopping.is_set():
                began = time.monotonic()
                try:
                    await self._session()
                except (Unavailable, Fenced, SlotLost, DecodeError) as exc:
                    attempt = 1 if time.monotonic() - began > 30 else attempt + 1
                    await self._recover(exc, attempt)
        finally:
            await end([pulse])
            await self.gates.close()
            await self._slots.close()
        self._standing.set_slot(SlotState.STOPPED, "")
        self._standing.take()
        log.info("engine_stopped")

    async def _recover(self, exc: WalvecError, attempt: int) -> None:
        """Say what went wrong, and wait or mend."""
        if isinstance(exc, SlotLost):
            await self._slot_lost(exc)
            return
        pause = backoff_s(min(attempt, 8), most=5.0)
        if isinstance(exc, SlotInUse):
            self._standing.database_ok = True
            self._standing.set_slot(SlotState.STANDBY, str(exc))
            pause = 1.0
        elif isinstance(exc, PublicationMissing):
            self._standing.database_ok = True
            self._standing.set_slot(SlotState.PUBLICATION_MISSING, str(exc))
            await self._standing.say_slot()
            if self._at_look is not None:  # jobs have publications of their own
                with contextlib.suppress(WalvecError):
                    await self._at_look()
            pause = 1.0
        else:
            self._standing.database_ok = not isinstance(exc, Unavailable) or isinstance(exc, Fenced)
            self._standing.set_slot(SlotState.CONNECTING, str(exc))
            log.warning("slot_disconnected", message=str(exc))
        self._standing.take()
        await self._sleep(pause)

    async def _slot_lost(self, exc: SlotLost) -> None:
        self._observer.slot_lost()
        self._standing.set_slot(SlotState.LOST, str(exc))
        log.error("slot_lost", message=str(exc))
        await self._standing.say_slot()
        self._standing.take()
        if not self._settings.reconcile_lost_slot and not isinstance(exc, SlotStuck):
            raise NeedsPerson(
                f"{exc.message} WALVEC_ON_SLOT_LOST is stop.",
                "Set it to reconcile and start again: a new slot is made, and source and embeddings are compared.",
            )
        try:
            await self._slots.renew_slot()
            log.info("slot_created")
        except Unavailable as wait:
            log.warning("database_unavailable", message=str(wait))
            await self._sleep(1.0)

    async def _session(self) -> None:
        """Hold the slot for as long as everything goes well."""
        self._standing.set_slot(SlotState.CONNECTING, "")
        await self._slots.open()
        self._standing.database_ok = True
        self.intake.reset()
        self._over.clear()
        stream = self._stream = await self._open_stream(self.intake, self._stream_ended)
        drained = False
        try:
            reasons = await self._slots.take_over(stream.system, stream.timeline)
            for reason in reasons:
                log.warning("reconcile_started", reason=reason)
            await self._reserve(exact=False)
            self._looked = time.monotonic()  # before: a model that answers meanwhile asks for the next look at once
            await self.fleet.sync()
            stream.begin()
            self._standing.set_slot(SlotState.STREAMING, "")
            await self._standing.say_slot()
            log.info("slot_streaming")
            await self._turns(stream)
            drained = await self._drain(stream)
        finally:
            await self._end(stream, drained)

    async def _end(self, stream: Stream, drained: bool) -> None:
        await self._overflow.stop()
        if not drained:
            await self.fleet.stop()
        self._stream = None
        await stream.close(drain=drained)
        if drained:
            await self.fleet.stop()
        self.intake.reset()

    async def _turns(self, stream: Stream) -> None:
        """Turn until asked to stop or the stream ends: what was asked of a silent server may never be answered."""
        over = asyncio.create_task(self._over.wait(), name="stream over")
        turn: asyncio.Task[None] | None = None
        try:
            while not self._stopping.is_set():
                turn = asyncio.create_task(self._work(stream), name="turn")
                await asyncio.wait((turn, over), return_when=asyncio.FIRST_COMPLETED)
                if over.done() and stream.failure is not None:
                    self._standing.set_slot(SlotState.CONNECTING, str(stream.failure))
                    await end([turn])
                    await self._broken(stream.failure)
                await turn
        finally:
            await end([over] if turn is None else [over, turn])

    async def _work(self, stream: Stream) -> None:
        """One turn: look, acknowledge, move overflow, report."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._turn.wait(), TURN_S)
        self._turn.clear()
        if stream.failure is not None:
            await self._broken(stream.failure)
        if self.fleet.fenced is not None:
            fenced, self.fleet.fenced = self.fleet.fenced, None
            raise fenced
        await self._close_gaps()
        await self.fleet.bury_failed()
        if time.monotonic() - self._looked >= LOOK_S:
            self._looked = time.monotonic()
            await self._look()
        await self.fleet.save_counts()
        await self._reserve(exact=False)
        self._overflow.look(self.fleet.pipelines, self._standing.slot.safe_bytes)
        self.fleet.notify()
        await self._standing.report()

    async def _broken(self, failure: WalvecError) -> None:
        """Raise why the stream ended."""
        if isinstance(failure, PublicationMissing):
            await self.fleet.sync()  # raises the same, unless the publication is back
            raise SlotStuck(
                "The publication was dropped and made again, and the server cannot decode what lies between."
            ) from failure
        raise failure

    async def _look(self) -> None:
        # First what was asked for, then the catalogue: who asks after a change of a table means it as changed.
        asked = await self._registry.requests()
        await self.fleet.sync()
        await self.fleet.answer(asked)
        view = await self._slots.slot()
        if view.lost or not view.exists:
            raise SlotLost("The slot was dropped or invalidated while in use.")
        self._standing.saw_slot(view)
        if self._at_look is not None:
            await self._at_look()

    async def _close_gaps(self) -> None:
        await self.fleet.close_gaps()
        gap = self.intake.gap
        if gap:
            log.warning("server_notice", message=gap)
            await self.fleet.reconcile(None, gap)
            self.intake.gap = ""
            self._settled()

    async def _reserve(self, *, exact: bool) -> None:
        """Keep the durable note of how far acknowledgements may go ahead of them; at the end, make it exact."""
        with self.intake.lock:
            acknowledged = self.intake.ledger.acknowledged
            if exact:  # first here, then there: the stream goes on acknowledging meanwhile
                self.intake.ack_limit = min(acknowledged, self.intake.ack_limit)
        if exact:
            await self._slots.reserve(self.intake.ack_limit)
        elif self.intake.ack_limit - acknowledged < RESERVED_BYTES // 2:
            view = await self._slots.slot()
            limit = max(acknowledged, view.confirmed) + RESERVED_BYTES
            await self._slots.reserve(limit)
            self.intake.ack_limit = limit
            self._settled()

    async def _drain(self, stream: Stream) -> bool:
        """Let what is pending be embedded, for a while; tell whether a last acknowledgement can be sent."""
        log.info("engine_stopping")
        stream.pause()
        deadline = time.monotonic() + DRAIN_S
        while time.monotonic() < deadline:
            if all(pipeline.is_drained for pipeline in self.fleet.pipelines):
                break
            await asyncio.sleep(0.02)
        await self.fleet.save_counts()
        await self._standing.report()
        await self._reserve(exact=True)
        return True

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    def _stream_ended(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
