"""The parts of the demo, in order. Each shows something, and checks it."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass

import psycopg

from cdc.demo.corpus import Corpus
from cdc.demo.latency import Watch, summary
from cdc.demo.screen import Screen, ms
from cdc.demo.stage import PIPELINE, Disappointed, Stage
from cdc.postgres.connect import connect_sync
from cdc.postgres.verify import Verifier

TABLE = (
    "CREATE TABLE docstrings (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,",
    "    module text, name text, signature text, summary text, doc text);",
)
PUBLICATION = "CREATE PUBLICATION walvec FOR TABLE docstrings (id, module, name, summary);"
COLUMNS = ("module", "name", "signature", "summary", "doc")
COUNT = "SELECT count(*) FROM docstrings_embeddings"
BACKFILL_S = 1200.0


@dataclass(frozen=True, slots=True)
class Story:
    """One row's life: inserted, asked for, changed, asked for again, deleted."""

    module: str
    name: str
    first: str
    first_question: str
    second: str
    second_question: str


STORY = Story(
    "notes",
    "monday",
    "Mix flour, milk and eggs, and fry the batter in butter.",
    "what can I cook for breakfast?",
    "Replace the punctured tyre of a bicycle.",
    "how do I repair my bike?",
)

QUESTIONS = {
    "read a zip archive": "zipfile",
    "parse the arguments of a command line": "argparse",
    "a random number between two bounds": "random",
    "count how often each element occurs": "collections",
    "connect to a mail server": "smtplib",
}
"""What is asked, and the module whose rows must be among the nearest five."""


def load(screen: Screen, stage: Stage, limit: int | None = None) -> Corpus:
    """Make the table and the publication, and load the rows (the first ``limit``); return them."""
    screen.step("Real text: what Python's standard library says about itself")
    began = time.monotonic()
    screen.code(*TABLE, PUBLICATION)
    stage.connection.execute("\n".join(TABLE))
    corpus = Corpus.read(limit)
    with stage.connection.cursor() as cursor, cursor.copy(f"COPY docstrings ({', '.join(COLUMNS)}) FROM STDIN") as copy:
        for row in corpus.first:
            copy.write_row(row)
    stage.connection.execute(PUBLICATION)
    screen.say(
        f"{len(corpus.first):,} docstrings of Python {platform.python_version()}, read and loaded in "
        f"{time.monotonic() - began:.1f} s. The publication's column list says what is embedded: module, name and "
        "first paragraph. The key and the other columns are not.",
    )
    return corpus


def backfill(screen: Screen, stage: Stage) -> None:
    """Start the consumer, and watch the rows that are there already being embedded.

    Raises:
        Disappointed: the consumer ended, or it takes far too long.
    """
    model = stage.settings.model
    screen.step(f"`walvec run` embeds what is there already, with {model} on this machine")
    total = stage.value("SELECT count(*) FROM docstrings")
    began = time.monotonic()
    stage.consume()
    first: float | None = None
    with screen.bar("embedding", total) as update:
        done = 0
        while done < total:
            time.sleep(0.2)
            stage.check()
            done = _embedded(stage)
            if done and first is None:
                first = time.monotonic() - began
            if time.monotonic() - began > BACKFILL_S:
                raise Disappointed(f"Only {done:,} of {total:,} rows were embedded after {BACKFILL_S / 60:g} minutes.")
            update(done)
    stage.sync()
    seconds = time.monotonic() - began
    cores = len(os.sched_getaffinity(0))
    screen.say(
        f"{total:,} embeddings in {seconds:.1f} s, loading the model included: {total / seconds:.0f} rows/s on "
        f"{cores} {'core' if cores == 1 else 'cores'}.",
        f"Status page: http://{stage.address}/",
    )


def _embedded(stage: Stage) -> int:
    """Return how many embeddings there are; 0 while the consumer has not made the table."""
    try:
        return int(stage.value(COUNT))
    except psycopg.errors.UndefinedTable:
        return 0


def follow(screen: Screen, stage: Stage, story: Story) -> None:
    """Show one row being inserted, changed and deleted, its embedding following, and searches that notice.

    Raises:
        Disappointed: a search does not answer as the rows are.
    """
    screen.step("A row changes, its embedding follows")
    with psycopg.connect(stage.url, autocommit=True) as looker:
        watch = Watch(stage.connection, looker)
        id, seconds = watch.insert((story.module, story.name, "", story.first, story.first))
        lines = [("INSERT", story.first, seconds, _expect(stage, story.first_question, story, True))]
        seconds = watch.update(id, story.second)
        lines.append(("UPDATE", story.second, seconds, _expect(stage, story.second_question, story, True)))
        seconds = watch.delete(id)
        lines.append(("DELETE", "", seconds, _expect(stage, story.second_question, story, False)))
    screen.table(
        ["change", "text", "COMMIT to visible", "a search right after it"],
        [(change, text, ms(seconds), answer) for change, text, seconds, answer in lines],
        ["COMMIT to visible"],
    )


def _expect(stage: Stage, question: str, story: Story, there: bool) -> str:
    """Ask; return question and nearest row. The story's row must be the nearest, or must not be there at all."""
    found = stage.search(question, 5)
    names = [(row["module"], row["name"]) for row in found]
    if there and names[:1] != [(story.module, story.name)]:
        raise Disappointed(f'The search "{question}" does not find {story.module}.{story.name} first.')
    if not there and (story.module, story.name) in names:
        raise Disappointed(f'The search "{question}" still finds {story.module}.{story.name}, which is deleted.')
    return f'"{question}" → {f"{story.module}.{story.name}" if there else "no longer found"}'


def measure(screen: Screen, stage: Stage, corpus: Corpus) -> None:
    """Insert, change and delete a number of rows one by one, and show how long their embeddings took."""
    screen.step("The same many times over: from COMMIT until another session sees the new embedding")
    taken: dict[str, list[float]] = {"INSERT": [], "UPDATE": [], "DELETE": []}
    with psycopg.connect(stage.url, autocommit=True) as looker:
        watch = Watch(stage.connection, looker)
        ids = []
        for row in corpus.later:
            id, seconds = watch.insert(row)
            ids.append(id)
            taken["INSERT"].append(seconds)
        for id, row in zip(ids, corpus.later, strict=True):
            taken["UPDATE"].append(watch.update(id, f"Changed while walvec runs: {row[3]}"))
        for id in ids:
            taken["DELETE"].append(watch.delete(id))
    figures = [(change, len(seconds), *map(ms, summary(seconds))) for change, seconds in taken.items()]
    screen.table(["change", "rows", "p50", "max"], figures, ["rows", "p50", "max"])
    screen.say(
        "One row and one transaction each, one after the other. fsync is on, and an INSERT or UPDATE includes the "
        "model's work on this machine's cores; a DELETE needs none."
    )


def leave_alone(screen: Screen, stage: Stage) -> None:
    """Change a column that is not embedded, in every row, and show that the model is not asked.

    Raises:
        Disappointed: rows were embedded again.
    """
    screen.step("What does not change the text costs no embedding")
    update = "UPDATE docstrings SET signature = '(…)';"
    screen.code(update)
    names = ("walvec_rows_embedded_total", "walvec_skipped_unchanged_total")
    before = [stage.counter(name) for name in names]
    began = time.monotonic()
    rows = stage.connection.execute(update).rowcount
    stage.sync()
    seconds = time.monotonic() - began
    embedded, skipped = (stage.counter(name) - was for name, was in zip(names, before, strict=True))
    if embedded or skipped != rows:
        raise Disappointed(f"Of {rows:,} rows whose text did not change, {embedded:,} were embedded again.")
    screen.say(f"{rows:,} rows updated, {skipped:,} hashes found equal, 0 embedded; in sync after {ms(seconds)}.")


def ask(screen: Screen, stage: Stage, questions: dict[str, str]) -> None:
    """Search, and check that what must be found is found.

    Raises:
        Disappointed: it is not.
    """
    screen.step("Searches")
    lines = []
    for question, module in questions.items():
        began = time.perf_counter()
        found = stage.search(question, 5)
        seconds = time.perf_counter() - began
        if module not in {row["module"].partition(".")[0] for row in found}:
            names = ", ".join(map(_title, found)) or "nothing"
            raise Disappointed(f'The search "{question}" must find {module}, and found {names}.')
        lines.append((question, "\n".join(map(_title, found[:3])), f"{found[0]['distance']:.2f}", ms(seconds)))
    screen.table(["question", "nearest three", "distance", "time"], lines, ["distance", "time"])
    checked = "; ".join(f'"{question}" found {module}' for question, module in questions.items())
    screen.say(f"Checked: {checked}.")


def agree(screen: Screen, stage: Stage) -> None:
    """Show the kbstat table, and compare every row with its embedding.

    Raises:
        Disappointed: they differ.
    """
    screen.step("The books: walvec.kbstat, and `walvec verify`, which compares every row with its embedding")
    stage.sync()
    cursor = stage.connection.execute("SELECT * FROM walvec.kbstat")
    columns = [column.name for column in cursor.description or ()]
    screen.table(columns, cursor.fetchall(), columns[2:])
    with connect_sync(stage.settings, "verify") as connection:
        compared = Verifier(connection, "walvec").compare(PIPELINE)
    row = compared.to_json()
    screen.table(list(row), [list(row.values())], list(row)[1:])
    if not compared.equal:
        raise Disappointed("Rows and embeddings differ.")


def _title(row: dict[str, object]) -> str:
    return ".".join(str(part) for part in (row["module"], row["name"]) if part)
