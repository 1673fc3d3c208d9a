"""The daemon as the HTTP server sees it: every database's pipelines and jobs side by side."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from cdc.app import first_vector
from cdc.config import Settings
from cdc.daemon.index_jobs import IndexSearch, IndexWait, filled
from cdc.errors import ConfigError, UnknownPipeline, WalvecError
from cdc.flow.merged import STATES, Part, merged
from cdc.jobs import EmbeddingSpec, IndexSpec, JobState
from cdc.postgres.connect import connect_sync
from cdc.postgres.search import nearest, searchable
from cdc.postgres.sync import Sync
from cdc.services.director import Director
from cdc.services.embedding_jobs import EmbeddingJobs, Home
from cdc.services.job_member import Member, in_a_jobs_words
from cdc.status import EngineStatus, HealthCheck, PipelineState, PipelineStatus
from cdc.telemetry.metrics import Metrics

TURN_S = 0.25
"""Seconds between two snapshots."""


class DaemonView:
    """Implements :class:`cdc.ports.EngineView`.

    Args:
        settings: Those of the target database at a URL, given its identity and the control's digest.
        embedding: The engines.
        directors: Returns the directors of now.
        clean: Takes secrets out of a sentence.
        troubles: Databases that are not served: by connection string, (a name for people, why).
    """

    def __init__(
        self,
        settings: Callable[[str, str, str], Settings],
        embedding: EmbeddingJobs,
        directors: Callable[[], Sequence[Director]],
        clean: Callable[[str], str],
        troubles: Mapping[str, tuple[str, str]],
    ) -> None:
        self.indexes: IndexSearch | None = None
        self._troubles = troubles
        self._settings = settings
        self._embedding = embedding
        self._directors = directors
        self._clean = clean
        self._loop = asyncio.get_running_loop()
        self._beat = time.monotonic()
        self._snapshot = self._status()

    # -- what the server asks ---------------------------------------------------------------------------------------

    def status(self) -> EngineStatus:
        """Return the latest snapshot at once."""
        return self._snapshot

    def heartbeat_age_s(self) -> float:
        """Return the seconds since the loop last turned."""
        return time.monotonic() - self._beat

    def search(
        self,
        pipeline: str,
        *,
        query: str | None,
        vector: Sequence[float] | None,
        k: int,
        filter: Mapping[str, object] | None,
        ef: int | None = None,
    ) -> list[dict[str, object]]:
        """Return up to ``k`` rows nearest to ``query`` or ``vector``: from the external index, where there is one."""
        indexes = self.indexes
        indexed = indexes is not None and pipeline in indexes.names()
        if indexes is not None and indexed and not filter:
            if vector is None:
                place, column = indexes.column(pipeline)
                vector = self._embedded(column, self._home(place, column), query or "")
            return indexes.search(pipeline, vector, k, ef)
        name, home = self._find(pipeline)
        if home is None and indexed:
            raise ConfigError(f"{pipeline} is an external index, which takes no filter.", "Leave the filter out.")
        if home is None:
            raise UnknownPipeline(f'There is no pipeline "{pipeline}".', f"Pipelines: {', '.join(self._names())}.")
        if vector is None:
            vector = self._embedded(name, home, query or "")
        settings = self._settings(home.url, home.identity, home.control)
        with connect_sync(settings, "search") as conn:
            return nearest(conn, searchable(conn, settings.schema, name), vector, k, filter, ef)

    def sync(self, timeout_s: float) -> bool:
        """Wait until all that was committed before the call, on every database, is settled and can be found."""
        deadline = time.monotonic() + timeout_s
        waiting = [
            Sync(self._settings(home.url, home.identity, home.control), lambda _: None) for home in self._running()
        ]
        indexes = IndexWait(self.indexes, self._directors) if self.indexes is not None else None
        settled = all(one.wait(max(0.0, deadline - time.monotonic())) for one in waiting)
        return settled and (indexes is None or indexes.wait(deadline))

    # -- putting it together ----------------------------------------------------------------------------------------

    async def keep(self, metrics: Metrics, publish: Callable[[EngineStatus], None]) -> None:
        """Take a snapshot now and then, until cancelled; ``publish`` is given each."""
        while True:
            self._beat = time.monotonic()
            self._snapshot = self._status()
            publish(self._snapshot)
            metrics.jobs(sum((director.counts() for director in self._directors()), Counter()))
            await asyncio.sleep(TURN_S)

    def _status(self) -> EngineStatus:
        parts = [
            Part(home.place, self._in_words(home.engine.status()))
            for home in self._embedding.homes.values()
            if home.engine is not None
        ]
        checks = [director.check() for director in self._directors()]
        checks += [HealthCheck(f"database {name}", "warn", why) for name, why in self._troubles.values()]
        read = any(not director.trouble for director in self._directors())
        checks.insert(0, HealthCheck("database", "ok" if read or not checks else "error", _first_trouble(checks)))
        return merged(parts, self._others(), checks)

    def _in_words(self, status: EngineStatus) -> EngineStatus:
        """Return what an engine says with the columns of jobs in the place of settings."""
        pipelines = [replace(p, reason=self._said(p.reason)) if p.reason else p for p in status.pipelines]
        checks = [replace(c, message=self._said(c.message)) if c.message else c for c in status.checks]
        slot = replace(status.slot, reason=self._said(status.slot.reason))
        return replace(status, pipelines=tuple(pipelines), checks=tuple(checks), slot=slot)

    def _others(self) -> list[PipelineStatus]:
        """Return the jobs that no engine speaks for: other kinds, and those that could not begin."""
        found = []
        for director in self._directors():
            living = director.living()
            for member in director.members.values():
                if str(member.id) in living and (status := self._of(member)) is not None:
                    found.append(status)
        return found

    def _of(self, member: Member) -> PipelineStatus | None:
        asked, job = member.asked, member.job
        if asked is None or asked.table is None or asked.spec is None:
            return None
        place = f"{job.place}/" if job is not None else ""
        spec = asked.spec
        embeds = isinstance(spec, EmbeddingSpec)
        column = spec.target_column if isinstance(spec, EmbeddingSpec) else spec.column
        name = f"{place}{asked.table}.{column}" + ("" if embeds else f":{asked.kind.value}")
        model = "" if isinstance(spec, IndexSpec) else spec.model
        state = STATES[asked.state]
        if embeds and state is PipelineState.READY:
            state = PipelineState.WAITING  # its engine is not there: its database is away, say
        reason = asked.reason if asked.state is JobState.FAILED else member.waits or self._slot_reason(member)
        status = PipelineStatus(name, model=model, state=state, reason=self._said(reason))
        if isinstance(spec, IndexSpec) and self.indexes is not None:
            return filled(replace(status, pipeline=f"{name}/{member.id.id}"), self.indexes.standing(member.id))
        return status

    def _said(self, reason: str) -> str:
        return self._clean(in_a_jobs_words(reason)) if reason else ""

    def _slot_reason(self, member: Member) -> str:
        job = member.job
        wanted = (job.place, member.id.control.digest) if job is not None else None
        homes = [home for home in self._embedding.homes.values() if (home.place, home.control) == wanted]
        return next((home.engine.status().slot.reason for home in homes if home.engine is not None), "")

    # -- finding a pipeline -----------------------------------------------------------------------------------------

    def _running(self) -> list[Home]:
        return [home for home in list(self._embedding.homes.values()) if home.is_running]

    def _names(self) -> list[str]:
        names = [f"{home.place}/{name}" for home in self._running() for name in list(home.choices)]
        return sorted({*names, *(self.indexes.names() if self.indexes is not None else ())}) or ["none yet"]

    def _find(self, pipeline: str) -> tuple[str, Home | None]:
        """Return the name within its database, and the database; None where no engine has it.

        Raises:
            ConfigError: several databases have one of this name.
        """
        found = [
            (name, home)
            for home in self._running()
            for name in list(home.choices)
            if pipeline in (name, f"{home.place}/{name}")
        ]
        if len(found) > 1:
            places = ", ".join(f"{home.place}/{name}" for name, home in found)
            raise ConfigError(f"Several databases have a pipeline {pipeline}.", f"Name one of them: {places}.")
        return found[0] if found else (pipeline, None)

    def _home(self, place: str, column: str) -> Home | None:
        """Return the engine that writes a column; None where there is none."""
        return next((home for home in self._running() if home.place == place and column in home.choices), None)

    def _embedded(self, name: str, home: Home | None, query: str) -> list[float]:
        choice = home.choices.get(name) if home is not None else None
        if choice is None or isinstance(choice, WalvecError):
            raise ConfigError(
                f"No model is known that {name} was embedded with, so a question in words cannot be asked.",
                "Send a vector instead.",
            )
        asked = asyncio.run_coroutine_threadsafe(choice.model.embed([query], query=True), self._loop)
        return first_vector(asked.result)


def _first_trouble(checks: Sequence[HealthCheck]) -> str:
    return next((check.message for check in checks if check.status == "error"), "")
