"""`walvec model list` and `walvec model measure`, without a database."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest


def walvec(*words, **settings):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WALVEC_")}
    return subprocess.run(
        [sys.executable, "-m", "cdc.cli", *words], env={**kept, **settings}, capture_output=True, text=True, timeout=60
    )


def test_the_list_begins_with_the_model_that_is_set():
    done = walvec("model", "list", "--json", WALVEC_RUNTIME="hash", WALVEC_MODEL="hash-16", WALVEC_QUERY_PREFIX="q: ")
    rows = json.loads(done.stdout)
    assert done.returncode == 0 and rows[0]["configured"]
    assert {name: rows[0][name] for name in ("runtime", "model", "dimension", "query_prefix")} == {
        "runtime": "hash", "model": "hash-16", "dimension": 16, "query_prefix": "q: ",
    }  # fmt: skip
    assert not any(row["configured"] for row in rows[1:])
    assert {"ort", "openai", "cohere", "triton"} <= {row["runtime"] for row in rows}


def test_the_list_is_printed_though_the_model_cannot_be_asked():
    done = walvec("model", "list", WALVEC_RUNTIME="openai", WALVEC_MODEL="text-embedding-3-small")
    assert done.returncode == 0
    assert "set WALVEC_OPENAI_KEY" in done.stdout and "all-minilm-l6-v2" in done.stdout


def test_measuring_prints_a_table_and_draws(tmp_path):
    file = tmp_path / "plot.svg"
    done = walvec("model", "measure", "--seconds", "0.02", "--texts", "64", "--plot", str(file), WALVEC_RUNTIME="hash")
    assert done.returncode == 0, done.stderr
    assert "texts/s" in done.stdout and "share" in done.stdout
    assert ElementTree.parse(file).getroot().tag.endswith("svg")


def test_measuring_as_json():
    done = walvec("model", "measure", "--seconds", "0.02", "--texts", "16", "--json", WALVEC_RUNTIME="hash")
    rows = json.loads(done.stdout)
    assert [(row["length"], row["rows"]) for row in rows] == [(k, n) for k in ("short", "long") for n in (1, 4, 16)]
    assert all(row["texts_per_s"] > 0 and row["share"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("words", "settings", "says"),
    [
        (["--plot", "/nowhere/at/all.svg"], {}, "no such folder"),
        ([], {"WALVEC_RUNTIME": "cohere", "WALVEC_MODEL": "m"}, "WALVEC_COHERE_KEY"),
        ([], {"WALVEC_RUNTIME": "openai", "WALVEC_OPENAI_URL": "http://127.0.0.1:9"}, "cannot be reached"),
        ([], {"WALVEC_DIMENSIONS": "8"}, "unset WALVEC_DIMENSIONS"),
    ],
)
def test_refusals_are_one_sentence(words, settings, says):
    done = walvec("model", "measure", *words, **{"WALVEC_RUNTIME": "hash", **settings})
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr


def test_models_of_the_users_folder_are_listed(tmp_path):
    for name in ("mine", "some-publisher/theirs"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model.onnx").write_bytes(b"")
    done = walvec(
        "model", "list", "--json", WALVEC_RUNTIME="hash", WALVEC_MODEL="hash-16", WALVEC_MODELS_DIR=str(tmp_path)
    )
    listed = {row["model"]: row["weights"] for row in json.loads(done.stdout) if row["runtime"] == "ort"}
    assert listed["mine"] == f"{tmp_path}/mine" and "some-publisher/theirs" in listed and "all-minilm-l6-v2" in listed
