"""The publication: what it names, what it leaves out, and when it goes and comes back."""

from __future__ import annotations

import time

import psycopg
import pytest

from cdc.testing.cluster import Cluster
from tests.journeys.conftest import Start
from tests.journeys.journey import Journey, Watched, eventually

DOCS = Watched("docs")
TABLE = "CREATE TABLE docs (id int PRIMARY KEY, body text);"
SOME = "INSERT INTO docs SELECT i, 'row ' || i FROM generate_series(%s::int, %s::int) i"


def test_tables_join_and_leave_within_two_seconds(shared: Journey) -> None:
    table = Watched("comes")
    shared.sql("CREATE TABLE comes (id int PRIMARY KEY, body text); INSERT INTO comes VALUES (1, 'one')")
    shared.sql("ALTER PUBLICATION walvec ADD TABLE comes")
    shared.converge(table, timeout_s=2.5)  # two seconds, and what a slow machine adds
    shared.sql("ALTER PUBLICATION walvec DROP TABLE comes")
    eventually(lambda: shared.state("public.comes")[0] == "detached", 2.5)
    shared.sql("INSERT INTO comes VALUES (2, 'two'); DELETE FROM comes WHERE id = 1")
    shared.sync()
    assert shared.sql("SELECT id FROM comes_embeddings") == [(1,)], "a table that leaves keeps its destination as it is"
    shared.sql("ALTER PUBLICATION walvec ADD TABLE comes")
    shared.converge(table, timeout_s=2.5)


def test_the_column_list_changes(shared: Journey) -> None:
    shared.sql("CREATE TABLE lists (id int PRIMARY KEY, a text, b text)")
    shared.sql("INSERT INTO lists SELECT i, 'a' || i, 'b' || i FROM generate_series(1, 20) i")
    shared.sql("ALTER PUBLICATION walvec ADD TABLE lists (id, a)")
    shared.settle(Watched("lists", text=("a",)))
    shared.sql("ALTER PUBLICATION walvec DROP TABLE lists; ALTER PUBLICATION walvec ADD TABLE lists (id, b)")
    shared.converge(Watched("lists", text=("b",)), timeout_s=4)
    shared.sql("ALTER PUBLICATION walvec DROP TABLE lists; ALTER PUBLICATION walvec ADD TABLE lists")
    shared.sql("UPDATE lists SET a = 'both' WHERE id = 2")
    shared.converge(Watched("lists", text=("a", "b")), timeout_s=4)


def test_a_column_list_without_the_key(shared: Journey) -> None:
    shared.sql("CREATE TABLE unkeyed (id int PRIMARY KEY, body text); INSERT INTO unkeyed VALUES (1, 'one')")
    shared.sql("ALTER PUBLICATION walvec ADD TABLE unkeyed (body)")
    failed = shared.consumer.wait_for(lambda e: e.get("pipeline") == "public.unkeyed" and e["level"] == "error", 6)
    assert "leaves out the key column id" in failed["message"] and "column list" in failed["message"]
    shared.sql("ALTER PUBLICATION walvec DROP TABLE unkeyed; ALTER PUBLICATION walvec ADD TABLE unkeyed (id, body)")
    shared.converge(Watched("unkeyed"), timeout_s=4)


def test_a_row_filter(shared: Journey) -> None:
    shared.sql("CREATE TABLE filtered (id int, lang text, body text, PRIMARY KEY (id, lang))")
    shared.sql("INSERT INTO filtered SELECT i, CASE i % 2 WHEN 0 THEN 'en' ELSE 'de' END, 'f' || i "
               "FROM generate_series(1, 20) i")  # fmt: skip
    shared.sql("ALTER PUBLICATION walvec ADD TABLE filtered WHERE (lang = 'en')")
    english = Watched("filtered", key=("id", "lang"), rows="lang = 'en'")
    shared.settle(english)
    shared.sql("UPDATE filtered SET lang = 'en' WHERE id = 1; UPDATE filtered SET lang = 'de' WHERE id = 2")
    shared.sql("UPDATE filtered SET body = 'new' WHERE id IN (3, 4); DELETE FROM filtered WHERE id IN (5, 6)")
    shared.settle(english)
    shared.sql("ALTER PUBLICATION walvec DROP TABLE filtered; "
               "ALTER PUBLICATION walvec ADD TABLE filtered WHERE (lang = 'de' AND id > 3)")  # fmt: skip
    shared.converge(Watched("filtered", key=("id", "lang"), rows="lang = 'de' AND id > 3"), timeout_s=4)


@pytest.mark.parametrize("what", ["ALL TABLES", "TABLES IN SCHEMA public, walvec"])
def test_everything_is_published_but_walvec_reads_nothing_of_its_own(start: Start, what: str) -> None:
    own = "CREATE SCHEMA walvec;" if "walvec" in what else ""
    journey = start(f"CREATE PUBLICATION walvec FOR {what}", before=TABLE + own)
    journey.sql(SOME, [1, 50])
    journey.sql("CREATE TABLE later (id int PRIMARY KEY, body text); INSERT INTO later VALUES (1, 'one')")
    journey.sql("CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY, body text)")
    journey.converge(DOCS, Watched("later"), timeout_s=6)
    journey.sql("UPDATE docs SET body = body || '!'")
    journey.settle(DOCS, Watched("later"))
    pipelines = {row[0] for row in journey.sql("SELECT name FROM walvec.pipelines")}
    assert pipelines == {"public.docs", "public.later"}
    assert not journey.sql("SELECT 1 FROM pg_tables WHERE tablename LIKE '%embeddings_embeddings'")
    assert not journey.events("pipeline_failed")
    # What it writes itself must not give it more to do. The server may vacuum meanwhile; a circle would never rest.
    written: list[int] = []
    while not written or (written[-1] >= 20_000 and len(written) < 8):
        quiet = journey.value("SELECT pg_current_wal_insert_lsn()")
        time.sleep(1.5)
        written.append(journey.value("SELECT pg_current_wal_insert_lsn() - %s::pg_lsn", [quiet]))
    assert written[-1] < 20_000, written


def test_the_publication_is_missing_at_start(start: Start) -> None:
    journey = start(before=TABLE, run=False)
    journey.sql(SOME, [1, 20])
    journey.consumer.start()
    missing = journey.consumer.wait_for("publication_missing", 15)
    assert missing["level"] == "error" and "CREATE PUBLICATION" in missing["message"]
    status = journey.consumer.command("status").stdout
    assert "publication" in status and "does not exist" in status.replace("\n", " ")
    assert journey.consumer.process.poll() is None, "it waits"
    journey.sql("CREATE PUBLICATION walvec FOR TABLE docs")
    journey.converge(DOCS, timeout_s=6)
    journey.settle(DOCS)
    journey.verified("public.docs")


def test_the_publication_is_dropped_and_made_again_while_running(start: Start) -> None:
    journey = start("CREATE PUBLICATION walvec FOR TABLE docs", before=TABLE)
    journey.sql(SOME, [1, 20])
    journey.settle(DOCS)
    journey.sql("UPDATE docs SET body = 'before' WHERE id < 4; DROP PUBLICATION walvec")
    journey.sql("UPDATE docs SET body = 'unpublished' WHERE id = 5; DELETE FROM docs WHERE id = 6")
    journey.sql(SOME, [21, 30])
    journey.consumer.wait_for("publication_missing", 15)
    assert journey.consumer.process.poll() is None
    journey.sql("CREATE PUBLICATION walvec FOR TABLE docs")
    journey.sql(SOME, [31, 40])
    journey.converge(DOCS, timeout_s=15)
    journey.settle(DOCS)
    journey.sql("DROP PUBLICATION walvec; INSERT INTO docs VALUES (50, 'in the gap')")  # too quick to be seen missing
    journey.sql("DELETE FROM docs WHERE id = 7; CREATE PUBLICATION walvec FOR TABLE docs")
    journey.sql("INSERT INTO docs VALUES (51, 'after')")
    journey.converge(DOCS, timeout_s=15)
    journey.settle(DOCS)
    journey.verified("public.docs")


def test_the_publication_is_dropped_and_made_again_while_down(start: Start) -> None:
    journey = start("CREATE PUBLICATION walvec FOR TABLE docs", before=TABLE)
    journey.sql(SOME, [1, 20])
    journey.settle(DOCS)
    assert journey.consumer.stop() == 0
    journey.sql("UPDATE docs SET body = 'ROWONE' WHERE id = 1; DROP PUBLICATION walvec")
    journey.sql("UPDATE docs SET body = 'ROWTWO' WHERE id = 2; DELETE FROM docs WHERE id = 6")
    journey.sql("CREATE PUBLICATION walvec FOR TABLE docs; UPDATE docs SET body = 'ROWTHREE' WHERE id = 3")
    journey.run()
    journey.converge(DOCS, timeout_s=15)
    journey.settle(DOCS)
    journey.sql(SOME, [21, 30])
    journey.settle(DOCS)
    journey.verified("public.docs")


def test_a_publication_that_leaves_out_deletes_or_truncates_says_so(start: Start) -> None:
    journey = start("CREATE PUBLICATION walvec FOR TABLE docs WITH (publish = 'insert, update')", before=TABLE)
    journey.sql(SOME, [1, 20])
    journey.settle(DOCS)
    said = journey.consumer.wait_for(lambda e: "publish = 'insert, update, delete, truncate'" in str(e.get("message")))
    assert said["level"] in ("warning", "error")
    journey.sql("DELETE FROM docs WHERE id = 1; UPDATE docs SET body = 'still' WHERE id = 2")
    journey.sync()
    journey.sql("ALTER PUBLICATION walvec SET (publish = 'insert, update, delete, truncate')")
    journey.converge(DOCS, timeout_s=6)
    journey.settle(DOCS)


def waits(journey: Journey, pipeline: str) -> None:
    """See the pipeline wait for transactions that are open, and say so."""
    eventually(lambda: "open transaction" in journey.state(pipeline)[1], 6, lambda: str(journey.state(pipeline)))


def test_a_transaction_that_wrote_before_its_table_was_added(start: Start) -> None:
    """What it wrote before the ALTER may never be streamed, and no scan can see it before it commits."""
    journey = start("CREATE PUBLICATION walvec", before=TABLE)
    writer = journey.database.connect()
    writer.autocommit = False
    for n in range(2):
        journey.sql(f"CREATE TABLE hole_{n} (id int PRIMARY KEY, body text); INSERT INTO hole_{n} VALUES (0, 'old')")
        writer.execute(f"INSERT INTO hole_{n} VALUES (1, 'before'); UPDATE hole_{n} SET body = 'newer' WHERE id = 0")
        journey.sql(f"ALTER PUBLICATION walvec ADD TABLE hole_{n}")
        waits(journey, f"public.hole_{n}")
        writer.execute(f"INSERT INTO hole_{n} VALUES (2, 'after')")
        writer.commit()
        journey.converge(Watched(f"hole_{n}"), timeout_s=6)
    writer.execute("INSERT INTO docs VALUES (1, 'rolled back later')")
    journey.sql("ALTER PUBLICATION walvec ADD TABLE docs; INSERT INTO docs VALUES (2, 'meanwhile')")
    journey.sql("INSERT INTO hole_0 VALUES (9, 'other tables do not wait')")
    journey.converge(Watched("hole_0"), timeout_s=3)
    writer.rollback()
    journey.converge(DOCS, timeout_s=6)
    writer.close()
    journey.settle(DOCS, *(Watched(f"hole_{n}") for n in range(2)))


def test_a_prepared_transaction_that_wrote_before_its_table_was_added(start: Start) -> None:
    journey = start("CREATE PUBLICATION walvec", before=TABLE)
    journey.sql("BEGIN; INSERT INTO docs VALUES (1, 'prepared'); PREPARE TRANSACTION 'walvec_hole'")
    journey.sql("ALTER PUBLICATION walvec ADD TABLE docs")
    waits(journey, "public.docs")
    journey.sql("COMMIT PREPARED 'walvec_hole'")
    journey.converge(DOCS, timeout_s=6)
    journey.settle(DOCS)


def test_generated_columns_that_the_server_sends(start: Start, cluster: Cluster) -> None:
    published = " WITH (publish_generated_columns = stored)" if cluster.major == "18" else ""
    journey = start(
        f"CREATE PUBLICATION walvec FOR TABLE gen{published}",
        before="""
        CREATE TABLE gen (id int PRIMARY KEY, body text, up text GENERATED ALWAYS AS (upper(body)) STORED)""",
    )
    table = Watched("gen", text=("body", "up"))
    journey.sql("INSERT INTO gen VALUES (1, 'one'), (2, 'two')")
    journey.settle(table)
    journey.sql("UPDATE gen SET body = 'uno' WHERE id = 1; INSERT INTO gen VALUES (3, 'three')")
    journey.settle(table)


def test_full_identity_with_a_column_list_fails_in_the_user_s_own_update(shared: Journey) -> None:
    """PostgreSQL's own refusal; `doctor` tells of it before. The consumer is not touched by it."""
    shared.sql("CREATE TABLE fulllist (id int PRIMARY KEY, n int, body text); INSERT INTO fulllist VALUES (1, 1, 'x')")
    shared.sql("ALTER TABLE fulllist REPLICA IDENTITY FULL; ALTER PUBLICATION walvec ADD TABLE fulllist (id, body)")
    with pytest.raises(psycopg.errors.InvalidColumnReference):
        shared.sql("UPDATE fulllist SET body = 'y'")
    shared.sql("INSERT INTO fulllist VALUES (2, 2, 'z')")
    shared.settle(Watched("fulllist"))
