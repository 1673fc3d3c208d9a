from __future__ import annotations

from dataclasses import replace

import pytest

from cdc.errors import DecodeError
from cdc.rows import Table
from cdc.wire.relations import Relation, RelationCache, RelationColumn, ReplicaIdentity

ID = RelationColumn("id", 20, -1, True)
TITLE = RelationColumn("title", 1043, 24, False)
BODY = RelationColumn("body", 25, -1, False)
ARTICLES = Relation(16384, "public", "articles", ReplicaIdentity.DEFAULT, (ID, TITLE, BODY))


def test_a_relation_knows_its_columns() -> None:
    assert ARTICLES.table == Table("public", "articles")
    assert ARTICLES.column_names == ("id", "title", "body")
    assert ARTICLES.key_indexes == (0,)
    assert ARTICLES.index_of("body") == 2
    assert ARTICLES.index_of("Body") is None


@pytest.mark.parametrize(
    "changed",
    [
        replace(ARTICLES, columns=(ID, TITLE)),
        replace(ARTICLES, columns=(ID, BODY, TITLE)),
        replace(ARTICLES, columns=(ID, TITLE, replace(BODY, name="text"))),
        replace(ARTICLES, columns=(ID, TITLE, replace(BODY, type_oid=114))),
        replace(ARTICLES, columns=(ID, replace(TITLE, type_modifier=54), BODY)),
        replace(ARTICLES, columns=(ID, replace(TITLE, is_key=True), BODY)),
        replace(ARTICLES, replica_identity=ReplicaIdentity.FULL),
    ],
)
def test_a_change_of_the_definition_is_another_shape(changed: Relation) -> None:
    assert not ARTICLES.same_shape(changed)
    assert not changed.same_shape(ARTICLES)


def test_name_and_oid_are_no_part_of_the_shape() -> None:
    assert ARTICLES.same_shape(replace(ARTICLES, oid=1, namespace="other", name="renamed"))


def test_the_shape_may_be_compared_by_some_columns_only() -> None:
    wider = replace(ARTICLES, columns=(ID, RelationColumn("added", 23, -1, False), TITLE, BODY))
    assert ARTICLES.same_shape(wider, ["id", "body"])
    assert not ARTICLES.same_shape(wider, ["id", "added"])
    retyped = replace(ARTICLES, columns=(ID, TITLE, replace(BODY, type_oid=114)))
    assert ARTICLES.same_shape(retyped, ["id", "title"])
    assert not ARTICLES.same_shape(retyped, ["body"])


def test_the_cache_returns_what_was_known_before() -> None:
    cache = RelationCache()
    assert cache.learn(ARTICLES) is None
    renamed = replace(ARTICLES, name="posts")
    assert cache.learn(renamed) is ARTICLES
    assert cache.get(16384) is renamed
    assert 16384 in cache
    assert len(cache) == 1


def test_a_table_that_was_never_described_is_an_error() -> None:
    with pytest.raises(DecodeError, match="16385"):
        RelationCache().get(16385)
