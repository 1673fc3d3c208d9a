"""Commands around the stream: prepare, check, take away, and show what is set."""

from __future__ import annotations

from typing import Annotated

import typer

import cdc
from cdc.cli.flags import with_settings
from cdc.cli.output import as_json, console, note, table
from cdc.config import Settings, shown
from cdc.errors import ConfigError

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

PANEL = "Setup"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel=PANEL)(with_settings(init))
    app.command(rich_help_panel=PANEL)(with_settings(doctor))
    app.command(rich_help_panel=PANEL)(with_settings(drop))
    settings = typer.Typer(help="Show the settings in force.", no_args_is_help=True)
    settings.command("show")(with_settings(config_show))
    app.add_typer(settings, name="config", rich_help_panel=PANEL)
    app.command(rich_help_panel=PANEL)(version)


def init(
    settings: Settings,
    tables: Annotated[
        list[str] | None,
        typer.Option(
            "--table", metavar="TABLE", help="A table to watch, where the publication is missing; may be repeated."
        ),
    ] = None,
    print_sql: Annotated[bool, typer.Option("--print-sql", help="Print the SQL for a DBA; touch nothing.")] = False,
    in_place: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Keep the vectors in this column of the one --table, not in a table."),
    ] = None,
) -> None:
    """Make what is missing: publication, slot, pgvector and control schema. Safe to repeat."""
    from cdc.postgres import setup

    wanted = [setup.parse_table(name) for name in tables or []]
    if in_place is not None and (len(wanted) != 1 or print_sql):
        raise ConfigError("--in-place names the vector column of one table.", "Give exactly one --table with it.")
    if print_sql:
        print(setup.print_sql(settings, _role(settings), wanted), end="")
        return
    setup.init(settings, wanted, say=print, warn=note)
    if in_place is not None:
        print(setup.keep_in_place(settings, wanted[0], in_place))


def _role(settings: Settings) -> str:
    """Return the role that walvec will connect as."""
    from cdc.postgres.connect import connection_params

    return str(connection_params(settings, "init").get("user") or _environment_user() or "walvec")


def _environment_user() -> str:
    import os

    return os.environ.get("PGUSER", "")


def doctor(settings: Settings, json: Json = False) -> None:
    """Check, read-only, all that PostgreSQL must offer, and say what mends what is missing.

    Exit status: 0 all is well, 1 warnings, 2 failures. docs/doctor.md explains each code.
    """
    from cdc.postgres.doctor import examine, exit_code

    findings = examine(settings)
    if json:
        as_json([finding.to_json() for finding in findings])
    else:
        out = console()
        for finding in findings:
            out.print(f"{finding.status:<4}  {finding.code}  {finding.what}", soft_wrap=True)
            if finding.status != "ok":
                out.print(f"      why: {finding.why}", soft_wrap=True)
                out.print(f"      fix: {finding.fix}", soft_wrap=True)
    raise typer.Exit(exit_code(findings))


def drop(
    settings: Settings,
    slot: Annotated[bool, typer.Option("--slot", help="The replication slot; frees WAL.")] = False,
    publication: Annotated[bool, typer.Option("--publication", help="The publication.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="The control schema.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this, only say what would go.")] = False,
) -> None:
    """Remove what walvec made: slot, control schema, publication; all three, or those that are named.

    Tables of embeddings stay. The names come from WALVEC_SLOT, WALVEC_PUBLICATION and WALVEC_SCHEMA. What jobs use in
    this database goes too: with the schema their slots and publications, with --slot or --publication the one or other.
    """
    from cdc.postgres.admin import Choice, Dropper
    from cdc.postgres.connect import connect_sync

    everything = not (slot or publication or schema)
    choice = Choice(slot or everything, publication or everything, schema or everything)
    with connect_sync(settings, "drop") as conn:
        dropper = Dropper(conn, settings)
        plan = dropper.plan(choice)
        for line in plan:
            print(line)
        if not plan:
            print("There is nothing to drop.")
        elif not yes:
            raise ConfigError("Nothing was dropped.", "Add --yes to drop what is listed.")
        else:
            dropper.drop(choice)
            print("Dropped.")


def config_show(
    settings: Settings,
    redact: Annotated[bool, typer.Option("--redact", help="Leave out addresses too, to post it in public.")] = False,
    json: Json = False,
) -> None:
    """Print every setting with its value and where it came from. Secrets are never shown."""
    rows = [(setting.env, value, origin) for setting, value, origin in shown(settings, redact=redact)]
    if json:
        as_json([{"name": name, "value": value, "origin": origin} for name, value, origin in rows])
    else:
        console().print(table(["name", "value", "origin"], rows))


def version(json: Json = False) -> None:
    """Print the version."""
    if not json:
        print(f"walvec {cdc.__version__}")
        return
    import platform
    from importlib.metadata import version as installed

    from psycopg import pq

    as_json(
        {
            "walvec": cdc.__version__,
            "python": platform.python_version(),
            "psycopg": installed("psycopg"),
            "libpq": pq.version_pretty(pq.version()),
            "onnxruntime": installed("onnxruntime"),
            "platform": platform.platform(),
        }
    )
