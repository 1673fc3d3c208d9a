"""What the reader of the stream and the worker of a pipeline share."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from cdc.flow.counts import SourceCount
from cdc.flow.dirty import DirtyKeys


@dataclass(slots=True)
class Desk:
    """A pipeline's dirty keys and row count. Whoever touches them holds ``lock``, which all pipelines share.

    Commits at or below ``replay_until`` had been written back by an earlier run, at least in part: their texts may be
    older than what stands, so their keys are read again instead.
    """

    name: str
    lock: threading.Lock
    dirty: DirtyKeys
    count: SourceCount
    replay_until: int = 0
