"""The rows of the demo: what the documentation strings of Python's standard library say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from cdc.testing import corpus

LATER = 20
"""Rows kept back, to be inserted while the consumer runs."""

Row = tuple[str, str, str, str, str]
"""(module, qualified name, signature, first paragraph, whole text)."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Rows to load first, and a few that come later."""

    first: list[Row]
    later: list[Row]

    @classmethod
    def read(cls, limit: int | None = None) -> Self:
        """Read the standard library of this Python, or its first ``limit`` entries."""
        rows = [_row(entry) for entry in corpus.load(limit)]
        step = max(2, len(rows) // LATER)
        later = rows[step // 2 :: step][:LATER]
        kept = set(map(id, later))
        return cls([row for row in rows if id(row) not in kept], later)


def _row(entry: corpus.Entry) -> Row:
    paragraph = entry.doc.strip().split("\n\n", 1)[0]
    return entry.module, entry.qualname, entry.signature, " ".join(paragraph.split()), entry.doc
