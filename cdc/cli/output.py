"""What the commands print: tables and JSON on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPE_WIDTH = 200
"""Columns of a table that does not go to a terminal: nothing is cut where a program reads."""


def note(line: str) -> None:
    """Say something to the person, on standard error."""
    print(f"walvec: {line}", file=sys.stderr, flush=True)


def as_json(value: Any) -> None:
    """Print one JSON document; times in ISO 8601."""
    print(json.dumps(value, ensure_ascii=False, indent=2, default=_iso))


def console() -> Console:
    """Return the console for tables."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False, emoji=False, markup=False)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], numeric: Sequence[str] = ()) -> Table:
    """Return a table; None shows as an empty cell, the columns in ``numeric`` are right-aligned."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in numeric else "left", overflow="fold")
    for row in rows:
        made.add_row(*[Text("" if cell is None else str(cell)) for cell in row])
    return made


def size(count: int) -> str:
    """Return bytes as people read them."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _iso(value: object) -> str:
    isoformat = getattr(value, "isoformat", None)
    return str(isoformat()) if callable(isoformat) else str(value)
