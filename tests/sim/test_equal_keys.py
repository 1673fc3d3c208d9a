from __future__ import annotations

import time

from tests.sim.world import EngineThread, assert_in_step, settings_for


def test_one_row_under_three_spellings_of_its_key_is_embedded_once(database, capsys):
    """1.0, 1.00 and 1.000 are the same key: in one window they must not be written as three rows."""
    with database.connect() as conn:
        conn.execute("CREATE TABLE parts (price numeric PRIMARY KEY, name text, doc text)")
        conn.execute("ALTER TABLE parts ALTER doc SET STORAGE EXTERNAL; CREATE PUBLICATION walvec FOR TABLE parts")
        conn.execute("INSERT INTO parts VALUES (1.0, 'first', repeat('x', 5000))")
        with EngineThread(settings_for(database.url)) as engine:
            engine.sync()
            conn.execute("UPDATE walvec.pipelines SET paused = true")
            assert engine.engine is not None
            while not engine.engine.fleet.pipelines[0].paused:
                time.sleep(0.01)
            engine.gate.hold()  # nothing leaves memory until all three are there
            conn.execute("UPDATE walvec.pipelines SET paused = false")
            while engine.engine.fleet.pipelines[0].paused:
                time.sleep(0.01)
            for spelling in ("1.00", "1.000", "1.0000"):
                conn.execute("UPDATE parts SET price = %s, name = %s", [spelling, f"at {spelling}"])
            while engine.engine.fleet.pipelines[0].desk.dirty.rows < 4:
                time.sleep(0.01)
            assert engine._loop is not None
            engine._loop.call_soon_threadsafe(engine.gate.release)
            engine.sync()
            assert_in_step(conn, "parts", ["price"])
            assert engine.engine.fleet.members["public.parts"].tries == 0 and "failed" not in capsys.readouterr().out
