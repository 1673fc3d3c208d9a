"""One giant transaction: memory does not follow its size. ``make chaos`` tries a million rows."""

from __future__ import annotations

import os

import pytest

from cdc.testing.consumer import Consumer
from tests.sim.world import BASE

ROWS = 1_000_000 if "CHAOS_KILLS" in os.environ else 200_000
BASE_MIB, PER_MILLION_MIB = 150, 150
"""A process at rest with its libraries, and what a million held keys may take: 300 MiB in all, as promised."""


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_a_giant_transaction_keeps_memory_bounded(database18):
    with database18.connect() as conn:
        conn.execute("CREATE TABLE notes (id int PRIMARY KEY, body text); CREATE PUBLICATION walvec FOR TABLE notes")
        with Consumer(database18.url, **BASE) as consumer:
            consumer.sync()
            conn.execute(
                "INSERT INTO notes SELECT i, i || repeat(' some text of a row', 10) FROM generate_series(1, %s) i",
                [ROWS],
            )
            consumer.sync(500)
            used = consumer.rss_bytes() / (1 << 20)
            print(f"{ROWS} rows in one transaction: {used:.0f} MiB")
            assert used <= BASE_MIB + PER_MILLION_MIB * ROWS / 1_000_000
            assert conn.execute("SELECT count(*) FROM notes_embeddings").fetchone() == (ROWS,)
