"""A table that is embedded once: its rows, where results go, and where refusals are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cdc.ports.target import Results
from cdc.rows import Key


@dataclass(frozen=True, slots=True)
class Item:
    """A row to embed: its key, its text (UTF-8), and the hash by which a write knows the text again."""

    key: Key
    text: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that got nothing. ``value``: the answer that could not be cast, or the reason again where there is none."""

    key: Key
    reason: str
    value: str


class Rows(Protocol):
    """The rows that want something."""

    async def count(self) -> int:
        """Return about how many there are: rows without text are counted, too."""
        ...

    async def page(self, after: Key | None, rows: int, text_bytes: int) -> Sequence[Item]:
        """Return the rows that follow the key ``after``, in its order: at most ``rows``, and about so many bytes."""
        ...

    async def again(self, keys: Sequence[Key]) -> Sequence[Item]:
        """Return those of ``keys`` that still want something, as they are now."""
        ...


class Sink(Protocol):
    """Where results go."""

    async def write(self, items: Sequence[Item], results: Results) -> set[int]:
        """Write one result per item; return the indexes of items whose row is not what was embedded any more.

        Raises:
            RowRefused: a value of the batch will not do.
            Unavailable: the database is away, or a lock was not to be had.
        """
        ...

    async def refuse(self, refusals: Sequence[Refusal]) -> None:
        """Keep what was refused, where somebody wants it kept."""
        ...
