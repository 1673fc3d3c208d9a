from __future__ import annotations

import time

from tests.sim.world import EngineThread, assert_in_step, settings_for


def test_what_changed_while_a_table_was_out_of_the_publication_is_found_however_short_that_was(database):
    with database.connect() as conn:
        conn.execute("CREATE TABLE notes (id int PRIMARY KEY, body text); CREATE PUBLICATION walvec FOR TABLE notes")
        conn.execute("INSERT INTO notes SELECT i, 'first ' || i FROM generate_series(1, 5) i")
        with EngineThread(settings_for(database.url)) as engine:
            engine.sync()
            conn.execute("ALTER PUBLICATION walvec DROP TABLE notes")
            conn.execute("UPDATE notes SET body = 'unseen' WHERE id < 3")
            conn.execute("DELETE FROM notes WHERE id = 4")
            conn.execute("ALTER PUBLICATION walvec ADD TABLE notes")
            time.sleep(1.5)
            engine.sync()
            assert_in_step(conn, "notes", ["id"])
