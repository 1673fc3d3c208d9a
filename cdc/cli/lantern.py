"""Lantern's commands under their own names and flags: scripts go on working, and the help says what each is here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdc.cli import lantern_index, lantern_models
from cdc.cli.consumer import Progress
from cdc.cli.flags import with_settings
from cdc.cli.lantern_flags import COMPLETION, JOB_TYPES, check_job_type, params_of, with_database
from cdc.cli.output import console, note, table
from cdc.config import Settings
from cdc.errors import ConfigError

if TYPE_CHECKING:
    from cdc.one_off import Done
    from cdc.postgres.one_off_plan import Asked

PANEL = "Lantern's commands"
UNUSED = "Accepted, as Lantern does, and not used."

INSTEAD = {
    "pq-table": (
        "walvec has no product quantisation.",
        "Use pgvector's own: a halfvec column (WALVEC_VECTOR_TYPE=halfvec) halves it, and an index on "
        "binary_quantize(…)::bit(n) is a 32nd, with the candidates ranked again by the vectors.",
    ),
    "start-server": (
        "walvec serves no collections over HTTP: SQL makes and fills tables.",
        "`walvec run` and `walvec start-daemon` serve search (POST /v1/search), status and metrics on WALVEC_HTTP.",
    ),
    "start-indexing-server": (
        "walvec has no server to which PostgreSQL sends vectors to be indexed.",
        "An external index job of `walvec start-daemon` builds the index outside the database and keeps it in step; "
        "`walvec create-index` builds one once.",
    ),
}
"""What Lantern has and walvec has not, and what to use."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("create-embeddings", rich_help_panel=PANEL)(with_settings(create_embeddings))
    lantern_models.register(app, PANEL)
    lantern_index.register(app, PANEL)
    anything = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    for name, (what, instead) in INSTEAD.items():
        app.command(name, rich_help_panel=PANEL, context_settings=anything, help=f"Not provided. {instead}")(
            _refusal(what, instead)
        )


def _refusal(what: str, instead: str) -> Callable[[], None]:
    def refuse() -> None:
        raise ConfigError(what, instead)

    return refuse


def create_embeddings(
    settings: Settings,
    model: Annotated[str, typer.Option("--model", "-m", help="The model, by Lantern's name or walvec's.")],
    table: Annotated[str, typer.Option("--table", "-t", help="The table to read.")],
    column: Annotated[str, typer.Option("--column", "-c", help="The column to embed.")],
    uri: Annotated[
        str | None, typer.Option("--uri", "-u", help="The database.", show_default="WALVEC_DATABASE_URL")
    ] = None,
    schema: Annotated[str, typer.Option("--schema", "-s", help="The schema of the tables.")] = "public",
    pk: Annotated[
        str | None, typer.Option(help="The key; several columns with commas between.", show_default="the primary key")
    ] = None,
    out_table: Annotated[
        str | None, typer.Option(help="Another table to write to, keyed alike: its rows are updated.")
    ] = None,
    out_column: Annotated[str | None, typer.Option(help="The column to write.")] = None,
    out_csv: Annotated[
        Path | None, typer.Option("--out-csv", "-o", help="Write keys and results into this file, and no column.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", "-b", min=1, help="Most rows of a request.", show_default="by model")
    ] = None,
    job_type: Annotated[str, typer.Option(metavar="|".join(JOB_TYPES), help="What is made.")] = JOB_TYPES[0],
    column_type: Annotated[
        str | None,
        typer.Option(
            help="The type of a column that is made.", show_default="vector, or real[] without pgvector; text"
        ),
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="What computes: `walvec show-runtimes`.", show_default="WALVEC_RUNTIME")
    ] = None,
    runtime_params: Annotated[str, typer.Option(metavar="JSON", help="The runtime's parameters.")] = "{}",
    filter: Annotated[
        str | None, typer.Option("--filter", "-f", help="Which rows, as an SQL condition.", show_default="all")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-l", min=0, help="Most rows.", show_default="all")] = None,
    overwrite: Annotated[bool, typer.Option("--all", help="Rows too that have a value already.")] = False,
    create_column: Annotated[bool, typer.Option("--create-column", help="Make the column if it is missing.")] = False,
    failed_rows_table: Annotated[
        str | None, typer.Option(help="Keep refused rows in this table: job_id, row_id, value. Made if it is missing.")
    ] = None,
    internal_schema: Annotated[str, typer.Option(help="The schema of that table.")] = "public",
    job_id: Annotated[int, typer.Option(help="What that table has as job_id.")] = 0,
    data_path: Annotated[str | None, typer.Option(help="Folder of further models (WALVEC_MODELS_DIR).")] = None,
    out_uri: Annotated[str | None, typer.Option(help=UNUSED)] = None,
    visual: Annotated[bool, typer.Option("--visual", help=f"{UNUSED} The model says what it takes.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help=f"{UNUSED} Results are written as they come.")] = False,
    create_cast_fn: Annotated[bool, typer.Option("--create-cast-fn", help=f"{UNUSED} No function is needed.")] = False,
    check_column_type: Annotated[
        bool, typer.Option("--check-column-type", help=f"{UNUSED} Answers are always cast one by one.")
    ] = False,
) -> None:
    """Embed a table once, or have a model complete its texts: no slot, no publication, no wal_level.

    Rows that have a value are left out, so a run that was stopped goes on where it stood. To keep a column in step from
    then on, use a job of `walvec start-daemon`. Exit status: 0 done, 1 some rows were refused, 2 it cannot be done.
    """
    from cdc import one_off
    from cdc.jobs import EmbeddingSpec
    from cdc.postgres.one_off_plan import Asked
    from cdc.rows import Table

    check_job_type(job_type)
    if out_column is None and out_csv is None:
        raise ConfigError("Nothing says where results go.", "Give --out-column.")
    settings = with_database(settings, uri, data_path)
    for flag, given in (("--out-uri", bool(out_uri)), ("--visual", visual)):
        if given:
            note(f"{flag} changes nothing, as it did with Lantern.")
    failures = None
    if failed_rows_table and out_csv is None:
        failures = _failures(failed_rows_table, internal_schema)
    asked = Asked(
        Table(schema, table),
        column,
        Table(schema, out_table or table),
        out_column or "",
        key=tuple(part.strip() for part in pk.split(",") if part.strip()) if pk else (),
        filter=filter or "",
        replace=overwrite,
        make=create_column,
        type=column_type or "",
        usual=settings.vector_type,
        answers=job_type == COMPLETION,
        failures=failures,
        job=job_id,
    )
    spec = EmbeddingSpec(
        column,
        out_column or column,
        model,
        runtime or ("openai" if job_type == COMPLETION else settings.runtime),
        params=params_of(runtime_params),
        batch_rows=batch_size,
    )
    with Progress() as progress:
        done = one_off.run(
            settings,
            asked,
            spec,
            limit=limit,
            out_csv=out_csv,
            note=note,
            progress=lambda rows, total: progress.update(str(asked.source), rows, total),
        )
    raise typer.Exit(_tell(done, asked))


def _failures(name: str, schema: str) -> Any:
    from cdc.postgres.setup import parse_table
    from cdc.rows import Table

    return parse_table(name) if "." in name else Table(schema, name)


def _tell(done: Done, asked: Asked) -> int:
    """Say what was done; return the exit status."""
    outcome = done.outcome
    rate = f", {outcome.written / done.seconds:,.0f} rows/s" if outcome.written else ""
    tokens = f", {outcome.tokens:,} tokens" if outcome.tokens else ""
    print(f"{outcome.written:,} rows written to {done.place} ({done.type}) by {done.model}{rate}{tokens}.")
    if outcome.restless:
        note(f"{outcome.restless:,} rows changed again and again meanwhile and have no value: run it again.")
    if not outcome.refused:
        return 0
    reasons = [(reason, f"{rows:,}") for reason, rows in outcome.reasons.most_common(20)]
    console().print(table(["refused because", "rows"], reasons, ["rows"]))
    where = f"they are in {asked.failures}" if asked.failures else "--failed-rows-table keeps their keys"
    note(f"{outcome.refused:,} rows were refused; {where}.")
    return 1
