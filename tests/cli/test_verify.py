"""`verify` finds each way in which embeddings can differ from their rows, with no consumer running."""

import hashlib

import pytest

from cdc.errors import ConfigError
from cdc.postgres.connect import connect_sync
from cdc.postgres.verify import Compared, Verifier


def hashed(text):
    return hashlib.sha256(b"\0" + text.encode()).digest()[:16]


@pytest.fixture
def store(pipeline, articles):
    """Fill the source and the destination: {key: text}, {key: text that was embedded}."""

    def fill(source, stored):
        with articles.cursor() as cursor:
            cursor.executemany("INSERT INTO articles VALUES (%s, %s)", list(source.items()))
            cursor.executemany(
                "INSERT INTO articles_embeddings (id, embedding, source_hash) VALUES (%s, '{1,0}', %s)",
                [(key, hashed(text)) for key, text in stored],
            )

    return fill


@pytest.fixture
def verifier(articles, settings):
    with connect_sync(settings, "test") as conn:
        yield Verifier(conn, settings.schema)


def test_equal(store, verifier, pipeline):
    store({1: "a", 2: "b", 3: None, 4: " \n"}, [(1, "a"), (2, "b")])
    found = verifier.compare(pipeline)
    assert found == Compared(pipeline, rows=4, missing=0, stale=0, orphaned=0, duplicate=0)
    assert found.equal
    assert list(found.to_json()) == ["pipeline", "rows", "missing", "stale", "orphaned", "duplicate"]


@pytest.mark.parametrize(
    ("source", "stored", "counts"),
    [
        ({1: "a"}, [], (1, 0, 0, 0)),
        ({1: "b"}, [(1, "a")], (0, 1, 0, 0)),
        ({}, [(1, "a")], (0, 0, 1, 0)),
        ({1: " "}, [(1, "a")], (0, 0, 1, 0)),
        ({1: "a"}, [(1, "a"), (1, "a")], (0, 0, 0, 1)),
        ({1: "a", 2: "b", 3: None, 5: "e"}, [(1, "x"), (2, "b"), (3, "c"), (9, "z")], (1, 1, 2, 0)),
    ],
)
def test_each_difference_is_counted(store, verifier, pipeline, source, stored, counts):
    store(source, stored)
    found = verifier.compare(pipeline)
    assert (found.missing, found.stale, found.orphaned, found.duplicate) == counts
    assert found.rows == len(source)
    assert not found.equal


def test_a_row_with_no_vector_is_missing(store, verifier, pipeline, articles):
    store({1: "a"}, [(1, "a")])
    articles.execute("UPDATE articles_embeddings SET embedding = NULL")
    assert verifier.compare(pipeline).missing == 1


def test_rows_outside_the_publications_filter_are_no_source(store, verifier, pipeline, articles):
    store({1: "a", 2: "b"}, [(1, "a"), (2, "b")])
    articles.execute("ALTER PUBLICATION walvec SET TABLE articles WHERE (id > 1)")
    found = verifier.compare(pipeline)
    assert (found.rows, found.orphaned) == (1, 1)


def test_a_vector_in_the_sources_own_row(store, verifier, pipeline, articles):
    store({1: "a", 2: "b"}, [(1, "a"), (2, "b")])
    articles.execute("ALTER TABLE articles ADD vec real[]; UPDATE articles SET vec = '{1,0}' WHERE id = 1")
    articles.execute(
        "UPDATE walvec.pipelines SET target_column = 'vec'; ALTER TABLE articles_embeddings DROP embedding"
    )
    articles.execute("ALTER PUBLICATION walvec SET TABLE articles (id, body)")
    found = verifier.compare(pipeline)
    assert (found.missing, found.stale, found.orphaned) == (1, 0, 0)
    assert verifier.sample(pipeline, 10).vectors == ((1.0, 0.0),)


def test_a_sample_holds_only_rows_that_are_current(store, verifier, pipeline):
    store({1: "a", 2: "b", 3: "c"}, [(1, "a"), (2, "x")])
    sample = verifier.sample(pipeline, 10)
    assert (sample.texts, sample.vectors, sample.model, sample.dimension) == (("a",), ((1.0, 0.0),), "m", 2)
    store({10 + i: f"t{i}" for i in range(20)}, [(10 + i, f"t{i}") for i in range(20)])
    assert len(verifier.sample(pipeline, 5).texts) == 5


def test_pipelines_are_chosen_and_refused_by_name(verifier, pipeline, articles):
    assert verifier.names(None) == verifier.names(pipeline) == [pipeline]
    with pytest.raises(ConfigError, match=r'no pipeline "nope"\. Pipelines: public\.articles\.'):
        verifier.names("nope")
    articles.execute("UPDATE walvec.pipelines SET attached = false")
    assert verifier.names(None) == []
    with pytest.raises(ConfigError, match="not in the publication"):
        verifier.names(pipeline)


@pytest.mark.parametrize("table", ["articles", "articles_embeddings"])
def test_a_table_that_is_gone_is_named(verifier, pipeline, articles, table):
    articles.execute(f"DROP TABLE {table}")
    with pytest.raises(ConfigError, match=rf"public\.{table} .* is gone"):
        verifier.compare(pipeline)


def test_row_level_security_is_an_error_and_never_an_empty_table(verifier, pipeline, articles, settings):
    # The session forbids filtering; a superuser is exempt from policies, an owner under FORCE is not.
    articles.execute("CREATE ROLE rls_probe; GRANT ALL ON ALL TABLES IN SCHEMA public, walvec TO rls_probe")
    try:
        articles.execute("GRANT USAGE ON SCHEMA walvec TO rls_probe; ALTER TABLE articles ENABLE ROW LEVEL SECURITY")
        with connect_sync(settings, "test") as conn:
            limited = Verifier(conn, settings.schema)
            conn.execute("SET ROLE rls_probe")
            with pytest.raises(ConfigError, match="cannot be read whole"):
                limited.compare(pipeline)
    finally:
        articles.execute("DROP OWNED BY rls_probe; DROP ROLE rls_probe")
