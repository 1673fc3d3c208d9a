"""What a benchmark hands back, and the table it is printed as."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


class WrongResult(AssertionError):
    """A benchmark's work came out wrong: its speed means nothing."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity: a value per run, and what it should be.

    Attributes:
        name: What was measured.
        unit: ``rows/s``, ``ms``, ``MiB`` or ``x`` (a ratio of two figures of one run).
        values: One per run, at least one.
        target: The bound that the median should keep; None where the figure is only for comparison.
        better: Whether ``target`` is a floor (``higher``) or a ceiling (``lower``).
    """

    name: str
    unit: str
    values: tuple[float, ...]
    target: float | None = None
    better: Literal["higher", "lower"] = "higher"

    @property
    def median(self) -> float:
        """The median of the runs."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median keeps the target; None where there is none."""
        if self.target is None:
            return None
        keeps = operator.ge if self.better == "higher" else operator.le
        return bool(keeps(self.median, self.target))

    def to_json(self) -> dict[str, Any]:
        """Return the figure as JSON-ready data."""
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "runs": len(self.values),
            "target": self.target,
            "better": self.better,
            "met": self.met,
        }


def ratio(name: str, above: Sequence[float], below: Sequence[float], target: float | None = None) -> Figure:
    """Return the figure of ``above[i] / below[i]``, run by run."""
    return Figure(name, "x", tuple(a / b for a, b in zip(above, below, strict=True)), target)


_HEADINGS = ("benchmark", "median", "lowest", "highest", "runs", "target", "")


def render(figures: Sequence[Figure]) -> str:
    """Return the table of ``figures``, one line each."""
    rows = [_HEADINGS, *map(_row, figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = []
    for row in rows:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers]).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def _row(figure: Figure) -> tuple[str, ...]:
    target = ""
    if figure.target is not None:
        target = f"{'>=' if figure.better == 'higher' else '<='} {_number(figure.target, figure.unit)} {figure.unit}"
    return (
        figure.name,
        f"{_number(figure.median, figure.unit)} {figure.unit}",
        _number(min(figure.values), figure.unit),
        _number(max(figure.values), figure.unit),
        str(len(figure.values)),
        target,
        {True: "met", False: "MISSED", None: ""}[figure.met],
    )


def _number(value: float, unit: str) -> str:
    return {"rows/s": f"{value:,.0f}", "MiB": f"{value:,.0f}", "ms": f"{value:.1f}"}.get(unit, f"{value:.2f}")
