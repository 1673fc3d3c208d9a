"""Where jobs are asked for, and where they are to run: what the director asks of the world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cdc.jobs import EmbeddingSpec, Job, JobId, JobKind
from cdc.ports.jobs import JobReport
from cdc.ports.model import ModelChoice
from cdc.rows import Table


@dataclass(frozen=True, slots=True)
class Usage:
    """What a job used since the last time it was said: rows and tokens that were embedded, rows of failed requests."""

    job: int
    rows: int = 0
    tokens: int = 0
    failed_rows: int = 0
    failed_requests: int = 0


@dataclass(frozen=True, slots=True)
class Uncastable:
    """An answer of a model that the job's column type does not take."""

    job: int
    row: str
    value: str = field(repr=False)


class Claim(Protocol):
    """The right to run one job, held until :meth:`release` or until the control database loses our session."""

    async def lost(self) -> None:
        """Return when the right is lost."""
        ...

    async def release(self) -> None:
        """Give the right back."""
        ...


class Books(Protocol):
    """The tables of jobs in one control database."""

    @property
    def place(self) -> str:
        """``host:port/database`` of the control database."""
        ...

    async def open(self) -> None:
        """Check the tables, and give ``database_id`` a default.

        Raises:
            ConfigError: a table is missing, is no table of jobs, or may not be read.
            Unavailable: the database is away.
        """
        ...

    async def read(self) -> Mapping[JobId, tuple[JobKind, Mapping[str, Any]]]:
        """Return every row of every book, as JSON objects. Raises as :meth:`open`."""
        ...

    def report(self, id: JobId, kind: JobKind) -> JobReport:
        """Return what writes into a job's row."""
        ...

    async def claim(self, id: JobId) -> Claim | None:
        """Return the right to run a job; None while another daemon has it. Raises Unavailable."""
        ...

    async def experiments(self, model: str) -> Sequence[Mapping[str, object]]:
        """Return the winners of earlier autotune jobs for a model, as rows of the results table."""
        ...

    async def use(self, usage: Sequence[Usage], uncastable: Sequence[Uncastable]) -> None:
        """Write down what jobs used. Raises Unavailable."""
        ...

    def covers(self, xid: int) -> bool:
        """Tell whether the last :meth:`read` could see what transaction ``xid`` (32 bits) committed."""
        ...

    async def close(self) -> None:
        """Let go of the connections."""
        ...


class Feed(Protocol):
    """Tells that books have changed, as soon as the change is committed."""

    async def run(self) -> None:
        """Listen until cancelled; whatever goes wrong is said in the log and tried again."""
        ...


class Targets(Protocol):
    """Pipelines of jobs in target databases. Blocking work runs in threads."""

    async def identity(self, url: str) -> str:
        """Return what tells the database at ``url`` from every other, whatever its names. Comes before the others.

        Raises:
            ConfigError: wrong password, no such database.
            Unavailable: the server is away.
        """
        ...

    async def check(self, job: Job, url: str) -> None:
        """Check that the job's own role may read its source and write its destination.

        Also that the role of ``url``, which writes for all jobs of the database, may be lent to it. Raises as
        :meth:`identity`.
        """
        ...

    async def ensure(self, url: str, job: Job) -> None:
        """Make or adapt the job's pipeline. Raises as :meth:`identity`, and PipelineFault: the table will not do."""
        ...

    async def detach(self, url: str, control: str, pipeline: str, owner: str) -> None:
        """Detach a pipeline of the slot that this daemon has for a control; one that another job owns stays."""
        ...

    async def attached(self, url: str, control: str) -> Mapping[str, str]:
        """Return the attached pipelines of that slot, each with its owner (:attr:`cdc.jobs.JobId.owner`)."""
        ...

    async def release(self, url: str, control: str) -> None:
        """Drop that slot and its publication: no pipeline is attached any more. Raises Unavailable while it is held."""
        ...


class JobModels(Protocol):
    """Models by what jobs say."""

    def of(self, spec: EmbeddingSpec, kind: JobKind) -> ModelChoice:
        """Return the model that a job asks for; nothing is reached. Raises ConfigError where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class BookName:
    """A table of jobs of one kind."""

    kind: JobKind
    table: Table
