"""Tables of every shape, and shapes that change under a running consumer. One consumer serves the whole module."""

from __future__ import annotations

import secrets

import psycopg
import pytest

from tests.journeys.conftest import Start
from tests.journeys.journey import Journey, Watched, eventually


def in_error(journey: Journey, pipeline: str, *words: str) -> str:
    """Wait until the pipeline is in error; its reason has all ``words``, and the log says the same."""

    def reason() -> str:
        state, why = journey.state(pipeline)
        return why if state == "error" else ""

    def logged() -> list[str]:
        return [e["message"] for e in journey.events("pipeline_failed") if e["pipeline"] == pipeline]

    eventually(logged, 6, lambda: f"{pipeline}: {journey.state(pipeline)}")
    eventually(lambda: all(word in logged()[-1] for word in words), 6, lambda: logged()[-1])
    if journey.sql("SELECT 1 FROM walvec.pipelines WHERE name = %s", [pipeline]):
        eventually(lambda: all(word in reason() for word in words), 6, lambda: str(journey.state(pipeline)))
    else:  # it never had a pipeline: `status` says why
        said = journey.consumer.command("status").stdout.replace("\n", " ")
        assert all(word in said for word in (pipeline, *words)), said
    return logged()[-1]


@pytest.fixture(scope="module")
def witness(shared: Journey) -> Watched:
    """Another table of the same consumer: whatever befalls the first, this one goes on."""
    shared.sql("CREATE TABLE witness (id int PRIMARY KEY, body text); INSERT INTO witness VALUES (1, 'here')")
    shared.sql("ALTER PUBLICATION walvec ADD TABLE witness")
    shared.settle(Watched("witness"))
    return Watched("witness")


def carries_on(journey: Journey, witness: Watched) -> None:
    journey.sql(f"INSERT INTO {witness.name} SELECT max(id) + 1, 'row ' || max(id) FROM {witness.name}")
    journey.converge(witness, timeout_s=5)


def test_no_primary_key(shared: Journey, witness: Watched) -> None:
    shared.sql("CREATE TABLE keyless (id int NOT NULL, body text); INSERT INTO keyless VALUES (1, 'one')")
    shared.sql("ALTER PUBLICATION walvec ADD TABLE keyless")
    in_error(shared, "public.keyless", "public.keyless", "PRIMARY KEY")
    carries_on(shared, witness)
    assert any("public.keyless" in line for line in shared.sync()), "sync says whom it does not wait for"
    shared.sql("INSERT INTO keyless VALUES (2, 'two'); ALTER TABLE keyless ADD PRIMARY KEY (id)")
    shared.converge(Watched("keyless"), timeout_s=5)
    shared.sql("UPDATE keyless SET body = body || '!'")
    shared.settle(Watched("keyless"))


def test_replica_identities(shared: Journey, witness: Watched) -> None:
    shared.sql("""
        CREATE TABLE rin (id int PRIMARY KEY, body text); ALTER TABLE rin REPLICA IDENTITY NOTHING;
        CREATE TABLE rif (id int PRIMARY KEY, body text); ALTER TABLE rif REPLICA IDENTITY FULL;
        CREATE TABLE rii (id int PRIMARY KEY, code text NOT NULL UNIQUE, body text);
        ALTER TABLE rii REPLICA IDENTITY USING INDEX rii_code_key;
        CREATE TABLE rifn (id int, body text); ALTER TABLE rifn REPLICA IDENTITY FULL;
        INSERT INTO rin SELECT i, 'n' || i FROM generate_series(1, 5) i;
        INSERT INTO rif SELECT i, 'f' || i FROM generate_series(1, 5) i;
        INSERT INTO rii SELECT i, 'c' || i, 'i' || i FROM generate_series(1, 5) i;
        ALTER PUBLICATION walvec ADD TABLE rin, rif, rii, rifn""")
    in_error(shared, "public.rin", "REPLICA IDENTITY")
    in_error(shared, "public.rifn", "PRIMARY KEY")
    full, index = Watched("rif"), Watched("rii", key=("code",))
    shared.settle(full, index)
    shared.sql("UPDATE rif SET body = body || '!', id = id + 10 WHERE id < 3; DELETE FROM rif WHERE id = 4")
    shared.sql("UPDATE rii SET body = body || '!' WHERE id < 3; UPDATE rii SET code = 'z' WHERE id = 3")
    shared.sql("DELETE FROM rii WHERE id = 4; UPDATE rii SET id = 50 WHERE id = 5")
    shared.settle(full, index)
    shared.sql("ALTER TABLE rin REPLICA IDENTITY DEFAULT; UPDATE rin SET body = body || '!'; DROP TABLE rifn")
    shared.converge(Watched("rin"), timeout_s=5)
    carries_on(shared, witness)


def test_columns_added_renamed_retyped_and_dropped(shared: Journey, witness: Watched) -> None:
    shared.sql("CREATE TABLE shape (id int PRIMARY KEY, a text, n int)")
    shared.sql("INSERT INTO shape SELECT i, 'a' || i, i FROM generate_series(1, 50) i")
    shared.sql("ALTER PUBLICATION walvec ADD TABLE shape")
    shared.settle(Watched("shape", text=("a",)))
    shared.sql("ALTER TABLE shape ADD b text DEFAULT 'b'; INSERT INTO shape VALUES (51, 'a', 1, 'bb')")
    shared.converge(Watched("shape", text=("a", "b")), timeout_s=6)
    shared.sql("ALTER TABLE shape RENAME a TO title; UPDATE shape SET b = 'x' WHERE id = 1")
    shared.converge(Watched("shape", text=("title", "b")), timeout_s=6)
    shared.sql("ALTER TABLE shape ALTER n TYPE text USING 'n' || n")
    shared.converge(Watched("shape", text=("title", "n", "b")), timeout_s=6)
    shared.sql("ALTER TABLE shape DROP n, DROP title; INSERT INTO shape VALUES (52, 'only b')")
    shared.converge(Watched("shape", text=("b",)), timeout_s=6)
    shared.sql("ALTER TABLE shape DROP b")
    in_error(shared, "public.shape", "text-like")
    carries_on(shared, witness)
    shared.sql("ALTER TABLE shape ADD c text DEFAULT 'back'")
    shared.converge(Watched("shape", text=("c",)), timeout_s=6)


def test_the_key_is_retyped_or_replaced(shared: Journey, witness: Watched) -> None:
    shared.sql("CREATE TABLE rekeyed (id int PRIMARY KEY, code text, body text)")
    shared.sql("INSERT INTO rekeyed SELECT i, 'c' || i, 'r' || i FROM generate_series(1, 20) i")
    shared.sql("ALTER PUBLICATION walvec ADD TABLE rekeyed")
    shared.settle(Watched("rekeyed", text=("code", "body")))
    shared.sql("ALTER TABLE rekeyed ALTER id TYPE bigint; INSERT INTO rekeyed VALUES (5000000000, 'big', 'big')")
    in_error(shared, "public.rekeyed", "rekeyed_embeddings", "integer", "bigint", "drop it")
    carries_on(shared, witness)
    shared.sql("ALTER TABLE public.rekeyed_embeddings ALTER COLUMN id TYPE bigint")  # as the sentence says
    shared.converge(Watched("rekeyed", text=("code", "body")), timeout_s=10)
    shared.sql("ALTER TABLE rekeyed DROP CONSTRAINT rekeyed_pkey, ADD PRIMARY KEY (code)")
    in_error(shared, "public.rekeyed", "rekeyed_embeddings", "no column code", "Rename or drop")
    carries_on(shared, witness)
    shared.sql("DROP TABLE rekeyed, rekeyed_embeddings")


def test_what_a_pipeline_had_leased_of_the_queue_is_free_when_it_is_made_anew(shared: Journey) -> None:
    shared.sql("CREATE TABLE leased (id int PRIMARY KEY, a text, b text); INSERT INTO leased VALUES (1, 'a', 'b')")
    shared.sql("ALTER PUBLICATION walvec ADD TABLE leased")
    shared.settle(Watched("leased", text=("a", "b")))
    shared.sql("""INSERT INTO walvec.dirty (pipeline_id, key, lsn, leased_until)
        SELECT id, '["1"]', pg_current_wal_lsn(), now() + interval '10 min' FROM walvec.pipelines
        WHERE name = 'public.leased'""")
    shared.sql("ALTER TABLE leased ADD c text")  # no text changes: nothing is written but the queue
    shared.settle(Watched("leased", text=("a", "b", "c")), timeout_s=10)


def test_changes_without_events(shared: Journey) -> None:
    table = Watched("rewrite", text=("a", "b"))
    shared.sql("CREATE TABLE rewrite (id int PRIMARY KEY, a text, b text)")
    shared.sql("INSERT INTO rewrite SELECT i, 'a' || i, 'b' || i FROM generate_series(1, 100) i")
    shared.sql("ALTER PUBLICATION walvec ADD TABLE rewrite")
    shared.settle(table)
    shared.sql("ALTER TABLE rewrite ALTER a TYPE text USING a || ' rewritten'")  # of the same type: no event at all
    shared.converge(table, timeout_s=6)
    shared.sql("ALTER TABLE rewrite ADD c text DEFAULT 'c' || random()")
    shared.converge(Watched("rewrite", text=("a", "b", "c")), timeout_s=6)
    shared.sync()
    shared.sql("VACUUM FULL rewrite")
    shared.sql("UPDATE rewrite SET b = 'late' WHERE id = 1")
    shared.settle(Watched("rewrite", text=("a", "b", "c")))


def test_generated_columns_are_text_also_where_the_server_does_not_send_them(shared: Journey) -> None:
    kinds = ["STORED", "VIRTUAL"] if shared.cluster.major == "18" else ["STORED"]
    for kind in kinds:
        table = Watched(f"gen_{kind.lower()}", text=("body", "up"))
        shared.sql(f"CREATE TABLE {table.name} (id int PRIMARY KEY, body text, n int, "
                   f"up text GENERATED ALWAYS AS (upper(body)) {kind})")  # fmt: skip
        shared.sql(f"INSERT INTO {table.name} VALUES (1, 'one'); ALTER PUBLICATION walvec ADD TABLE {table.name}")
        shared.settle(table)
        shared.sql(f"INSERT INTO {table.name} VALUES (2, 'two'); UPDATE {table.name} SET body = 'uno' WHERE id = 1")
        shared.sql(f"UPDATE {table.name} SET n = 1")
        shared.settle(table)


def partitioned(name: str) -> str:
    return f"""CREATE TABLE {name} (id int, body text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
        CREATE TABLE {name}_1 PARTITION OF {name} FOR VALUES FROM (0) TO (100);
        CREATE TABLE {name}_2 (body text, junk int, id int NOT NULL); ALTER TABLE {name}_2 DROP junk;
        ALTER TABLE {name} ATTACH PARTITION {name}_2 FOR VALUES FROM (100) TO (200);
        INSERT INTO {name} SELECT i, 'p' || i FROM generate_series(50, 149) i;"""


def through_its_life(journey: Journey, name: str) -> None:
    """Attach, detach, truncate and rewrite partitions of a table whose root is watched."""
    table = Watched(name)
    journey.settle(table)
    journey.sql(f"UPDATE {name} SET body = 'new ' || id WHERE id % 5 = 0; DELETE FROM {name} WHERE id % 9 = 0")
    journey.sql(f"UPDATE {name} SET id = id + 100 WHERE id = 80; INSERT INTO {name} VALUES (150, 'x')")  # moves over
    journey.settle(table)
    journey.sql(f"""CREATE TABLE {name}_3 (id int PRIMARY KEY, body text);
        INSERT INTO {name}_3 SELECT i, 'attached ' || i FROM generate_series(200, 220) i""")
    journey.sql(f"ALTER TABLE {name} ATTACH PARTITION {name}_3 FOR VALUES FROM (200) TO (300)")
    journey.converge(table, timeout_s=6)
    journey.sql(f"UPDATE {name} SET body = 'after attach' WHERE id > 210; INSERT INTO {name} VALUES (299, 'more')")
    journey.settle(table)
    journey.sql(f"TRUNCATE {name}_2")
    journey.converge(table, timeout_s=6)
    journey.sql(f"ALTER TABLE {name} DETACH PARTITION {name}_1")
    journey.converge(table, timeout_s=6)
    journey.sql(f"ALTER TABLE {name} ALTER body TYPE text USING 'rewritten ' || body")
    journey.converge(table, timeout_s=6)
    journey.sql(f"INSERT INTO {name} VALUES (160, 'late'); DELETE FROM {name} WHERE id = 299; DROP TABLE {name}_3")
    journey.converge(table, timeout_s=6)
    journey.sql(f"TRUNCATE {name}; INSERT INTO {name} VALUES (161, 'end')")
    journey.settle(table)
    journey.verified(f"public.{name}")


def test_partitions_through_the_root(shared: Journey) -> None:
    shared.sql(partitioned("viaroot") + "ALTER PUBLICATION walvec ADD TABLE viaroot")
    through_its_life(shared, "viaroot")


def test_partitions_one_by_one(start: Start) -> None:
    journey = start("CREATE PUBLICATION walvec FOR TABLE leafy", before=partitioned("leafy"))
    assert not journey.value("SELECT pubviaroot FROM pg_publication")
    through_its_life(journey, "leafy")


def test_a_watched_table_is_dropped_and_made_again(shared: Journey, witness: Watched) -> None:
    table = Watched("phoenix")
    shared.sql("CREATE TABLE phoenix (id int PRIMARY KEY, body text)")
    shared.sql("INSERT INTO phoenix SELECT i, 'old ' || i FROM generate_series(1, 100) i")
    shared.sql("ALTER PUBLICATION walvec ADD TABLE phoenix")
    shared.settle(table)
    shared.sql("UPDATE phoenix SET body = 'about to go'; DROP TABLE phoenix")
    carries_on(shared, witness)
    eventually(lambda: shared.state("public.phoenix")[0] == "detached", 6, lambda: str(shared.state("public.phoenix")))
    shared.sync()
    with shared.conn.transaction():
        shared.sql("CREATE TABLE phoenix (id int PRIMARY KEY, body text); INSERT INTO phoenix VALUES (1, 'new')")
        shared.sql("ALTER PUBLICATION walvec ADD TABLE phoenix")
    shared.converge(table, timeout_s=6)
    with shared.conn.transaction():  # and once more, too quickly to be seen missing
        shared.sql("DROP TABLE phoenix; CREATE TABLE phoenix (id int PRIMARY KEY, body text)")
        shared.sql("ALTER PUBLICATION walvec ADD TABLE phoenix; INSERT INTO phoenix VALUES (7, 'seven')")
    shared.converge(table, timeout_s=6)
    shared.settle(table)


def test_the_destination_is_dropped_while_running(shared: Journey, witness: Watched) -> None:
    table = Watched("lostdest")
    shared.sql("CREATE TABLE lostdest (id int PRIMARY KEY, body text)")
    shared.sql("INSERT INTO lostdest SELECT i, 'row ' || i FROM generate_series(1, 100) i")
    shared.sql("ALTER PUBLICATION walvec ADD TABLE lostdest")
    shared.settle(table)
    shared.sql("DROP TABLE lostdest_embeddings")
    shared.converge(table, timeout_s=10)  # by itself, with no write to make it notice
    shared.sql("DROP TABLE lostdest_embeddings; INSERT INTO lostdest VALUES (200, 'makes it notice')")
    carries_on(shared, witness)
    shared.converge(table, timeout_s=20)
    shared.settle(table)


def test_the_destination_s_name_is_taken(shared: Journey, witness: Watched) -> None:
    shared.sql("""CREATE TABLE taken (id int PRIMARY KEY, body text); INSERT INTO taken VALUES (1, 'one');
        CREATE TABLE taken_embeddings (id int PRIMARY KEY, mine text);
        CREATE TABLE viewed (id int PRIMARY KEY, body text); INSERT INTO viewed VALUES (1, 'one');
        CREATE VIEW viewed_embeddings AS SELECT * FROM viewed;
        ALTER PUBLICATION walvec ADD TABLE taken, viewed""")
    in_error(shared, "public.taken", "taken_embeddings", "Rename or drop")
    in_error(shared, "public.viewed", "viewed_embeddings", "Rename or drop")
    carries_on(shared, witness)
    assert shared.value("SELECT count(*) FROM taken_embeddings") == 0
    shared.sql("ALTER TABLE taken_embeddings RENAME TO my_own; DROP VIEW viewed_embeddings")
    shared.converge(Watched("taken"), Watched("viewed"), timeout_s=20)


def test_the_dimension_differs(start: Start) -> None:
    journey = start("CREATE PUBLICATION walvec FOR TABLE a", before="CREATE TABLE a (id int PRIMARY KEY, body text)")
    journey.sql("INSERT INTO a VALUES (1, 'one')")
    journey.settle(Watched("a"))
    assert journey.consumer.stop() == 0
    journey.sql("CREATE TABLE b (id int PRIMARY KEY, body text); ALTER PUBLICATION walvec ADD TABLE b")
    other = journey.another(WALVEC_MODEL="hash-8").start()
    if journey.cluster.major == "15":  # real[] has no dimension of its own: the rows are embedded anew
        eventually(lambda: journey.value("SELECT cardinality(embedding) FROM a_embeddings") == 8, 10)
    else:
        failed = other.wait_for("pipeline_failed")
        for word in ("public.a_embeddings", "16", "8", "WALVEC_MODEL"):
            assert word in failed["message"], failed
        journey.sql("INSERT INTO b VALUES (1, 'the other one goes on')")
        eventually(lambda: journey.sql("SELECT 1 FROM b_embeddings"), 5)
        journey.sql("DROP TABLE a_embeddings")
        eventually(lambda: journey.sql("SELECT 1 FROM a_embeddings WHERE vector_dims(embedding) = 8"), 20)
    assert other.stop() == 0


def test_row_level_security_or_a_missing_grant_stops_only_its_own_table(start: Start) -> None:
    role = f"r_{secrets.token_hex(4)}"
    journey = start(
        "CREATE PUBLICATION walvec FOR TABLE locked, hidden, open",
        role=role,
        before=f"""
        CREATE TABLE locked (id int PRIMARY KEY, body text); INSERT INTO locked VALUES (1, 'secret words');
        CREATE TABLE hidden (id int PRIMARY KEY, body text); INSERT INTO hidden VALUES (1, 'secret words');
        CREATE TABLE open (id int PRIMARY KEY, body text); INSERT INTO open VALUES (1, 'one');
        ALTER TABLE locked ENABLE ROW LEVEL SECURITY; GRANT SELECT ON locked, open TO {role}""",
    )
    in_error(journey, "public.locked", "row-level security", "BYPASSRLS")  # and not an empty backfill
    in_error(journey, "public.hidden", "hidden", "grant")
    journey.sql("INSERT INTO locked VALUES (2, 'more secret words')")
    carries_on(journey, Watched("open"))
    assert "secret words" not in journey.consumer.log
    journey.sql(f"ALTER ROLE {role} BYPASSRLS; GRANT SELECT ON hidden TO {role}")
    journey.consumer.kill()  # attributes of a role count for new sessions
    journey.run()
    journey.converge(Watched("locked"), Watched("hidden"), timeout_s=15)
    journey.settle(Watched("locked"), Watched("hidden"), Watched("open"))


def test_unlogged_tables_cannot_be_published(shared: Journey) -> None:
    shared.sql("CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY, body text)")
    with pytest.raises(psycopg.Error, match="unlogged"):
        shared.sql("ALTER PUBLICATION walvec ADD TABLE unlogged")


def test_a_column_dropped_and_made_again_while_nobody_looked(start: Start) -> None:
    """The stream tells the old column's value, and no event tells of the new one."""
    journey = start(
        "CREATE PUBLICATION walvec FOR TABLE notes",
        before="CREATE TABLE notes (id int PRIMARY KEY, body text, more text)",
    )
    notes = Watched("notes", text=("body", "more"))
    journey.sql("INSERT INTO notes VALUES (1, 'one'), (2, 'two'), (3, 'three')")
    journey.settle(notes)
    assert journey.consumer.stop() == 0
    journey.sql("UPDATE notes SET more = 'gone soon' WHERE id < 3")
    journey.sql("ALTER TABLE notes DROP COLUMN more; ALTER TABLE notes ADD COLUMN more text")
    journey.sql("UPDATE notes SET more = 'new' WHERE id = 2")
    journey.run()
    journey.settle(notes)
