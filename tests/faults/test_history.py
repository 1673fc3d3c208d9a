"""Embeddings that came from another history: a dump restored into a new server, whose log starts from the beginning."""

from __future__ import annotations

from tests.sim.world import EngineThread, assert_in_step, settings_for


def test_positions_beyond_the_end_of_the_log_hold_nothing_up(database18, notes18):
    conn = notes18
    with EngineThread(settings_for(database18.url)) as engine:
        engine.sync()
    conn.execute("UPDATE notes_embeddings SET source_lsn = 'FFFF/0'")
    conn.execute("UPDATE walvec.progress SET counted_lsn = 'FFFF/0', written_lsn = 'FFFF/0', count_snapshot = NULL")
    conn.execute("UPDATE notes SET title = 'after the restore' WHERE id < 5")
    conn.execute("DELETE FROM notes WHERE id = 6")
    with EngineThread(settings_for(database18.url)) as engine:
        conn.execute("INSERT INTO notes VALUES (100, 'and', 'further')")
        conn.execute("UPDATE notes SET title = 'once more' WHERE id = 4")
        engine.sync()
        assert_in_step(conn, "notes", ["id"])
        conn.execute("TRUNCATE notes")
        engine.sync()
        assert_in_step(conn, "notes", ["id"])
