"""Which rows a table of autotune's trials gets, by the columns that it has.

Lantern's own table does not say by what a trial was measured, and takes the fastest of those that reach the target:
hnswlib's latencies must not stand beside pgvector's there. Nor does it mark the winner, which would stand there twice.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

Row = Mapping[str, Any]


class TrialRows:
    """Holds hnswlib's trials back where a table has no column ``backend``, until it is known whether others come."""

    def __init__(self) -> None:
        self._held: dict[int, dict[tuple[Any, ...], Row]] = {}

    def take(self, job: int, row: Row, columns: Container[str]) -> list[Row]:
        """Take a trial of a job and return the rows to write now; the winner comes last, with ``best``."""
        proxy = row.get("backend") == "hnswlib"
        if row.get("best"):
            held = self._held.pop(job, {})
            return [*(held.values() if proxy else ()), *([row] if "best" in columns else ())]
        if not proxy:
            self._held.pop(job, None)
        elif "backend" not in columns:  # by its parameters: a run that was ended may have left the same here
            self._held.setdefault(job, {})[(row.get("m"), row.get("efc"), row.get("ef"))] = row
            return []
        return [row]
