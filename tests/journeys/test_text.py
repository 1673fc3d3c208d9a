"""The text and the hash of a row are the same whether SQL makes them from the table or Python from the stream."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import sql

from cdc.postgres import expressions
from cdc.postgres.expressions import Source
from cdc.prepare.text import BLANKS, Composer, fingerprint, source_hash
from cdc.rows import Column, Table, Unchanged
from tests.journeys.journey import text_of

CONFIG = fingerprint("hash-16", 16)
KEY = (Column("id", "integer", "int4"),)
TYPES = {"text": "text", "varchar": "character varying", "bpchar": "character(30)"}

characters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
blanks = st.sampled_from(BLANKS)
values = st.none() | st.text(blanks, max_size=6) | st.text(characters | blanks, max_size=30)
names = st.text(characters, min_size=1, max_size=15)
columns = st.lists(st.tuples(names, st.sampled_from(sorted(TYPES))), min_size=1, max_size=4, unique_by=lambda c: c[0])
rows = columns.flatmap(lambda c: st.tuples(st.just(c), st.lists(values, min_size=len(c), max_size=len(c))))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=rows)
@example(row=([("a", "text"), ("b", "bpchar")], ["\u2003x\u00a0", "  x  "]))
@example(row=([("a", "bpchar")], [" \u00a0 "]))
@example(row=([("%s {x}: ", "text"), ('"', "text")], ["\\x41", "\ufffd\ufffe\U0010ffff"]))
@example(row=([("a", "text"), ("b", "text")], [None, "\x1c\x1d\x1e\x1f\x85"]))
def test_sql_and_python_agree(db: psycopg.Connection[Any], row: tuple[list[tuple[str, str]], list[str | None]]) -> None:
    defined, cells = row
    text = tuple(Column(name, TYPES[kind], kind) for name, kind in defined)
    definitions = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(column.name), sql.SQL(column.type)) for column in text
    )
    try:
        with db.transaction(force_rollback=True):
            if any(len(column.name.encode()) > 63 or column.name == "id" for column in text):
                return  # PostgreSQL would cut the name
            db.execute(sql.SQL("CREATE TABLE public.t (id int, {})").format(definitions))
            marks = sql.SQL(", ").join([sql.Placeholder()] * (len(cells) + 1))
            db.execute(sql.SQL("INSERT INTO public.t VALUES ({})").format(marks), [1, *cells])
            names = sql.SQL(", ").join(sql.Identifier(column.name) for column in text)
            # The stream sends a column as its output function prints it: char(n) with its blanks.
            sent = db.execute(sql.SQL("SELECT {} FROM public.t").format(names), binary=False).fetchone()
            query = expressions.rows(Source(Table("public", "t"), KEY, text), CONFIG)
            found = db.execute(sql.SQL("SELECT walvec_text, walvec_hash FROM {} AS r").format(query)).fetchone()
    except psycopg.errors.StringDataRightTruncation:
        return
    assert sent is not None and found is not None
    composed = Composer(text).text([None if cell is None else cell.encode() for cell in sent])
    assert not isinstance(composed, Unchanged)
    assert (None if composed is None else composed.decode()) == found[0]
    assert (None if composed is None else source_hash(CONFIG, composed)) == found[1]
    plain = [cell.rstrip(" ") if column.base_type == "bpchar" and cell else cell
             for column, cell in zip(text, sent, strict=True)]  # fmt: skip
    assert text_of([column.name for column in text], plain) == found[0]


@pytest.mark.parametrize("blank", [BLANKS[i : i + 8] for i in range(0, len(BLANKS), 8)])
def test_every_blank_is_blank_to_the_server_too(db: psycopg.Connection[Any], blank: str) -> None:
    assert db.execute("SELECT btrim(%s, %s)", [blank, BLANKS]).fetchone() == ("",)
    assert not blank.strip()
