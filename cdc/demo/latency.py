"""From COMMIT to visible: how long until another session finds the embedding of what was committed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from cdc.demo.stage import Disappointed

POLL_S = 0.0005
PATIENCE_S = 30.0

Connection = psycopg.Connection[Any]


class Watch:
    """A session that writes and one that looks.

    Args:
        writer: Writes the rows; in autocommit mode.
        looker: Looks at the embeddings; in autocommit mode.
    """

    def __init__(self, writer: Connection, looker: Connection) -> None:
        self._writer = writer
        self._looker = looker

    def insert(self, row: Sequence[str]) -> tuple[int, float]:
        """Insert a row; return its id, and the seconds until its embedding was there."""
        made = 0

        def write() -> None:
            nonlocal made
            found = self._writer.execute(
                "INSERT INTO docstrings (module, name, signature, summary, doc)"
                " VALUES (%s, %s, %s, %s, %s) RETURNING id",
                tuple(row),
            ).fetchone()
            assert found is not None, "RETURNING gives the row"
            made = found[0]

        seconds = self._time(write, lambda: self._version(made) is not None)
        return made, seconds

    def update(self, id: int, summary: str) -> float:
        """Change a row's text; return the seconds until its embedding was another."""
        before = self._version(id)
        return self._time(
            lambda: self._writer.execute("UPDATE docstrings SET summary = %s WHERE id = %s", (summary, id)),
            lambda: self._version(id) not in (before, None),
        )

    def delete(self, id: int) -> float:
        """Delete a row; return the seconds until its embedding was gone."""
        return self._time(
            lambda: self._writer.execute("DELETE FROM docstrings WHERE id = %s", (id,)),
            lambda: self._version(id) is None,
        )

    def _version(self, id: int) -> tuple[object, object] | None:
        """Return hash and vector of a row's embedding; None where there is none."""
        query = "SELECT source_hash, md5(embedding::text) FROM docstrings_embeddings WHERE id = %s"
        row: tuple[object, object] | None = self._looker.execute(query, (id,), prepare=True).fetchone()
        return row

    def _time(self, write: Callable[[], object], is_visible: Callable[[], bool]) -> float:
        """Return the seconds from sending COMMIT until ``is_visible``.

        Raises:
            Disappointed: it never was.
        """
        with self._writer.transaction():
            write()
            began = time.perf_counter()
        while not is_visible():
            if time.perf_counter() - began > PATIENCE_S:
                raise Disappointed(f"A change was not visible in the embeddings {PATIENCE_S:g} s after its COMMIT.")
            time.sleep(POLL_S)
        return time.perf_counter() - began


def summary(seconds: Sequence[float]) -> tuple[float, float]:
    """Return median and maximum."""
    return statistics.median(seconds), max(seconds)
