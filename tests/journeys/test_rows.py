"""Rows of every kind, with every kind of key, through every kind of change. One consumer serves the whole module."""

from __future__ import annotations

import random

import psycopg
import pytest

from tests.journeys.journey import Journey, Watched

BIG = 200_000  # characters; random, so that they stay out of line


def noise(seed: int, size: int = BIG) -> str:
    return "".join(random.Random(seed).choices("abcdefghij klmnopqrstuvwxyz0123456789", k=size))


def test_backfill_insert_update_delete_and_truncate(shared: Journey) -> None:
    table = Watched("plain", text=("title", "body"))
    shared.sql("CREATE TABLE plain (id bigint PRIMARY KEY, n int, title text, body text)")
    shared.sql("INSERT INTO plain SELECT i, i, 't' || i, 'b' || i FROM generate_series(1, 3000) i")
    shared.sql("ALTER PUBLICATION walvec ADD TABLE plain (id, title, body)")
    shared.settle(table)
    assert shared.value("SELECT count(*) FROM plain_embeddings") == 3000
    shared.sql("UPDATE plain SET body = 'new ' || id WHERE id % 3 = 0")
    shared.sql("UPDATE plain SET n = n + 1")
    shared.sql("DELETE FROM plain WHERE id % 7 = 0")
    shared.sql("INSERT INTO plain SELECT i, i, NULL, 'late ' || i FROM generate_series(5001, 5500) i")
    shared.sql("UPDATE plain SET id = -id WHERE id % 11 = 0")
    shared.settle(table)
    shared.sql("TRUNCATE plain; INSERT INTO plain VALUES (1, 1, 'after', 'truncate')")
    shared.settle(table)
    assert shared.value("SELECT count(*) FROM plain_embeddings") == 1
    with shared.conn.transaction():
        shared.sql("INSERT INTO plain VALUES (2, 2, 'void', 'void')")
        shared.sql("TRUNCATE plain")
        shared.sql("INSERT INTO plain VALUES (3, 3, 'in one', 'transaction')")
    shared.settle(table)


KEYS = {
    "composite": ("a int, b text", "PRIMARY KEY (b, a)", "{i}, 'k' || {i}"),
    "text": ("a text", "PRIMARY KEY (a)", "E'k\\t\\\\ {{{{\"%}}}}, ' || {i}"),
    "uuid": ("a uuid", "PRIMARY KEY (a)", "md5('k' || {i})::uuid"),
    "varchar": ("a varchar(40)", "PRIMARY KEY (a)", "'kéy ' || {i}"),
    "char": ("a char(12)", "PRIMARY KEY (a)", "'c' || {i}"),
    "numeric": ("a numeric", "PRIMARY KEY (a)", "{i}::numeric / 8"),
    "money_time": ("a timestamptz, b bytea", "PRIMARY KEY (a, b)",
                   "timestamptz '2024-02-29 12:00+02' + {i} * interval '1 h', decode(to_hex({i} + 4096), 'hex')"),
    "float": ("a float8, b date, c interval", "PRIMARY KEY (a, b, c)",
              "{i} / 3.0, date '2001-01-01' + {i}, {i} * interval '1 mon 3 h'"),
}  # fmt: skip


def test_keys_of_every_type(shared: Journey) -> None:
    tables = []
    for name, (columns, primary, values) in KEYS.items():
        key = tuple(column.strip().split()[0] for column in columns.split(", "))
        shared.sql(f"CREATE TABLE key_{name} ({columns}, body text, {primary})")
        insert = f"INSERT INTO key_{name} SELECT {values.format(i='i')}, 'body ' || i FROM generate_series({{}}) i"
        shared.sql(insert.format("1, 30"))
        shared.sql(f"ALTER PUBLICATION walvec ADD TABLE key_{name}")
        tables.append((Watched(f"key_{name}", key=key), insert, values))
    shared.settle(*(table for table, _, _ in tables))
    for table, insert, _ in tables:
        shared.sql(insert.format("31, 60"))
        where = f"WHERE ctid IN (SELECT ctid FROM {table.name} ORDER BY body LIMIT 10"
        shared.sql(f"UPDATE {table.name} SET body = body || ' changed' {where})")
        shared.sql(f"DELETE FROM {table.name} {where} OFFSET 15)")
        assert shared.value(f"SELECT count(*) FROM {table.name}") == 50
    shared.settle(*(table for table, _, _ in tables))


def test_a_key_that_changes_takes_its_embedding_along(shared: Journey) -> None:
    table = Watched("moving", key=("a", "b"))
    shared.sql("CREATE TABLE moving (a numeric, b text, body text, PRIMARY KEY (a, b))")
    shared.sql("INSERT INTO moving SELECT i, 'x', 'body ' || i FROM generate_series(1, 20) i")
    shared.sql("ALTER PUBLICATION walvec ADD TABLE moving")
    shared.settle(table)
    shared.sql("UPDATE moving SET a = a + 0.00 WHERE a <= 5")  # prints differently and is equal
    shared.sql("UPDATE moving SET b = 'y' WHERE a BETWEEN 6 AND 10")
    shared.sql("UPDATE moving SET a = a + 100, body = body || '!' WHERE a > 15")
    with shared.conn.transaction():  # two rows change places
        shared.sql("UPDATE moving SET a = -1 WHERE a = 11")
        shared.sql("UPDATE moving SET a = 11 WHERE a = 12")
        shared.sql("UPDATE moving SET a = 12 WHERE a = -1")
    shared.sync()
    shared.verified("public.moving")
    assert shared.value("SELECT count(*) FROM moving_embeddings") == 20
    assert shared.value("SELECT count(*) FROM moving m JOIN moving_embeddings e USING (a, b)") == 20


def test_odd_identifiers(shared: Journey) -> None:
    table = Watched('Täble "x" {y} %s %(z)s', schema="Weird; Schema", key=('kéy"z', "Select"),
                    text=("per%cent", "{curly}", "co: lon", "in side", 'quo"te', "%(key)s"))  # fmt: skip
    made = """CREATE SCHEMA "Weird; Schema";
        CREATE TABLE "Weird; Schema"."Täble ""x"" {y} %s %(z)s" (
            "kéy""z" text, "Select" int, "per%cent" text, "{curly}" varchar(50), "co: lon" text, "in side" text,
            "quo""te" text, "%(key)s" text, "number's" int, PRIMARY KEY ("kéy""z", "Select"));
        ALTER PUBLICATION walvec ADD TABLE "Weird; Schema"."Täble ""x"" {y} %s %(z)s";"""
    shared.sql(made)
    shared.sql("""INSERT INTO "Weird; Schema"."Täble ""x"" {y} %s %(z)s"
        SELECT 'k' || i, i, 'a' || i, NULL, ' ', E'line\\nline', '%s', '{}', 5 FROM generate_series(1, 20) i""")
    shared.settle(table)
    shared.sql("""UPDATE "Weird; Schema"."Täble ""x"" {y} %s %(z)s" SET "{curly}" = 'now', "Select" = 99
        WHERE "Select" < 5; DELETE FROM "Weird; Schema"."Täble ""x"" {y} %s %(z)s" WHERE "Select" = 7""")
    shared.settle(table)


def test_a_name_that_leaves_no_room_for_the_suffix(shared: Journey) -> None:
    name = "x" * 63
    shared.sql(f"CREATE TABLE {name} (id int PRIMARY KEY, body text); INSERT INTO {name} VALUES (1, 'long name')")
    shared.sql(f"ALTER PUBLICATION walvec ADD TABLE {name}")
    shared.sync()
    shared.verified(f"public.{name}")
    target = shared.value("SELECT target_table FROM walvec.pipelines WHERE source_table = %s", [name])
    assert target.endswith("_embeddings") and len(target) == 63
    assert shared.value(f"SELECT count(*) FROM {target}") == 1


def test_text_of_every_type(shared: Journey) -> None:
    text = ("c", "v", "d", "j", "jb", "x", "t")
    table = Watched("types", text=text)
    xml = "xml" if shared.cluster.major == "15" else "text"  # the wheel's server is built without libxml
    shared.sql(f"""CREATE DOMAIN short AS varchar(200); CREATE DOMAIN shorter AS short CHECK (VALUE <> 'no');
        CREATE TABLE types (id int PRIMARY KEY, c char(20), v varchar(30), d shorter, j json, jb jsonb, x {xml},
                            n numeric, ts timestamptz DEFAULT now(), a text[], t text)""")
    insert = """INSERT INTO types (id, c, v, d, j, jb, x, n, a, t) SELECT i, 'pad' || i, ' v ', 'dom ' || i,
        '{"b":  1, "a": "é"}', '{"b":  1, "a": "\\u00e9"}', '<a b="1">x &amp; y</a>', i, ARRAY['no'], E'a\\tb\\\\c'
        FROM generate_series(%s::int, %s::int) i"""
    shared.sql(insert, [1, 20])
    shared.sql("INSERT INTO types (id) VALUES (100)")
    shared.sql("INSERT INTO types (id, c, v, t) VALUES (101, '', '   ', E' \\n\\t ')")
    shared.sql("ALTER PUBLICATION walvec ADD TABLE types")
    shared.settle(table)
    shared.sql(insert, [21, 40])
    shared.sql("UPDATE types SET c = NULL, x = NULL WHERE id < 5; UPDATE types SET c = 'x ' WHERE id > 99")
    shared.settle(table)
    assert shared.value("SELECT count(*) FROM types_embeddings WHERE id IN (100, 101)") == 2


def test_citext_key_and_text_are_compared_as_they_are_written(shared: Journey) -> None:
    shared.sql("CREATE EXTENSION IF NOT EXISTS citext")
    shared.sql("CREATE TABLE ci (id citext PRIMARY KEY, body citext); INSERT INTO ci VALUES ('A', 'Hello')")
    shared.sql("ALTER PUBLICATION walvec ADD TABLE ci")
    table = Watched("ci")
    shared.settle(table)
    shared.sql("UPDATE ci SET body = 'HELLO'; INSERT INTO ci VALUES ('b', 'Other')")
    shared.settle(table)


def test_xml_with_a_declaration(shared: Journey) -> None:
    if shared.cluster.major != "15":  # the other one is built without libxml: there is no xml to be read
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            shared.sql("SELECT '<a/>'::xml")
        return
    shared.sql("CREATE TABLE docs_xml (id int PRIMARY KEY, body xml)")
    insert = """INSERT INTO docs_xml VALUES (%s, '<?xml version="1.0" encoding="UTF-8"?><a>é</a>')"""
    shared.sql(insert, [1])
    shared.sql("ALTER PUBLICATION walvec ADD TABLE docs_xml")
    shared.sync()
    shared.sql(insert, [2])
    shared.sync()
    shared.verified("public.docs_xml")
    assert shared.value("SELECT count(DISTINCT source_hash) FROM docs_xml_embeddings") == 1


def test_rows_without_text_have_no_embedding_and_count_as_source_records(shared: Journey) -> None:
    table = Watched("blank")
    shared.sql("CREATE TABLE blank (id int PRIMARY KEY, body text)")
    blanks = [None, "", " ", "\t\n", "\u00a0", "\u2003 \u3000", "\u0085", "\u2028"]
    for i, body in enumerate([*blanks, "\u200b", "x", "\ufeff"]):
        shared.sql("INSERT INTO blank VALUES (%s, %s)", [i, body])
    shared.sql("ALTER PUBLICATION walvec ADD TABLE blank")
    shared.settle(table)
    assert shared.value("SELECT count(*) FROM blank_embeddings") == 3
    for i, body in enumerate([*blanks, "y"]):
        shared.sql("INSERT INTO blank VALUES (%s, %s)", [100 + i, body])
    shared.sql("UPDATE blank SET body = E'\\u2003' WHERE id = 9; UPDATE blank SET body = 'full' WHERE id = 0")
    shared.settle(table)
    stats = 'SELECT "count(source records)", "count(embeddings)" FROM walvec.kbstat WHERE "knowledge base" = %s'
    assert shared.sql(stats, ["public.blank"]) == [(20, 4)]


def test_unchanged_toast(shared: Journey) -> None:
    table = Watched("toast", text=("a", "b"))
    shared.sql("CREATE TABLE toast (id int PRIMARY KEY, n int, a text, b text)")
    for i in range(6):
        shared.sql("INSERT INTO toast VALUES (%s, 0, %s, %s)", [i, noise(i), noise(100 + i)])
    shared.sql("ALTER PUBLICATION walvec ADD TABLE toast")
    shared.settle(table)
    before = shared.sql("SELECT id, embedded_at FROM toast_embeddings ORDER BY id")
    shared.sql("UPDATE toast SET n = n + 1")  # neither text is sent
    shared.settle(table)
    assert shared.sql("SELECT id, embedded_at FROM toast_embeddings ORDER BY id") == before
    shared.sql("UPDATE toast SET a = 'short now' WHERE id < 3")  # only one of two is sent
    shared.sql("UPDATE toast SET id = id + 100 WHERE id = 4")  # the key moves, the text is not sent
    with shared.conn.transaction():
        shared.sql("UPDATE toast SET b = %s WHERE id = 5", [noise(7)])
        shared.sql("UPDATE toast SET n = 9 WHERE id = 5")
    shared.settle(table)


def test_a_key_too_long_to_be_sent_again(shared: Journey) -> None:
    table = Watched("toastkey", key=("k",))
    shared.sql("CREATE TABLE toastkey (k text PRIMARY KEY, n int, body text)")
    shared.sql("ALTER TABLE toastkey ALTER k SET STORAGE EXTERNAL")
    shared.sql("INSERT INTO toastkey VALUES (repeat('k', 2500), 0, 'one'), (repeat('l', 2500), 0, 'two')")
    shared.sql("ALTER PUBLICATION walvec ADD TABLE toastkey")
    shared.settle(table)
    shared.sql("UPDATE toastkey SET body = 'changed', n = 1 WHERE body = 'one'")
    shared.sql("DELETE FROM toastkey WHERE body = 'two'")
    shared.settle(table)


def test_giant_values(shared: Journey) -> None:
    table = Watched("giant")
    shared.sql("CREATE TABLE giant (id int PRIMARY KEY, n int, body text)")
    shared.sql("INSERT INTO giant VALUES (1, 0, repeat('backfill é', 2000000))")  # 22 MB
    shared.sql("INSERT INTO giant VALUES (2, 0, repeat('é', 500000))")
    shared.sql("ALTER PUBLICATION walvec ADD TABLE giant")
    shared.settle(table)
    shared.sql("INSERT INTO giant VALUES (3, 0, repeat('streamed ', 2200000)), (4, 0, 'small')")
    shared.sql("UPDATE giant SET n = 1")
    shared.settle(table)


def test_hostile_text(shared: Journey) -> None:
    table = Watched("hostile", key=("k",), text=("body", "more"))
    shared.sql("CREATE TABLE hostile (k text PRIMARY KEY, body text, more text)")
    shared.sql("ALTER PUBLICATION walvec ADD TABLE hostile")
    texts = [
        "\\u0000 \\x00 \\0 %00", "\x01\x02\x7f\x1b[31m", "\ufffd\ufffd", "\ufffe\uffff\U0010ffff\ufdd0", "👩‍👩‍👧‍👦🏳️‍🌈",
        "e\u0301 vs é", "\u202egnp.exe", "Z̸̡͎͔" * 50, "'; DROP TABLE hostile; --", "%s %(x)s {0} {x}", "{\"a\": [1]}",
        "\r\n\r", "\\N", "\\.", "NULL", "{}", "\"", "'", "a\\\\b", "\ud7ff\ue000", "ﷺ" * 300, " lead and trail ",
    ]  # fmt: skip
    for i, text in enumerate(texts):
        shared.sql("INSERT INTO hostile VALUES (%s, %s, %s)", [f"{i}", text, None])
        shared.sql("INSERT INTO hostile VALUES (%s, %s, %s)", [f"{i} {text}", "x", text])
    shared.settle(table)
    shared.sql("UPDATE hostile SET body = body || 'a', k = k || '\\'")
    shared.settle(table)
    assert shared.value("SELECT count(*) FROM hostile_embeddings") == 2 * len(texts)
