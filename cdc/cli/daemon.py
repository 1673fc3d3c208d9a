"""The Lantern-compatible daemon over tables of jobs."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from cdc.cli.consumer import serve_http
from cdc.cli.flags import with_settings
from cdc.cli.output import note
from cdc.config import Settings
from cdc.errors import ConfigError

PANEL = "Stream"
CENTRAL, OWN = "One table of jobs for all databases", "Tables of jobs in each database"
LEVELS = {"debug": "debug", "info": "info", "warn": "warning", "warning": "warning", "error": "error"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    several = {"allow_extra_args": True}  # Lantern takes the databases of --target-db with blanks between
    app.command("start-daemon", rich_help_panel=PANEL, context_settings=several)(with_settings(start_daemon))


def start_daemon(
    settings: Settings,
    context: typer.Context,
    uri: Annotated[
        str | None, typer.Option(help="The control database, which holds the tables of jobs.", rich_help_panel=CENTRAL)
    ] = None,
    embedding_table: Annotated[
        str | None, typer.Option(help="The table of embedding jobs.", rich_help_panel=CENTRAL)
    ] = None,
    external_index_table: Annotated[
        str | None, typer.Option(help="The table of external index jobs.", rich_help_panel=CENTRAL)
    ] = None,
    autotune_table: Annotated[
        str | None, typer.Option(help="The table of autotune jobs.", rich_help_panel=CENTRAL)
    ] = None,
    autotune_results_table: Annotated[
        str | None, typer.Option(help="The table of autotune's trials.", rich_help_panel=CENTRAL)
    ] = None,
    target_db: Annotated[
        list[str] | None, typer.Option(help="A database to serve; several with blanks between.", rich_help_panel=OWN)
    ] = None,
    master_db: Annotated[
        str | None, typer.Option(help="The database that lists databases to serve.", rich_help_panel=OWN)
    ] = None,
    master_db_schema: Annotated[str, typer.Option(help="The schema of that list.", rich_help_panel=OWN)] = "public",
    databases_table: Annotated[
        str, typer.Option(help="The table of that list; its column db_uri counts.", rich_help_panel=OWN)
    ] = "daemon_databases",
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Run embedding jobs.", rich_help_panel=OWN)] = False,
    autotune: Annotated[bool, typer.Option("--autotune", help="Run autotune jobs.", rich_help_panel=OWN)] = False,
    external_index: Annotated[
        bool, typer.Option("--external-index", help="Run external index jobs.", rich_help_panel=OWN)
    ] = False,
    schema: Annotated[
        str | None, typer.Option("--schema", "-s", help="The schema of the tables of jobs.", show_default="public")
    ] = None,
    internal_schema: Annotated[
        str, typer.Option(help="Where Lantern's own tables and functions for usage are looked for, too.")
    ] = "lantern",
    label: Annotated[str, typer.Option(help="Run the jobs with this label; without it, those with none.")] = "",
    log_level: Annotated[str | None, typer.Option(help="debug, info, warn or error.", metavar="LEVEL")] = None,
    data_path: Annotated[str | None, typer.Option(help="Folder of further models (WALVEC_MODELS_DIR).")] = None,
    inside_postgres: Annotated[bool, typer.Option("--inside-postgres", hidden=True)] = False,
) -> None:
    """Run the jobs that tables of jobs ask for: embeddings, external indexes, autotune. Lantern's tables will do.

    SIGTERM drains and acknowledges; a second signal stops at once. Exit status: 0 stopped, 2 a setting, a table or a
    privilege is wrong. A server that is down is waited for.
    """
    from cdc.daemon import process as daemon_process
    from cdc.daemon.plan import Plan
    from cdc.jobs import JobKind
    from cdc.ports.books import BookName
    from cdc.postgres.setup import parse_table
    from cdc.rows import Table

    if log_level is not None and log_level not in LEVELS:
        raise ConfigError(f"--log-level is {log_level!r}.", "Use debug, info, warn or error.")
    settings = replace(settings, log_level=LEVELS[log_level]) if log_level else settings
    if data_path:
        settings = _with_models(settings, data_path)
    if inside_postgres:
        note("--inside-postgres means nothing here: walvec runs outside of PostgreSQL.")

    def table(name: str) -> Table:
        return parse_table(name) if "." in name or '"' in name else Table(schema or "public", name)

    named = {
        JobKind.EMBEDDING: embedding_table,
        JobKind.EXTERNAL_INDEX: external_index_table,
        JobKind.AUTOTUNE: autotune_table,
    }
    books = tuple(BookName(kind, table(name)) for kind, name in named.items() if name)
    targets = (*(target_db or ()), *context.args)
    if context.args and not target_db:
        raise ConfigError(f"{len(context.args)} words too many were given.", "`walvec start-daemon --help` shows how.")
    if bool(books) == bool(targets or master_db):
        raise ConfigError(
            "Give either --uri with --embedding-table, --external-index-table or --autotune-table, "
            "or --target-db or --master-db."
        )
    chosen = {
        kind
        for kind, wanted in (
            (JobKind.EMBEDDING, embeddings),
            (JobKind.AUTOTUNE, autotune),
            (JobKind.EXTERNAL_INDEX, external_index),
        )
        if wanted
    }
    if books:
        if not (uri or settings.database_url):
            raise ConfigError("No control database is named.", "Give --uri.")
        plan = Plan(
            uri=uri or settings.database_url,
            books=books,
            results=table(autotune_results_table) if autotune_results_table else None,
            schemas=tuple(dict.fromkeys((schema or "public", internal_schema))),
            label=label,
        )
    else:
        plan = Plan(
            targets=targets,
            master=(master_db, Table(master_db_schema, databases_table)) if master_db else None,
            kinds=frozenset(chosen or (JobKind.EMBEDDING, JobKind.EXTERNAL_INDEX, JobKind.AUTOTUNE)),
            schema=schema or "",
            label=label,
        )
    raise typer.Exit(daemon_process.run(settings, plan, serve_http(settings)))


def _with_models(settings: Settings, folder: str) -> Settings:
    """Take further models from ``folder``. Lantern makes the folder where it is missing: then there are none in it."""
    from pathlib import Path

    if Path(folder).is_dir():
        return replace(settings, models_dir=folder)
    note(f"--data-path names {folder}, which is no folder: the models that come with walvec are used.")
    return settings
