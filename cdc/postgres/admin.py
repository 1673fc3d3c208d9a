"""What the commands read from the control schema and change in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow, dict_row

from cdc.errors import ConfigError
from cdc.postgres import control
from cdc.postgres.connect import classify
from cdc.postgres.published import fault, published
from cdc.postgres.queries import bound
from cdc.postgres.setup import SetupSettings
from cdc.status import EngineStatus, HealthCheck, PipelineState, PipelineStatus, SlotState, SlotStatus

Conn = psycopg.Connection[TupleRow]


class Admin:
    """The commands' view of one database. Every method checks first that the control schema is there.

    Args:
        conn: A connection in autocommit mode.
        settings: The names of schema, slot and publication.

    Raises:
        ConfigError: The control schema is missing or of another version.
    """

    def __init__(self, conn: Conn, settings: SetupSettings) -> None:
        control.require(conn, settings.schema)
        self._conn = conn
        self._settings = settings

    def status(self) -> EngineStatus:
        """Return the slot and its pipelines as the database knows them, the consumer running or not.

        Published tables that have no pipeline, because none can follow them, are among the checks.
        """
        slot = self._slot_status()
        rows = self._rows("pipeline_metrics", {"slot": self._settings.slot})
        pipelines = tuple(_pipeline_status(row) for row in rows)
        known = {row["table"] for row in self._rows("known_tables")}
        return EngineStatus(slot=slot, pipelines=pipelines, checks=tuple(self._checks(known)))

    def _checks(self, known: set[str]) -> Iterator[HealthCheck]:
        for table in published(self._conn, self._settings.publication, self._settings.schema):
            found = None if str(table.table) in known else fault(table)
            if found is not None:
                yield HealthCheck(str(table.table), "error", str(found))

    def pipelines(self) -> list[str]:
        """Return the names of all pipelines."""
        return [row["name"] for row in self._rows("pipelines")]

    def set_paused(self, pipeline: str, paused: bool) -> bool:
        """Pause or resume a pipeline and wake the consumer; return False where it already was so.

        Raises:
            ConfigError: There is no such pipeline.
        """
        self._require_pipeline(pipeline)
        return self._change("set_paused", [paused, pipeline, paused]).rowcount > 0

    def errors(self, pipeline: str | None) -> list[dict[str, Any]]:
        """Return the dead letters of one pipeline or of all, oldest first, as ``walvec.pipeline_errors`` shows them.

        Raises:
            ConfigError: There is no such pipeline.
        """
        self._require_pipeline(pipeline)
        return self._rows("errors", [pipeline, pipeline])

    def requeue_errors(self, pipeline: str | None) -> int:
        """Put dead letters back into the durable queue and return how many.

        Raises:
            ConfigError: There is no such pipeline.
        """
        self._require_pipeline(pipeline)
        row = self._change("requeue", [pipeline, pipeline]).fetchone()
        return int(row[0]) if row else 0

    def clear_errors(self, pipeline: str | None) -> int:
        """Forget dead letters and return how many. Their rows stay without an embedding until they change.

        Raises:
            ConfigError: There is no such pipeline.
        """
        self._require_pipeline(pipeline)
        return self._change("clear", [pipeline, pipeline]).rowcount

    def ask_reconcile(self, pipelines: Sequence[str]) -> list[int]:
        """Ask their consumers to scan these pipelines from the start; return the requests' ids.

        Raises:
            ConfigError: One of them is a job's, and no daemon runs it.
        """
        idle = self._rows("idle_jobs", [list(pipelines)])
        if idle:
            raise ConfigError(f'No daemon runs the job of "{idle[0]["name"]}".', "Start `walvec start-daemon`.")
        return [int(row[0]) for row in self._change("ask_reconcile", [list(pipelines)]).fetchall()]

    def has_consumer(self, pipelines: Sequence[str]) -> bool:
        """Tell whether consumers hold the slots of all these pipelines."""
        (row,) = self._rows("consumers", [list(pipelines)])
        return bool(row["active"])

    def show_requests(self, requests: Sequence[int], progress: Callable[[str, int, int], None]) -> bool:
        """Tell ``progress`` (pipeline, rows done, in all) how far the requests are; return whether all are done."""
        rows = self._rows("requests", [list(requests)])
        for row in rows:
            progress(row["name"], row["scan_done"], row["scan_total"])
        return all(row["finished"] for row in rows)

    def _slot_status(self) -> SlotStatus:
        row = self._rows("slot", [self._settings.publication, self._settings.slot])[0]
        slot: Mapping[str, Any] = row["slot"] or {}
        state, reason = _slot_state(slot, row)
        return SlotStatus(
            name=self._settings.slot,
            state=state,
            reason=reason,
            lag_bytes=max(0, row["lag_bytes"] or 0),
            retained_bytes=max(0, row["retained_bytes"] or 0),
            safe_bytes=slot.get("safe_wal_size"),
        )

    def _require_pipeline(self, pipeline: str | None) -> None:
        names = self.pipelines()
        if pipeline is not None and pipeline not in names:
            known = ", ".join(names) or "none yet"
            raise ConfigError(f'There is no pipeline "{pipeline}".', f"Pipelines: {known}.")

    def _rows(self, name: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
        statement = bound("admin", name, schema=sql.Identifier(self._settings.schema))
        try:
            with self._conn.cursor(row_factory=dict_row) as cursor:
                return cursor.execute(statement, params).fetchall()
        except psycopg.Error as exc:
            raise classify(exc) from exc

    def _change(self, name: str, params: Sequence[Any]) -> psycopg.Cursor[TupleRow]:
        """Run a change and tell the consumer of it, in one transaction."""
        statement = bound("admin", name, schema=sql.Identifier(self._settings.schema))
        try:
            with self._conn.transaction():
                cursor = self._conn.execute(statement, params)
                self._conn.execute(bound("admin", "wake"), [])
            return cursor
        except psycopg.Error as exc:
            raise classify(exc) from exc


def _slot_state(slot: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[SlotState, str]:
    if not row["published"]:
        return SlotState.PUBLICATION_MISSING, "The publication does not exist: CREATE PUBLICATION … FOR TABLE …;"
    if not slot:
        return SlotState.LOST, "The slot does not exist."
    if slot.get("wal_status") == "lost" or slot.get("invalidation_reason"):
        return SlotState.LOST, f"The server invalidated the slot: {slot.get('invalidation_reason') or 'WAL removed'}."
    if not slot["active"]:
        return SlotState.STOPPED, "Nobody reads the slot."
    state = SlotState(row["state"]) if row["state"] else SlotState.CONNECTING
    # What the consumer last wrote about itself may be older than what the server says now.
    return (SlotState.STREAMING if state is SlotState.STOPPED else state), row["reason"] or ""


def _pipeline_status(row: Mapping[str, Any]) -> PipelineStatus:
    """Return a row's status. A job's slot is not the consumer's: that nobody reads it is said of the job."""
    state, reason = PipelineState(row["status"]), row["reason"]
    if row["slot"].startswith("walvec_jobs") and not row["is_read"] and state is not PipelineState.DETACHED:
        state, reason = PipelineState.WAITING, "Neither walvec run nor walvec start-daemon runs its jobs now."
    return PipelineStatus(
        pipeline=row["pipeline"],
        mode=row["mode"],
        source_type=row["source_type"],
        model=row["model"],
        state=state,
        reason=reason,
        slot=row["slot"],
        unprocessed_rows=row["unprocessed_rows"],
        scans_completed=row["scans_completed"],
        source_records=row["source_records"],
        embeddings=row["embeddings"],
        lag_seconds=row["lag_seconds"],
        errors=row["errors"],
        backfill_done=row["scan_done"],
        backfill_total=row["scan_total"],
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """What to drop."""

    slot: bool
    publication: bool
    schema: bool


@dataclass(frozen=True, slots=True)
class _OfJobs:
    """A slot or publication that jobs use; ``bytes`` of WAL are kept by a slot."""

    what: str
    name: str
    bytes: int
    active_pid: int | None
    mine: bool


_KINDS = {"slot": "replication slot", "publication": "publication"}


class Dropper:
    """Removes what ``init`` made. Tables of embeddings stay.

    Args:
        conn: A connection in autocommit mode.
        settings: The names of schema, slot and publication.
    """

    def __init__(self, conn: Conn, settings: SetupSettings) -> None:
        self._conn = conn
        self._settings = settings
        try:
            names = [settings.slot, settings.publication, settings.schema]
            row = conn.execute(bound("admin", "drop_plan"), names).fetchone()
            self._jobs = [_OfJobs(*found) for found in conn.execute(bound("admin", "drop_jobs")).fetchall()]
        except psycopg.Error as exc:
            raise classify(exc) from exc
        assert row is not None, "the statement always gives one row"
        self._slot, self._publication, self._schema = row

    def plan(self, choice: Choice) -> list[str]:
        """Return one sentence for each chosen thing that exists: what goes, and what that frees."""
        lines = []
        if choice.slot and self._slot:
            freed = _bytes(self._slot["bytes"] or 0)
            lines.append(f'The replication slot "{self._settings.slot}": frees {freed} of WAL at the next checkpoint.')
        for left in self._chosen(choice):
            freed = f"frees {_bytes(left.bytes)} of WAL at the next checkpoint" if left.what == "slot" else "of jobs"
            lines.append(f'The {_KINDS[left.what]} "{left.name}": {freed}.')
        if choice.schema and self._schema:
            lines.append(f'The schema "{self._settings.schema}": pipelines, progress, queue and dead letters.')
        if choice.publication and self._publication:
            lines.append(f'The publication "{self._settings.publication}": what says which tables are watched.')
        return lines

    def drop(self, choice: Choice) -> None:
        """Drop what was chosen and exists: first the slot, last the publication.

        Raises:
            ConfigError: The slot is in use or another database's, or the role may not.
        """
        self._refuse(choice)
        try:
            if choice.slot and self._slot:
                self._conn.execute("SELECT pg_drop_replication_slot(%s)", [self._settings.slot])
            for left in self._chosen(choice):
                if left.what == "slot":
                    self._conn.execute("SELECT pg_drop_replication_slot(%s)", [left.name])
                else:
                    self._conn.execute(sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(left.name)))
            if choice.schema and self._schema:
                statement = sql.SQL("DROP SCHEMA {} CASCADE")
                self._conn.execute(statement.format(sql.Identifier(self._settings.schema)))
            if choice.publication and self._publication:
                self._conn.execute(sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(self._settings.publication)))
        except psycopg.Error as exc:
            raise classify(exc) from exc

    def _chosen(self, choice: Choice) -> list[_OfJobs]:
        """Return what jobs use and goes too: with the control schema all of it, for nobody would ever read it again."""
        return [
            left for left in self._jobs if choice.schema or (choice.slot if left.what == "slot" else choice.publication)
        ]

    def _refuse(self, choice: Choice) -> None:
        """Refuse before anything is dropped, so that a refusal leaves everything as it was."""
        slot, publication, schema = self._settings.slot, self._settings.publication, self._settings.schema
        if choice.slot and self._slot and not self._slot["here"]:
            raise ConfigError(f'The replication slot "{slot}" belongs to database "{self._slot["database"]}".')
        if choice.slot and self._slot and self._slot["active_pid"]:
            pid = self._slot["active_pid"]
            raise ConfigError(f'The replication slot "{slot}" is in use by pid {pid}.', "Stop that `walvec run` first.")
        for left in self._chosen(choice):
            if left.active_pid is not None:
                raise ConfigError(
                    f'The replication slot "{left.name}" of jobs is in use by pid {left.active_pid}.',
                    "Stop that `walvec run` or `walvec start-daemon` first.",
                )
            if not left.mine:
                raise ConfigError(
                    f'The publication "{left.name}" of jobs belongs to another role.', "Let that role drop it."
                )
        if choice.schema and self._schema and control.installed_version(self._conn, schema) == 0:
            raise ConfigError(f'The schema "{schema}" is not walvec\'s.', "Correct WALVEC_SCHEMA.")
        for chosen, found, what in (
            (choice.publication, self._publication, f'publication "{publication}"'),
            (choice.schema, self._schema, f'schema "{schema}"'),
        ):
            if chosen and found and not found["mine"]:
                raise ConfigError(f'The {what} belongs to the role "{found["owner"]}".', "Let that role drop it.")


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
