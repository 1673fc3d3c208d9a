"""Which transactions a query could see.

The stream delivers a commit when its record is flushed; other sessions see it only when the server takes it out of its
list of running transactions, which synchronous replication can delay at will. Whoever reads a table after hearing of a
commit must therefore ask whether the snapshot covers it (``pg_current_snapshot()``,
https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT).
"""

from __future__ import annotations

from dataclasses import dataclass

_HALF = 1 << 31
_WRAP = 1 << 32


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``pg_snapshot``: everything below ``xmin`` has ended, nothing from ``xmax`` on, and ``running`` had not."""

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Return the snapshot that PostgreSQL prints as ``xmin:xmax:xip,xip``."""
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(int(x) for x in running.split(",") if x))

    def covers(self, xid: int) -> bool:
        """Tell whether transaction ``xid`` (32 bits, as pgoutput sends it) had ended when the snapshot was taken."""
        full = (self.xmax & ~(_WRAP - 1)) | xid
        if full - self.xmax > _HALF:
            full -= _WRAP
        elif self.xmax - full > _HALF:
            full += _WRAP
        return full < self.xmax and (full < self.xmin or full not in self.running)

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, sorted(self.running)))}"
