"""Commands about pipelines: how they stand, pausing them, and their dead letters."""

from __future__ import annotations

import json as json_module
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cdc.cli.flags import with_settings
from cdc.cli.output import as_json, console, note, size, table
from cdc.config import Settings

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cdc.postgres.admin import Admin
    from cdc.status import EngineStatus

Name = Annotated[str, typer.Argument(metavar="PIPELINE", help="The pipeline's name.")]
OptionalName = Annotated[str | None, typer.Argument(metavar="[PIPELINE]", help="One pipeline; all without it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
WATCH_S: Final = 2.0

PANEL = "Pipelines"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel=PANEL)(with_settings(status))
    app.command(rich_help_panel=PANEL)(with_settings(pause))
    app.command(rich_help_panel=PANEL)(with_settings(resume))
    errors = typer.Typer(help="Rows that could not be embedded: list, retry or forget them.", no_args_is_help=True)
    errors.command("list")(with_settings(errors_list))
    errors.command("retry")(with_settings(errors_retry))
    errors.command("requeue", help="The same as retry.")(with_settings(errors_retry))
    errors.command("clear")(with_settings(errors_clear))
    app.add_typer(errors, name="errors", rich_help_panel=PANEL)


@contextmanager
def _admin(settings: Settings) -> Iterator[Admin]:
    from cdc.postgres.admin import Admin
    from cdc.postgres.connect import connect_sync

    with connect_sync(settings, "cli") as conn:
        yield Admin(conn, settings)


def status(
    settings: Settings,
    json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help=f"Show it again every {WATCH_S:g} s, until Ctrl-C.")] = False,
) -> None:
    """Print the kbstat table: what every pipeline has done and has still to do."""
    if watch:
        _watch(settings, json)
        return
    with _admin(settings) as admin:
        found = admin.status()
    if json:
        as_json(found.to_json())
    else:
        console().print(render(found))


def _watch(settings: Settings, json: bool) -> None:
    """Show the status again and again; as JSON, one line each time. A server that goes away is waited for."""
    from rich.live import Live

    from cdc.errors import Unavailable

    screen = Live(console=console(), auto_refresh=False, transient=False)
    with screen:
        while True:
            try:
                with _admin(settings) as admin:
                    found = admin.status()
                if json:
                    print(json_module.dumps(found.to_json(), ensure_ascii=False), flush=True)
                elif sys.stdout.isatty():
                    screen.update(render(found), refresh=True)
                else:
                    console().print(render(found))
            except Unavailable as exc:
                note(str(exc))
            time.sleep(WATCH_S)


def render(found: EngineStatus) -> RenderableType:
    """Return the kbstat table, a line on the slot, and the reasons of pipelines that stand still."""
    from rich.console import Group

    columns = {
        "knowledge base": "knowledge_base",
        "auto processing": "auto_processing",
        "table: unprocessed rows": "unprocessed_rows",
        "volume: scans completed": "scans_completed",
        "count(source records)": "source_records",
        "count(embeddings)": "embeddings",
        "status": "status",
        "errors": "errors",
    }
    rows = [[row[key] for key in columns.values()] for row in found.to_json()]
    words = {"knowledge base", "auto processing", "status"}
    slot = found.slot
    reason = f". {slot.reason}" if slot.reason else ""
    behind, kept = size(slot.lag_bytes), size(slot.retained_bytes)
    lines = [f'slot "{slot.name}": {slot.state.value}, {behind} behind, {kept} of WAL kept{reason}']
    lines += [f"{p.pipeline}: {p.reason}" for p in found.pipelines if p.reason]
    lines += [check.message for check in found.checks]
    return Group(table(list(columns), rows, [name for name in columns if name not in words]), *lines)


def pause(settings: Settings, pipeline: Name) -> None:
    """Stop embedding a pipeline's rows; its changes are kept in the durable queue."""
    with _admin(settings) as admin:
        changed = admin.set_paused(pipeline, True)
    print(f"{pipeline} is paused." if changed else f"{pipeline} was paused already.")


def resume(settings: Settings, pipeline: Name) -> None:
    """Go on embedding a paused pipeline's rows."""
    with _admin(settings) as admin:
        changed = admin.set_paused(pipeline, False)
    print(f"{pipeline} goes on." if changed else f"{pipeline} was not paused.")


def errors_list(settings: Settings, pipeline: OptionalName = None, json: Json = False) -> None:
    """Print the rows that could not be embedded, and why."""
    with _admin(settings) as admin:
        rows = admin.errors(pipeline)
    if json:
        as_json(rows)
    elif not rows:
        print("No row is dead-lettered.")
    else:
        columns = ["id", "pipeline", "key", "step", "category", "message", "attempts", "last_seen"]
        cells = [[_cell(row[column]) for column in columns] for row in rows]
        console().print(table(columns, cells, ["id", "attempts"]))


def errors_retry(settings: Settings, pipeline: OptionalName = None) -> None:
    """Put the rows back into the queue, to be embedded again."""
    with _admin(settings) as admin:
        print(f"Requeued: {admin.requeue_errors(pipeline)}.")


def errors_clear(settings: Settings, pipeline: OptionalName = None) -> None:
    """Forget the rows; they stay without an embedding until they change."""
    with _admin(settings) as admin:
        print(f"Cleared: {admin.clear_errors(pipeline)}.")


def _cell(value: object) -> object:
    if isinstance(value, dict):
        return ", ".join(f"{name}={part}" for name, part in value.items())
    return value.isoformat(sep=" ", timespec="seconds") if hasattr(value, "isoformat") else value
