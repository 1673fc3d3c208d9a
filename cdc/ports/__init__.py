"""What the services ask of the world, each port cut to its listener's size."""

from __future__ import annotations

from cdc.ports.jobs import JobReport, JobRunner
from cdc.ports.model import CANARY, Embedded, EmbedFailed, Model, ModelChoice, Models
from cdc.ports.registry import (
    Followed,
    PipelineReport,
    Registry,
    Request,
    Route,
    ScanPoint,
    SlotKeeper,
    SlotView,
    Stream,
    Wanted,
)
from cdc.ports.target import DeadLetter, Difference, Page, Reread, Results, Target, Vectors, Write, Written
from cdc.ports.watching import EngineView, Failures, Observer

__all__ = [
    "CANARY",
    "DeadLetter",
    "Difference",
    "EmbedFailed",
    "Embedded",
    "EngineView",
    "Failures",
    "Followed",
    "JobReport",
    "JobRunner",
    "Model",
    "ModelChoice",
    "Models",
    "Observer",
    "Page",
    "PipelineReport",
    "Registry",
    "Request",
    "Reread",
    "Results",
    "Route",
    "ScanPoint",
    "SlotKeeper",
    "SlotView",
    "Stream",
    "Target",
    "Vectors",
    "Wanted",
    "Write",
    "Written",
]
