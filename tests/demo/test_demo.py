"""The demo's parts with few rows and the hash runtime: what they show, and that a false claim ends them."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from cdc import demo
from cdc.demo import acts
from cdc.demo.corpus import LATER, Corpus
from cdc.demo.screen import Screen
from cdc.demo.stage import Disappointed, Stage

ROWS = 220
ROW = [("os", "getcwd", "()", "Where we are.", "Where we are.")]
ANY_PORT = "127.0.0.1:0"

pytestmark = pytest.mark.xdist_group("demo")


def composed(module: str, name: str, summary: str) -> str:
    """The text that is embedded: its hash vector is nearest to itself, at distance 0, and to nothing else."""
    return f"module: {module}\nname: {name}\nsummary: {summary}"


STORY = acts.Story(
    "notes", "monday", "One.", composed("notes", "monday", "One."), "Two.", composed("notes", "monday", "Two.")
)


class Shown:
    """A screen and what stood on it."""

    def __init__(self, width: int = 140) -> None:
        self._file = io.StringIO()
        self.screen = Screen(Console(file=self._file, width=width, highlight=False, emoji=False, markup=False))

    @property
    def text(self) -> str:
        return self._file.getvalue()


def wait_until(true: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="module")
def played() -> Iterator[tuple[Stage, Corpus, Shown]]:
    shown = Shown()
    with Stage.open(shown.screen, "hash", ANY_PORT) as stage:
        corpus = acts.load(shown.screen, stage, ROWS)
        acts.backfill(shown.screen, stage)
        yield stage, corpus, shown


@pytest.fixture
def stage(played: tuple[Stage, Corpus, Shown]) -> Stage:
    return played[0]


def test_rows_that_were_there_already_are_embedded(played):
    stage, corpus, shown = played
    assert len(corpus.first) == ROWS - LATER
    assert stage.value(acts.COUNT) == ROWS - LATER
    assert f"{ROWS - LATER:,} embeddings in" in shown.text
    assert f"http://{stage.address}/" in shown.text


def test_an_inserted_changed_and_deleted_row_is_followed(stage):
    shown = Shown()
    acts.follow(shown.screen, stage, STORY)
    lines = [line.split()[0] for line in shown.text.splitlines() if " ms " in line]
    assert lines == ["INSERT", "UPDATE", "DELETE"]
    assert stage.value("SELECT count(*) FROM docstrings WHERE module = 'notes'") == 0


def test_a_story_that_searches_do_not_confirm_ends_the_demo(stage):
    wrong = acts.Story("notes", "monday", "One.", "not this text", "Two.", "nor this")
    try:
        with pytest.raises(Disappointed, match=r"does not find notes\.monday first"):
            acts.follow(Shown().screen, stage, wrong)
    finally:
        stage.connection.execute("DELETE FROM docstrings WHERE module = 'notes'")
        stage.sync()


def test_times_are_measured_for_every_kind_of_change(played):
    stage, corpus, _ = played
    shown = Shown()
    acts.measure(shown.screen, stage, corpus)
    rows = [line.split()[:2] for line in shown.text.splitlines() if " ms " in line]
    assert rows == [["INSERT", "20"], ["UPDATE", "20"], ["DELETE", "20"]]


def test_a_column_that_is_not_published_costs_nothing(stage):
    shown = Shown()
    acts.leave_alone(shown.screen, stage)
    assert f"{ROWS - LATER:,} hashes found equal, 0 embedded" in shown.text


def test_a_search_that_finds_what_it_must_is_shown_and_another_ends_the_demo(played):
    stage, corpus, _ = played
    module, name, _, summary, _ = corpus.first[7]
    question = composed(module, name, summary) if name else f"module: {module}\nsummary: {summary}"
    shown = Shown()
    acts.ask(shown.screen, stage, {question: module.partition(".")[0]})
    assert f"found {module.partition('.')[0]}" in " ".join(shown.text.split())
    with pytest.raises(Disappointed, match="must find zipfile"):
        acts.ask(Shown().screen, stage, {question: "zipfile"})


def test_the_books_agree_and_a_missing_embedding_ends_the_demo(stage):
    shown = Shown()
    acts.agree(shown.screen, stage)
    assert "count(embeddings)" in shown.text
    assert "public.docstrings" in shown.text
    stage.connection.execute("DELETE FROM docstrings_embeddings WHERE id = (SELECT min(id) FROM docstrings_embeddings)")
    with pytest.raises(Disappointed, match="differ"):
        acts.agree(Shown().screen, stage)


def test_a_consumer_that_does_not_start_is_said_with_its_own_words():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with Stage.open(Shown().screen, "hash", address) as stage, pytest.raises(Disappointed) as failed:
            folder = stage.folder
            stage.consume()
    assert "exit status 2" in str(failed.value)
    assert address in str(failed.value)
    assert not folder.exists()


def test_a_claim_that_fails_is_exit_status_1(monkeypatch):
    monkeypatch.setattr(Corpus, "read", classmethod(lambda cls, limit: cls(ROW, [])))
    shown = Shown()
    assert demo.main(keep=False, runtime="hash", screen=shown.screen) == 1  # hashes know nothing of breakfast
    assert "The demo failed: The search" in shown.text


def test_a_machine_without_postgresql_gets_one_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "cdc.cli", "demo"],
        env={**os.environ, "PG18_BIN": str(tmp_path)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "PostgreSQL 18 was not found" in done.stderr


_PROCESS = """
import time
from cdc.demo.screen import Screen
from cdc.demo.stage import Stage
with Stage.open(Screen(), "hash", "127.0.0.1:0") as stage:
    stage.consume()
    print("PIDS", stage.cluster.pid, stage._consumer.pid, stage.folder, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_stays_of_a_demo_that_is_killed_or_interrupted(number):
    process = subprocess.Popen(
        [sys.executable, "-c", _PROCESS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True, env={**os.environ, "WALVEC_DATABASE_URL": "postgresql://nowhere.invalid/"},
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("PIDS"))
        _, server, consumer, folder = line.split()
        process.send_signal(number)
        process.wait(30)
    assert wait_until(lambda: not is_running(int(consumer))), "the consumer still runs"
    assert wait_until(lambda: not is_running(int(server))), "PostgreSQL still runs"
    assert wait_until(lambda: not Path(folder).exists()), "the folder is still there"


def test_rows_kept_for_later_are_not_loaded_first():
    corpus = Corpus.read(ROWS)
    assert len(corpus.later) == LATER
    assert len(corpus.first) + len(corpus.later) == ROWS
    assert not set(corpus.first) & set(corpus.later)


def test_what_does_not_go_to_a_terminal_is_plain():
    shown = Shown()
    shown.screen.step("A step")
    with shown.screen.bar("embedding", 10) as update:
        update(5)
    shown.screen.table(["a", "b"], [("1", None), ("2", "x")], ["a"])
    assert "\x1b" not in shown.text
    assert "1. A step" in shown.text


def test_a_single_row_too_wide_for_the_screen_is_turned():
    shown = Shown(width=40)
    shown.screen.table(["one long heading", "another long heading"], [("left", 12345)])
    assert [line.split() for line in shown.text.splitlines() if line.strip()] == [
        ["one", "long", "heading", "left"],
        ["another", "long", "heading", "12345"],
    ]
