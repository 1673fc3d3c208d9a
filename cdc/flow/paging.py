"""How many rows the next page of a scan should have: as many as take about a fifth of a second."""

from __future__ import annotations

TARGET_S = 0.2
LEAST, MOST = 64, 8192


class PageSize:
    """Put the time a page took in, ask for the next size. It at most doubles, and halves, from page to page."""

    def __init__(self, rows: int = 1024) -> None:
        self.rows = rows

    def took(self, rows: int, seconds: float) -> None:
        """Note that a page of ``rows`` rows took ``seconds``."""
        if not rows:
            return
        ideal = rows * TARGET_S / max(seconds, 1e-4)
        self.rows = int(min(MOST, max(LEAST, min(self.rows * 2, max(self.rows / 2, ideal)))))
