"""What the demo prints: colours and a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 140
PLAIN_EVERY_S = 10.0
INDENT = 3


class Screen:
    """Where the demo is shown.

    Args:
        console: Of rich; by default standard output, at a fixed width where that is no terminal.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, emoji=False, markup=False)
        if console is None and not self._console.is_terminal:
            self._console.width = PLAIN_WIDTH
        self._steps = 0
        self._gap = False  # whether an empty line stands at the end
        self.finished = False

    def title(self, line: str) -> None:
        """Print the headline."""
        self._console.print(line, style="bold")

    def step(self, line: str) -> None:
        """Begin the next numbered part."""
        self._steps += 1
        if not self._gap:
            self._console.print()
        self._gap = False
        self._console.print(f"{self._steps}. {line}", style="bold cyan")

    def say(self, *lines: str) -> None:
        """Print lines of prose."""
        self._gap = False
        for line in lines:
            self._console.print(Padding(Text(line), (0, 0, 0, INDENT), expand=False))

    def code(self, *lines: str) -> None:
        """Print lines to be copied; none is wrapped."""
        self._gap = False
        for line in lines:
            self._console.print(Text(" " * (INDENT + 2) + line, style="green"), soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], numeric: Sequence[str] = ()) -> None:
        """Print a table; the columns in ``numeric`` are right-aligned, None is an empty cell.

        A single row that is too wide for the screen is turned: a line per column.
        """
        made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        lines = [["" if cell is None else str(cell) for cell in row] for row in rows]
        width = INDENT + sum(3 + max(map(len, cells)) for cells in zip(columns, *lines, strict=True))
        if len(lines) == 1 and width > self._console.width:
            made = Table.grid(padding=(0, 3))
            lines = [list(line) for line in zip(columns, *lines, strict=True)]
        else:
            for column in columns:
                made.add_column(column, justify="right" if column in numeric else "left", overflow="fold")
        for line in lines:
            made.add_row(*map(Text, line))
        self._console.print(Padding(made, (0, 0, 1, INDENT), expand=False))
        self._gap = True

    @contextlib.contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show how far something has come: the function that is given takes how many are done."""
        if self._console.is_terminal:
            columns = (
                TextColumn(" " * (INDENT - 1) + "{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]:.0f} rows/s"),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=self._console, transient=True) as progress:
                task, began = progress.add_task(what, total=total, rate=0.0), time.monotonic()
                yield lambda done: progress.update(
                    task, completed=done, rate=done / max(time.monotonic() - began, 0.001)
                )
        else:
            yield self._lines(what, total)

    def _lines(self, what: str, total: int) -> Callable[[int], None]:
        """Return what says how far it has come every ten seconds."""
        said = time.monotonic()

        def update(done: int) -> None:
            nonlocal said
            if time.monotonic() - said >= PLAIN_EVERY_S:
                said = time.monotonic()
                self.say(f"{what}: {done:,} of {total:,} rows")

        return update


def ms(seconds: float) -> str:
    """Return a duration as people read it: in milliseconds, in seconds from the first one on."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"
