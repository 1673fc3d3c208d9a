"""The end of the demo: how to go on with one's own database, and, when asked, staying until Ctrl-C."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from cdc.demo.screen import Screen
from cdc.demo.stage import PIPELINE, Stage


def own_database(screen: Screen) -> None:
    """Say how to point walvec at one's own database."""
    screen.step("Your own database")
    screen.code(
        "CREATE PUBLICATION walvec FOR TABLE articles (id, title, body);",
        "export WALVEC_DATABASE_URL=postgresql://…",
        f"{_command()} run",
    )
    screen.say(
        f"`{_command()} doctor` says what the server still lacks, and the SQL that mends it. The model runs "
        "in process; with WALVEC_TRITON_URL set, a Triton server computes the vectors."
    )


def stay(screen: Screen, stage: Stage) -> None:
    """Say where to look, and stay until Ctrl-C.

    Raises:
        Disappointed: server or consumer ended.
    """
    url = stage.write_private("url", stage.url)
    screen.step("Still running; Ctrl-C stops and removes it")
    screen.say(f"Status page   http://{stage.address}/", f"Metrics       http://{stage.address}/metrics")
    screen.say("In another terminal (the file holds the database's address, password included):")
    screen.code(
        f"export WALVEC_DATABASE_URL_FILE={url}",
        f"{_command()} search {PIPELINE} 'read a zip archive' -k 5",
        f"{_command()} status --watch",
        f'{_psql(stage)} "$(cat $WALVEC_DATABASE_URL_FILE)" -c "DELETE FROM docstrings WHERE module = \'zipfile\'"',
    )
    while True:
        stage.check()
        time.sleep(0.5)


def _command() -> str:
    """Return what to type for walvec: as it was typed for the demo, unless the shell finds it by its name."""
    beside = Path(sys.executable).with_name("walvec")
    if shutil.which("walvec") or not beside.exists():
        return "walvec"
    return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)


def _psql(stage: Stage) -> str:
    return "psql" if shutil.which("psql") else str(stage.cluster.bin("psql"))
