"""The replication slot: made, checked, taken over, renewed, and how far it may be acknowledged."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

import psycopg
from psycopg.rows import TupleRow

from cdc.errors import Fenced, PublicationMissing, SlotInUse, SlotLost
from cdc.lsn import format_lsn, parse_lsn
from cdc.ports import SlotView
from cdc.postgres import control, setup
from cdc.postgres.catalog import Publication
from cdc.postgres.connect import classify, connect_sync
from cdc.postgres.queries import bound
from cdc.postgres.server import check_server
from cdc.postgres.session import ControlSession

OUT_OF_BAND = "the slot was moved or made anew by somebody else"


class PostgresSlotKeeper:
    """Implements :class:`cdc.ports.SlotKeeper`. Not thread-safe: one event loop uses it.

    Args:
        control: The sessions.
        waiting: Told, from another thread, whom the server waits for before it can make a slot.
    """

    def __init__(self, control: ControlSession, waiting: Callable[[str], None]) -> None:
        self._control = control
        self._waiting = waiting

    async def open(self) -> None:
        """Check the server and make what is missing: control schema, extension, slot."""
        await asyncio.to_thread(self._prepare)
        await self._control.open()

    def _prepare(self) -> None:
        with connect_sync(self._control.settings, "setup") as connection:
            try:
                check_server(connection)
                control.ensure(connection, self._control.settings.schema)
                if self._control.settings.vector_type != "real[]":
                    setup.ensure_vector(connection)
                self._check_slot(connection)
            except psycopg.Error as exc:
                raise classify(exc) from exc

    def _check_slot(self, connection: psycopg.Connection[TupleRow]) -> None:
        settings = self._control.settings
        there = connection.execute(bound("catalog", "publication"), {"publication": settings.publication}).fetchone()
        known = connection.execute(self._control.query("slot_row"), {"slot": settings.slot}).fetchone()
        row = connection.execute(self._control.query("slot_state"), {"slot": settings.slot}).fetchone()
        view = _slot_view(row)
        if there is None:
            raise PublicationMissing(
                f'The publication "{settings.publication}" does not exist, so nothing is watched.',
                setup.publication_sql(settings.publication, []),
            )
        if view.active_pid is not None:
            raise SlotInUse(f'Another consumer (pid {view.active_pid}) holds the slot "{settings.slot}".')
        if view.lost:
            raise SlotLost(f'The server has invalidated the slot "{settings.slot}": it had to keep too much WAL.')
        if not view.exists and known is not None:
            raise SlotLost(f'The slot "{settings.slot}" has been dropped.')
        setup.ensure_slot(settings, connection, self._waiting)

    async def take_over(self, system: str, timeline: int) -> list[str]:
        """Start a new epoch, which shuts others out; return why everything must be reconciled, if it must."""
        slot = {"slot": self._control.settings.slot}
        before = await self._control.one("slot_row", slot)
        view = await self.slot()
        publication = await self._publication()
        reasons = []
        if before is not None:
            _, oid, old_system, old_timeline, limit = before
            if oid is not None and oid != publication.oid:
                reasons.append("the publication was made anew")
            if old_system is not None and (old_system, old_timeline) != (system, timeline):
                reasons.append("the server was failed over or restored")
            if limit is not None and view.confirmed > parse_lsn(limit):
                reasons.append(OUT_OF_BAND)
        if reasons:  # durable before what told us of it is overwritten
            await self._control.need_reconcile("; ".join(reasons))
        taken = {
            **slot,
            "publication": self._control.settings.publication,
            "publication_oid": publication.oid,
            "system": system,
            "timeline": timeline,
            "instance": f"{socket.gethostname()}:{os.getpid()}",
        }
        row = await self._control.one("take_over", taken)
        self._control.epoch = int(row[0]) if row else 0
        await self._control.run("adopt", {**slot, "epoch": self._control.epoch})
        await self._control.run("restart_requests", slot)
        await self.reserve(view.confirmed)
        return reasons

    async def renew_slot(self) -> None:
        """Drop what is left of a lost slot, make a new one, and have everything reconciled."""
        await self._control.open()
        if (await self.slot()).exists:
            await self._control.run("drop_slot", {"slot": self._control.settings.slot})
        # First the promise to reconcile, then the slot: a crash in between must not leave a gap that looks whole.
        await self._control.need_reconcile("the slot was lost")
        await asyncio.to_thread(self._make_slot)
        view = await self.slot()
        await self._control.run(
            "reserve_any", {"slot": self._control.settings.slot, "limit": format_lsn(view.confirmed)}
        )

    def _make_slot(self) -> None:
        with connect_sync(self._control.settings, "setup") as connection:
            setup.ensure_slot(self._control.settings, connection, self._waiting)

    async def slot(self) -> SlotView:
        """Return the slot as it is now."""
        return _slot_view(await self._control.one("slot_state", {"slot": self._control.settings.slot}))

    async def reserve(self, limit: int) -> None:
        """Make it durable that nothing beyond ``limit`` has been acknowledged."""
        params = {"slot": self._control.settings.slot, "limit": format_lsn(limit), "epoch": self._control.epoch}
        if await self._control.one("reserve", params) is None:
            raise Fenced("Another consumer has taken over the slot.")

    async def publish_slot(self, state: str, reason: str) -> None:
        """Write where the consumer stands with its slot."""
        if self._control.is_open:
            await self._control.run(
                "publish_slot", {"slot": self._control.settings.slot, "state": state, "reason": reason}
            )

    async def close(self) -> None:
        """Let go of the connections."""
        await self._control.close()

    async def _publication(self) -> Publication:
        name = self._control.settings.publication
        async with self._control.lend() as connection:
            cursor = await connection.execute(bound("catalog", "publication"), {"publication": name})
            row = await cursor.fetchone()
        if row is None:
            raise PublicationMissing(f'The publication "{name}" does not exist.')
        return Publication(*row)


def _slot_view(row: TupleRow | None) -> SlotView:
    if row is None:
        return SlotView(exists=False)
    _, _, pid, wal_status, restart, confirmed, safe, retained, lag, _ = row
    return SlotView(
        exists=True,
        lost=wal_status == "lost" or restart is None,
        active_pid=pid,
        confirmed=parse_lsn(confirmed) if confirmed else 0,
        lag_bytes=max(0, int(lag or 0)),
        retained_bytes=max(0, int(retained or 0)),
        safe_bytes=None if safe is None else int(safe),
    )
