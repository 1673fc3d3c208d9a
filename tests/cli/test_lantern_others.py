"""Lantern's commands about models and indexes, as Lantern's users type them."""

import csv
import json

import hnswlib
import numpy as np
import pytest

from inference.hashing import hash_vectors


@pytest.fixture
def docs(database18):
    """A table of 2,000 vectors of 16 dimensions, three of them NULL."""
    with database18.connect() as db:
        db.execute("CREATE EXTENSION vector; CREATE TABLE docs (id bigint PRIMARY KEY, vec vector(16))")
        with db.cursor().copy("COPY docs FROM STDIN") as copy:
            for number, vector in enumerate(VECTORS):
                copy.write_row((number * 10, None if number in (5, 6, 7) else str(vector.tolist())))
        yield db


VECTORS = hash_vectors([f"text {number}" for number in range(2000)], 16)


def test_runtimes_and_models(walvec, tmp_path):
    code, out, _ = walvec("show-runtimes")
    assert code == 0 and all(name in out for name in ("ort", "triton", "openai", "cohere", "base_url"))
    code, out, _ = walvec("show-models", "-d", str(tmp_path), "--runtime", "ort", "--runtime-params", "{}")
    assert code == 0 and "all-minilm-l6-v2 - type: textual, downloaded: true" in out
    assert "all-minilm-l12-v2 - type: textual, downloaded: false" in out
    code, out, _ = walvec("show-models", "--runtime", "openai")
    assert "text-embedding-3-small - sequence_len: 8192, dimensions: 1–1536" in out
    assert "gpt-4o-mini" in walvec("show-models", "--runtime", "openai", "--job-type", "completion")[1]
    assert all(
        "embed-" in row["model"] for row in json.loads(walvec("show-models", "--runtime", "cohere", "--json")[1])
    )
    code, out, err = walvec("show-models", "--job-type", "bogus")
    assert code == 2 and "--job-type is 'bogus'" in err and not out
    code, _, err = walvec("show-models", "--runtime", "nosuch")
    assert code == 2 and "There is no runtime" in err


def test_the_speed_of_a_model(walvec):
    words = ("measure-model-speed", "-u", "postgresql://not/reached", "-m", "hash-16", "--runtime", "hash")
    code, out, err = walvec(*words, "-i", "16", "-b", "16", "--max-tokens", "500", "--json")
    (row,) = json.loads(out)
    assert code == 0 and "--uri is not used" in err
    assert row["model"] == "hash-16" and row["max emb/s"] > row["avg emb/s"] > row["min emb/s"] > 0
    code, _, err = walvec("measure-model-speed", "--runtime", "openai")
    assert code == 2 and "--model" in err


def test_an_index_in_a_file_is_that_of_the_rows(walvec, docs, database18, tmp_path):
    file = tmp_path / "docs.hnsw"
    words = ("create-index", "-u", database18.url, "-t", "docs", "-c", "vec", "-m", "8", "--efc", "64", "--ef", "32")
    code, out, err = walvec(*words, "--metric-kind", "cos", "-d", "16", "-o", str(file))
    assert code == 0 and "1,997 vectors of 16 dimensions" in out, err
    with (tmp_path / "docs.hnsw.keys.csv").open() as lines:
        keys = {int(row["label"]): int(row["id"]) for row in csv.DictReader(lines)}
    assert sorted(keys.values()) == [n * 10 for n in range(2000) if n not in (5, 6, 7)]
    index = hnswlib.Index("cosine", 16)
    index.load_index(str(file))
    index.set_ef(200)
    labels, _ = index.knn_query(VECTORS[100:200], k=1)
    assert np.mean([keys[label] == 10 * n for label, n in zip(labels[:, 0], range(100, 200), strict=True)]) > 0.97
    made = docs.execute("SELECT (SELECT count(*) FROM pg_publication), (SELECT count(*) FROM pg_indexes"
                        " WHERE tablename = 'docs')").fetchone()  # fmt: skip
    assert made == (0, 1)


def test_an_index_in_the_database(walvec, docs, database18):
    words = ("create-index", "-u", database18.url, "-t", "docs", "-c", "vec", "--efc", "20", "--ef", "50")
    code, out, err = walvec(
        *words, "--import", "--index-name", "fast", "--metric-kind", "cos", "--remote-database", "true"
    )
    assert code == 0 and "Built the index fast" in out and "hnsw.ef_search = 50" in out, err
    definition = docs.execute("SELECT indexdef FROM pg_indexes WHERE indexname = 'fast'").fetchone()[0]
    assert "vector_cosine_ops" in definition and "m='16'" in definition and "ef_construction='32'" in definition


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-t", "nosuch"], "There is no table public.nosuch."),
        (["-c", "nosuch"], "has no column nosuch"),
        (["-c", "id"], "of which no index"),
        (["--metric-kind", "l1"], "Use l2sq, cos, hamming."),
        (["-d", "8"], "holds vectors of 16 dimensions, not of 8"),
        (["-o", "/nowhere/at/all"], "no such folder"),
        (["true", "nonsense"], "unexpected extra argument"),
        (["nonsense"], "'nonsense' is no flag"),
        (["--pq"], "no product quantisation"),
    ],
)
def test_an_index_that_cannot_be(walvec, docs, database18, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    code, out, err = walvec("create-index", "-u", database18.url, "-t", "docs", "-c", "vec", *words)
    assert code == 2 and says in err and not out and not list(tmp_path.iterdir())


def test_autotune_prints_trials_exports_them_and_uses_them_again(walvec, docs, database18):
    words = ("autotune-index", "-u", database18.url, "-t", "docs", "-c", "vec", "--metric-kind", "cos", "--recall",
             "90", "--k", "5", "--test-data-size", "1500", "--export-table-name", "trials", "--job-id", "4",
             "--model-name", "hash-16", "--pk", "id")  # fmt: skip
    code, out, err = walvec(*words)
    assert code == 0 and "pgvector" in out and "reach recall@5" in out, err
    rows = docs.execute("SELECT experiment_id, recall, best, summary, backend FROM trials ORDER BY id").fetchall()
    assert {row[0] for row in rows} == {4} and [row[2] for row in rows].count(True) == 1
    assert rows[-1][1] >= 90 and rows[-1][3] in out
    assert walvec(*words, "--create-index")[0] == 0
    assert docs.execute("SELECT count(*) FROM pg_indexes WHERE tablename = 'docs'").fetchone() == (2,)
    assert docs.execute("SELECT count(*) FROM trials WHERE best").fetchone() == (2,)


@pytest.mark.parametrize("recall", ["0.9", "90"])
def test_the_recall_is_a_percentage_or_a_share_as_in_a_job(walvec, docs, database18, recall):
    words = ("autotune-index", "-u", database18.url, "-t", "docs", "-c", "vec", "--metric-kind", "cos", "--k", "5")
    code, out, err = walvec(*words, "--recall", recall)
    assert code == 0 and "(wanted: 0.9)" in out, (out, err)


TUNE = ("--metric-kind", "cos", "--recall", "90", "--k", "5", "--test-data-size", "500")
LANTERNS = (
    "CREATE TABLE autotune_results (id serial PRIMARY KEY, experiment_id int NOT NULL, ef int NOT NULL,"
    " efc int NOT NULL, m int NOT NULL, recall float NOT NULL, latency float NOT NULL, build_time float)"
)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ("a int", "no column experiment_id, ef, efc, m, recall, latency"),
        ("experiment_id int, ef int, efc int, m int, latency float", "no column recall"),
        ("experiment_id int, ef int, efc int, m int, recall float, latency float, who text NOT NULL", "who wants"),
    ],
)
def test_a_table_that_cannot_hold_trials_is_refused_before_any_work(walvec, docs, database18, columns, says):
    docs.execute(f"CREATE TABLE trials ({columns})")
    words = ("autotune-index", "-u", database18.url, "-t", "nosuch", "-c", "vec", "--export-table-name", "trials")
    code, out, err = walvec(*words)
    assert code == 2 and says in err and "--export-table-name" in err and not out, err


def test_lanterns_own_table_gets_trials_of_one_kind_and_each_once(walvec, docs, database18):
    """It cannot tell hnswlib's latencies from pgvector's, of which the least wins there."""
    docs.execute(LANTERNS)
    code, out, err = walvec("autotune-index", "-u", database18.url, "-t", "docs", "-c", "vec", *TUNE, "--export")
    assert code == 0, err
    rows = docs.execute("SELECT m, efc, ef, latency FROM autotune_results").fetchall()
    assert 0 < len(rows) == out.count("\n pgvector "), (rows, out)
    assert len({row[:3] for row in rows}) == len(rows)


def test_a_place_for_exports_that_is_away_is_told_by_its_flag(walvec, docs, database18):
    words = ("autotune-index", "-u", database18.url, "-t", "docs", "-c", "vec", "--export")
    code, out, err = walvec(*words, "--export-db-uri", "postgresql://u@127.0.0.1:1/none")
    assert code != 0 and "correct --export-db-uri" in err and not out, err


def test_a_model_without_a_table_of_trials_is_told(walvec, docs, database18):
    code, _, err = walvec("autotune-index", "-u", database18.url, "-t", "docs", "-c", "vec", *TUNE, "--model-name", "m")
    assert code == 0 and "--model-name is not used" in err, err
