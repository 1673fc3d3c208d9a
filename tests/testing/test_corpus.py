from __future__ import annotations

import ast
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from cdc.testing import corpus

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def everything() -> list[corpus.Entry]:
    return corpus.load()


def test_thousands_of_rows_each_once_and_in_order(everything: list[corpus.Entry]) -> None:
    keys = [(entry.module, entry.qualname) for entry in everything]
    assert len(keys) >= 5_000
    assert all(before < after for before, after in pairwise(keys))
    assert all(entry.doc.strip() and "\0" not in entry.doc for entry in everything)


@pytest.mark.parametrize(
    ("module", "qualname", "signature", "words"),
    [
        ("zipfile", "", "", "ZIP files"),
        ("zipfile", "ZipFile.extractall", "(self, path=None, members=None, pwd=None)", "Extract all members"),
        ("json", "dumps", None, "JSON"),
        ("asyncio.tasks", "gather", "(*coros_or_futures, return_exceptions=False)", "future"),
        ("math", "sqrt", "(x, /)", "square root"),
        ("itertools", "chain", "", "iterable"),
        ("builtins", "str.upper", "(self, /)", "uppercase"),
    ],
)
def test_known_entries(
    everything: list[corpus.Entry], module: str, qualname: str, signature: str | None, words: str
) -> None:
    entry = next(entry for entry in everything if (entry.module, entry.qualname) == (module, qualname))
    assert words in entry.doc
    assert signature is None or entry.signature == signature


def test_signatures_are_python(everything: list[corpus.Entry]) -> None:
    for entry in everything:
        if entry.signature and "<" not in entry.signature:  # a default that has no literal prints as <object …>
            ast.parse(f"def f{entry.signature}: ...")


def test_limit_takes_the_first(everything: list[corpus.Entry]) -> None:
    assert corpus.load(10) == everything[:10]


def test_nothing_with_effects_is_imported() -> None:
    program = "import sys; from cdc.testing import corpus; corpus.load(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert {"antigravity", "this", "tkinter", "readline"}.isdisjoint(done.stdout.split())
