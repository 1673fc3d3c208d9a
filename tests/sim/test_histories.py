"""Random histories on a real server: whatever was done to the tables and to the consumer, after sync all is equal.

A failing history is printed as a program of rules, with what replays it. ``SIM_EXAMPLES`` runs more of them.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from dataclasses import replace
from typing import Any, ClassVar

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from cdc.testing.database import Database
from tests.sim.world import EngineThread, assert_in_step, settings_for

EXAMPLES = int(os.environ.get("SIM_EXAMPLES", "10"))
STEPS = 30
SMALL = {"WALVEC_QUEUE_ROWS": "6", "WALVEC_BATCH_ROWS": "3", "WALVEC_INFLIGHT": "2"}

IDS = st.integers(1, 8)
TEXTS = st.sampled_from(["", "  ", "short", "Ünï – \u2028 cödé 🙂", "tab\tand\nnewline", "longer " * 30, None])
NUMBERS = st.sampled_from(["1.0", "1.00", "1.000", "2", "2.0", "NaN"])
SCHEMA = """
CREATE TABLE notes (id int PRIMARY KEY, title text, body text, views int NOT NULL DEFAULT 0);
ALTER TABLE notes ALTER body SET STORAGE EXTERNAL;
CREATE TABLE parts (price numeric, "Odd ""name" text, doc jsonb, PRIMARY KEY ("Odd ""name", price));
CREATE TABLE visitors (id int PRIMARY KEY, who text NOT NULL);
CREATE PUBLICATION walvec FOR TABLE notes, parts, visitors;
"""
KEYS = {"notes": ("id",), "parts": ('Odd "name', "price"), "visitors": ("id",)}


def big(seed: int) -> str:
    """A value too long for its page, and not to be compressed: an UPDATE of another column leaves it out of the WAL."""
    return random.Random(seed).randbytes(2_000).hex()


class Histories(RuleBasedStateMachine):
    database: ClassVar[Database]
    engine: ClassVar[EngineThread]

    def __init__(self) -> None:
        super().__init__()
        self.conn = self.database.connect()
        self.published = self.settled = True
        self.paused = False
        self.conn.execute("ALTER TABLE visitors DROP COLUMN IF EXISTS remark")
        self.conn.execute("TRUNCATE notes, parts, visitors")

    def run(self, query: str, params: Any = None) -> None:
        """Execute; a key that exists already, or a row that breaks a rule, is part of life."""
        with contextlib.suppress(psycopg.errors.IntegrityError):
            self.conn.execute(query, params)

    # -- rows -------------------------------------------------------------------------------------------------------

    @rule(id=IDS, title=TEXTS, body=TEXTS)
    def insert(self, id: int, title: str | None, body: str | None) -> None:
        self.run("INSERT INTO notes VALUES (%s, %s, %s)", [id, title, body])

    @rule(id=IDS, seed=st.integers(0, 3))
    def insert_big(self, id: int, seed: int) -> None:
        self.run("INSERT INTO notes VALUES (%s, 'big', %s) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                 [id, big(seed)])  # fmt: skip

    @rule(id=IDS, title=TEXTS)
    def change_the_title_beside_an_untouched_body(self, id: int, title: str | None) -> None:
        self.run("UPDATE notes SET title = %s WHERE id = %s", [title, id])

    @rule(id=IDS)
    def change_what_is_not_text(self, id: int) -> None:
        self.run("UPDATE notes SET views = views + 1 WHERE id = %s", [id])

    @rule(id=IDS, new=IDS)
    def change_the_key(self, id: int, new: int) -> None:
        self.run("UPDATE notes SET id = %s WHERE id = %s", [new, id])

    @rule(id=IDS)
    def delete(self, id: int) -> None:
        self.run("DELETE FROM notes WHERE id = %s", [id])

    @rule(times=st.integers(2, 30), id=IDS)
    def hammer(self, times: int, id: int) -> None:
        for n in range(times):
            self.run(
                "INSERT INTO notes VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET title = excluded.title", [id, str(n)]
            )

    @rule(start=st.integers(100, 140), text=TEXTS)
    def insert_many(self, start: int, text: str | None) -> None:
        self.run(
            "INSERT INTO notes SELECT i, i || coalesce(%s, ''), 'same' FROM generate_series(%s::int, %s::int + 30) i"
            " ON CONFLICT (id) DO UPDATE SET title = excluded.title",
            [text, start, start],
        )

    @rule()
    def delete_many(self) -> None:
        self.run("DELETE FROM notes WHERE id > 100")

    @rule(table=st.sampled_from(sorted(KEYS)))
    def truncate(self, table: str) -> None:
        self.run(f"TRUNCATE {table}")

    @rule(
        price=NUMBERS, name=st.sampled_from(["", "a", "o'b\"c\\", "é"]), doc=st.sampled_from(['{"a": 1}', "[]", None])
    )
    def insert_part(self, price: str, name: str, doc: str | None) -> None:
        self.run("INSERT INTO parts VALUES (%s, %s, %s)", [price, name, doc])

    @rule(old=NUMBERS, new=NUMBERS, doc=st.sampled_from(['{"b": 2}', '" "', None]), twice=st.booleans())
    def change_the_scale_of_a_key(self, old: str, new: str, doc: str | None, twice: bool) -> None:
        """1.0 and 1.00 are the same key and print differently."""
        self.run("UPDATE parts SET price = %s, doc = %s WHERE price = %s", [new, doc, old])
        if twice:
            self.run("UPDATE parts SET price = %s WHERE price = %s", [old, new])

    @rule(id=IDS, who=st.sampled_from(["me", "you", " "]))
    def insert_visitor(self, id: int, who: str) -> None:
        self.run("INSERT INTO visitors VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET who = excluded.who", [id, who])

    # -- transactions -----------------------------------------------------------------------------------------------

    @rule(
        ids=st.lists(IDS, min_size=1, max_size=5),
        end=st.sampled_from(["COMMIT", "ROLLBACK", "PREPARE", "PREPARE, ROLLBACK"]),
        undo=st.booleans(),
        cut=st.integers(0, 5).map(lambda n: n == 0),
    )
    def transact(self, ids: list[int], end: str, undo: bool, cut: bool) -> None:
        gid = f"gid-{random.getrandbits(60)}"
        with self.database.connect() as conn:
            conn.execute("BEGIN")
            for n, id in enumerate(ids):
                conn.execute("INSERT INTO notes VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET title = excluded.title",
                             [id, f"in {n}"])  # fmt: skip
                if cut and n == 1:
                    conn.execute("TRUNCATE notes")
                conn.execute("SAVEPOINT s")
                conn.execute("DELETE FROM notes WHERE id = %s", [id])
                conn.execute("INSERT INTO visitors VALUES (%s, 'guest') ON CONFLICT DO NOTHING", [id])
                conn.execute("ROLLBACK TO s" if undo else "RELEASE s")
            if end.startswith("PREPARE"):
                conn.execute(f"PREPARE TRANSACTION '{gid}'")
                conn.execute(f"{'ROLLBACK' if 'ROLLBACK' in end else 'COMMIT'} PREPARED '{gid}'")
            else:
                conn.execute(end)

    # -- definitions ------------------------------------------------------------------------------------------------

    @rule()
    def add_or_drop_a_column(self) -> None:
        try:
            self.conn.execute("ALTER TABLE visitors ADD COLUMN remark text DEFAULT 'none'")
        except psycopg.errors.DuplicateColumn:
            self.conn.execute("ALTER TABLE visitors DROP COLUMN remark")
        self.reconcile()

    @rule()
    def publish_or_not(self) -> None:
        self.run(f"ALTER PUBLICATION walvec {'DROP' if self.published else 'ADD'} TABLE visitors")
        self.published = not self.published
        self.settled = False

    # -- the consumer -----------------------------------------------------------------------------------------------

    @rule()
    def reconcile(self) -> None:
        self.conn.execute(
            "INSERT INTO walvec.requests (pipeline_id, kind) SELECT id, 'reconcile' FROM walvec.pipelines"
        )

    @rule()
    def pause_or_resume(self) -> None:
        self.paused = not self.paused
        self.run("UPDATE walvec.pipelines SET paused = %s WHERE name = 'public.notes'", [self.paused])

    @rule(politely=st.booleans(), rare=st.integers(0, 2).map(lambda n: n == 1))
    def restart(self, politely: bool, rare: bool) -> None:
        if rare:
            self.engine.stop() if politely else self.engine.cut()
            type(self).engine = EngineThread(self.engine.settings).start()

    @rule(rare=st.integers(0, 3).map(lambda n: n == 1))
    def hang_up(self, rare: bool) -> None:
        if rare:
            self.run("SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE application_name = 'walvec'")

    @precondition(lambda self: not self.paused)
    @rule()
    def compare(self) -> None:
        if not self.settled:  # a change of the publication takes effect within two seconds
            time.sleep(1.5)
            self.settled = True
        self.engine.sync()
        for table, key in KEYS.items():
            if table != "visitors" or self.published:
                assert_in_step(self.conn, table, key)

    def teardown(self) -> None:
        try:
            if self.paused:
                self.pause_or_resume()
            if not self.published:
                self.publish_or_not()
            self.compare()
        finally:
            self.conn.close()


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_after_any_history_the_embeddings_are_those_of_the_rows(database):
    with database.connect() as conn:
        conn.execute(SCHEMA)
    Histories.database = database
    Histories.engine = EngineThread(replace(settings_for(database.url, **SMALL), queue_bytes=200)).start()
    try:
        Histories.engine.sync()
        run_state_machine_as_test(
            Histories,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                print_blob=True,
                phases=(
                    Phase.explicit,
                    Phase.reuse,
                    Phase.generate,
                ),  # another run on a living server is another history
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        Histories.engine.cut()
