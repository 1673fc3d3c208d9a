"""Commands about the stream itself: run it, wait for it, compare, search, show."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cdc.cli.flags import with_settings
from cdc.cli.output import as_json, console, note, table
from cdc.config import Settings
from cdc.errors import ConfigError, TimedOut, Unavailable, UnknownPipeline

if TYPE_CHECKING:
    from cdc.ports import EngineView
    from cdc.telemetry.metrics import Metrics

Pipeline = Annotated[str | None, typer.Argument(metavar="[PIPELINE]", help="One pipeline; all of them without it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

PANEL = "Stream"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel=PANEL)(with_settings(run))
    app.command(rich_help_panel=PANEL)(with_settings(sync))
    app.command(rich_help_panel=PANEL)(with_settings(verify))
    app.command(rich_help_panel=PANEL)(with_settings(reconcile))
    app.command(rich_help_panel=PANEL)(with_settings(search))
    app.command(rich_help_panel=PANEL)(demo)
    passed_on = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(rich_help_panel=PANEL, context_settings=passed_on)(bench)


def run(settings: Settings) -> None:
    """Follow the publication and keep its embeddings in sync, in the foreground.

    SIGTERM drains and acknowledges; a second signal stops at once. Exit status: 0 stopped, 2 a setting or privilege is
    wrong, 3 a person is needed. A server that is down is waited for.
    """
    from cdc import consumer_process

    raise typer.Exit(consumer_process.run(settings, serve_http(settings)))


def sync(
    settings: Settings,
    timeout: Annotated[
        float | None, typer.Option(help="Give up after this many seconds.", metavar="S", min=0, show_default="none")
    ] = None,
) -> None:
    """Return when all that was committed before this call is embedded or dead-lettered, backfills included.

    Exit status: 0 in sync, 4 timed out.
    """
    from cdc.postgres.sync import Sync

    if not Sync(settings, note).wait(timeout):
        raise TimedOut(f"Not in sync after {timeout:g} s.", "`walvec status` shows what is still under way.")


def verify(
    settings: Settings,
    pipeline: Pipeline = None,
    json: Json = False,
    deep: Annotated[
        int, typer.Option(help="Re-embed N random rows too, and compare the vectors.", metavar="N", min=0)
    ] = 0,
) -> None:
    """Compare source and embeddings by hash, changing nothing, with or without a running consumer.

    Exit status: 0 equal, 1 not.
    """
    from cdc.postgres.connect import connect_sync
    from cdc.postgres.verify import Verifier

    rows: list[dict[str, object]] = []
    equal = True
    with connect_sync(settings, "verify") as conn:
        verifier = Verifier(conn, settings.schema)
        for name in verifier.names(pipeline):
            try:
                compared = verifier.compare(name)
            except ConfigError as exc:
                if pipeline is not None:
                    raise
                note(f"{name} cannot be compared. {exc}")  # and the others are
                equal = False
                continue
            row, equal = compared.to_json(), equal and compared.equal
            if deep:
                from cdc import app

                row["different"] = app.deep_verify(settings, verifier.sample(name, deep))
                equal = equal and not row["different"]
            rows.append(row)
    if json:
        as_json(rows)
    elif rows:
        _print_rows(rows)
    else:
        note("There is no pipeline to compare yet.")
    raise typer.Exit(0 if equal else 1)


def reconcile(
    settings: Settings,
    pipeline: Pipeline = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what differs, and change nothing.")] = False,
) -> None:
    """Compare source with embeddings by hash, embed what differs and remove orphans."""
    from cdc import app

    with Progress() as progress:
        rows = app.reconcile(settings, pipeline, dry_run=dry_run, progress=progress.update)
    if rows:
        _print_rows(rows)
    else:
        note("There is no pipeline to reconcile yet.")


def search(
    settings: Settings,
    pipeline: Annotated[str, typer.Argument(help="The pipeline or external index (schema.table.column) to search.")],
    text: Annotated[str | None, typer.Argument(help="What to look for.", show_default=False)] = None,
    k: Annotated[int, typer.Option("-k", help="How many rows.", metavar="N", min=1, max=10_000)] = 10,
    vector: Annotated[
        str | None, typer.Option(help="A vector to look for in place of a text, as a JSON array.", metavar="JSON")
    ] = None,
    ef: Annotated[
        int | None,
        typer.Option(help="Candidates that an external index looks at; asks the running daemon.", metavar="N", min=1),
    ] = None,
    json: Json = False,
) -> None:
    """Print the rows nearest to a text or a vector, nearest first.

    A pipeline is searched in its database. An external index is held by the daemon, which is asked over HTTP at
    WALVEC_HTTP; a text is embedded there with the model of the job that fills the column.
    """
    from cdc import app
    from cdc.cli.asking import ask_search, parse_vector

    if (text is None) == (vector is None):
        raise ConfigError("Give either a text or --vector.", "walvec search PIPELINE 'text'")
    numbers = parse_vector(vector) if vector is not None else None
    if ef is not None:
        found = ask_search(settings, pipeline, text, numbers, k, ef)
    else:
        try:
            found = app.search(settings, pipeline, text or "", k, numbers)
        except (UnknownPipeline, Unavailable) as unknown:
            try:
                found = ask_search(settings, pipeline, text, numbers, k, ef)
            except (Unavailable, ConfigError, UnknownPipeline) as why:
                raise UnknownPipeline(f"{unknown.message} {why.message}", why.remedy or unknown.remedy) from None
    if json:
        as_json(found)
        return
    lines = [(f"{row['distance']:.4f}", _key(row["key"]), _excerpt(row["content"])) for row in found]
    console().print(table(["distance", "key", "content"], lines, ["distance"]))


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running, with metrics and status page.")] = False,
) -> None:
    """Show it all on an embedded PostgreSQL with real text and a real model; no database needed."""
    from cdc import demo as show

    raise typer.Exit(show.main(keep))


def bench(context: typer.Context) -> None:
    """Measure this machine; `walvec bench --help` lists what."""
    from cdc import bench as measure

    raise typer.Exit(measure.main(context.args))


def serve_http(settings: Settings) -> Callable[[EngineView, Metrics], Callable[[], None]] | None:
    """Return what starts the HTTP server; None where it is off."""
    from cdc.api.server import HttpServer

    if settings.http_address is None:
        return None

    def serve(view: EngineView, metrics: Metrics) -> Callable[[], None]:
        server = HttpServer(settings.http, settings.http_token or None, view=view, metrics=metrics)
        server.start()
        return server.stop

    return serve


class Progress:
    """A bar per pipeline on a terminal's standard error; nothing elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
        self._tasks: dict[str, object] = {}

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def update(self, pipeline: str, done: int, total: int) -> None:
        """Show ``done`` of about ``total`` rows of a pipeline."""
        if pipeline not in self._tasks:
            self._tasks[pipeline] = self._bars.add_task(pipeline)
        self._bars.update(self._tasks[pipeline], completed=done, total=max(done, total))  # type: ignore[arg-type]


def _print_rows(rows: Sequence[Mapping[str, object]]) -> None:
    columns = list(rows[0])
    console().print(table(columns, [[row[column] for column in columns] for row in rows], columns[1:]))


def _key(key: object) -> str:
    return ", ".join(f"{name}={value}" for name, value in key.items()) if isinstance(key, Mapping) else str(key)


def _excerpt(content: object, width: int = 120) -> str:
    line = " ".join(str(content or "").split())
    return line if len(line) <= width else line[: width - 1] + "…"
