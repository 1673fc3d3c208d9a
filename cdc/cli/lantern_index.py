"""Lantern's commands about HNSW indexes: build one, or find the parameters for one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cdc.cli.consumer import Progress
from cdc.cli.flags import with_settings
from cdc.cli.lantern_flags import with_database
from cdc.cli.output import console, note, size, table
from cdc.config import Settings
from cdc.errors import ConfigError, WalvecError

if TYPE_CHECKING:
    from cdc.ports.tuning import AutotuneResult, Trial

METRICS: Final = {"l2sq": "l2sq", "cos": "cosine", "hamming": "hamming"}
SPACES: Final = {"l2sq": "l2", "cosine": "cosine", "hamming": "l2"}
MetricKind = Annotated[str, typer.Option(metavar="|".join(METRICS), help="The distance.")]
Uri = Annotated[str | None, typer.Option("--uri", "-u", help="The database.", show_default="WALVEC_DATABASE_URL")]
Schema = Annotated[str, typer.Option("--schema", "-s", help="The schema of the table.")]
TableName = Annotated[str, typer.Option("--table", "-t", help="The table.")]
ColumnName = Annotated[str, typer.Option("--column", "-c", help="The vector column.")]


def register(app: typer.Typer, panel: str) -> None:
    """Add the commands."""
    app.command("autotune-index", rich_help_panel=panel)(with_settings(autotune_index))
    app.command("create-index", rich_help_panel=panel)(with_settings(create_index))


def _metric(kind: str) -> str:
    if kind not in METRICS:
        raise ConfigError(f"--metric-kind is {kind!r}.", f"Use {', '.join(METRICS)}.")
    return METRICS[kind]


def autotune_index(
    settings: Settings,
    table_name: Annotated[str, typer.Option("--table", "-t", help="The table.")],
    column: ColumnName,
    uri: Uri = None,
    schema: Schema = "public",
    recall: Annotated[float, typer.Option(help="The recall to reach, in per cent; up to 1: a share.")] = 99.9,
    k: Annotated[int, typer.Option("--k", help="Nearest rows of a search.")] = 10,
    test_data_size: Annotated[int, typer.Option(min=0, help="Rows to look at, at random; 0: all.")] = 10_000,
    metric_kind: MetricKind = "l2sq",
    create: Annotated[
        bool, typer.Option("--create-index", help="Leave the winner's index, built by pgvector.")
    ] = False,
    job_id: Annotated[int, typer.Option(help="What exported trials have as experiment_id.")] = 0,
    export_db_uri: Annotated[str | None, typer.Option(help="Where to export to.", show_default="the database")] = None,
    export_schema_name: Annotated[str, typer.Option(help="The schema of that table.")] = "public",
    export_table_name: Annotated[
        str | None, typer.Option(help="Export every trial into this table; made if it is missing.")
    ] = None,
    export: Annotated[
        bool, typer.Option("--export", help="Export into autotune_results, if no table is named.")
    ] = False,
    model_name: Annotated[
        str | None, typer.Option(help="Begin with what won for this model, according to the table of exports.")
    ] = None,
    job_schema_name: Annotated[
        str, typer.Option(help="Accepted, and not used: trials say what they are of.")
    ] = "public",
    job_table_name: Annotated[str | None, typer.Option(help="Accepted, and not used.")] = None,
    pk: Annotated[str | None, typer.Option(help="Accepted, and not used: no key is needed.")] = None,
) -> None:
    """Find the cheapest HNSW parameters that reach a recall; print every trial, and why the winner won.

    Recall is measured with rows that the index does not hold, and where pgvector is, by pgvector. The same as a job of
    `walvec start-daemon`, once. Exit status: 0 reached, 1 not reached (the best is printed), 2 it cannot be done.
    """
    from cdc.autotune import autotune
    from cdc.jobs import AutotuneSpec, recall_share
    from cdc.postgres.trial_table import TrialTable
    from cdc.rows import Table
    from cdc.services.autotune import earlier_of, row_of

    settings = with_database(settings, uri)
    spec = AutotuneSpec(column, _metric(metric_kind), recall_share(recall), k, create, model_name or "", test_data_size)
    exported = None
    if export_table_name or export:
        where = replace(settings, database_url=export_db_uri) if export_db_uri else settings
        exported = TrialTable(where, Table(export_schema_name, export_table_name or "autotune_results"))
        try:
            exported.make()
        except WalvecError as exc:
            if export_db_uri:
                exc.remedy = exc.remedy.replace("WALVEC_DATABASE_URL", "--export-db-uri")
            raise
    elif model_name:
        note("--model-name is not used: earlier trials are looked for in the table of --export-table-name.")
    known = exported.earlier(model_name) if exported is not None and model_name else []
    with Progress() as progress:
        result = asyncio.run(
            autotune(
                settings.database_url,
                Table(schema, table_name),
                spec,
                schema=settings.schema,
                threads=settings.index_threads,
                earlier=[found for row in known if (found := earlier_of(row)) is not None],
                say=_Bar(lambda percent: progress.update("autotune", percent, 100)),
            )
        )
    _show(result)
    if exported is not None:
        rows = [row_of(trial, spec, result.dimension) for trial in result.trials]
        rows.append(row_of(result.best, spec, result.dimension, best=True, summary=result.summary))
        exported.add([{"experiment_id": job_id, **row} for row in rows])
    raise typer.Exit(0 if result.reached else 1)


class _Bar:
    """Implements :class:`cdc.ports.tuning.Say` with a progress bar."""

    def __init__(self, show: Callable[[int], None]) -> None:
        self._show = show

    def progress(self, percent: int) -> None:
        self._show(percent)

    def trial(self, trial: Trial, dimension: int) -> None:
        """Every trial is in the result."""


def _show(result: AutotuneResult) -> None:
    columns = ["measured by", "m", "ef_construction", "ef", "recall %", "p50 ms", "p99 ms", "build s", "size"]
    rows = [
        [
            trial.backend,
            trial.m,
            trial.ef_construction,
            trial.ef,
            f"{100 * trial.recall:.2f}",
            f"{trial.p50_ms:.3f}",
            f"{trial.p99_ms:.3f}",
            None if trial.build_s is None else f"{trial.build_s:.2f}",
            size(trial.size_bytes),
        ]
        for trial in result.trials
    ]
    console().print(table(columns, rows, columns[1:]))
    print(result.summary)
    if result.index is not None:
        print(f"The index is {result.index}: SET hnsw.ef_search = {result.best.ef};")


def create_index(
    settings: Settings,
    table_name: TableName,
    column: ColumnName,
    uri: Uri = None,
    schema: Schema = "public",
    m: Annotated[int, typer.Option("-m", help="Neighbours of a vector in the graph.")] = 16,
    efc: Annotated[int, typer.Option("--efc", help="Candidates while it is built.")] = 128,
    ef: Annotated[int, typer.Option("--ef", help="Candidates of a search.")] = 64,
    dimension: Annotated[
        int, typer.Option("--dimension", "--dims", "-d", min=0, help="Refuse other vectors; 0: take what there is.")
    ] = 0,
    metric_kind: MetricKind = "l2sq",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file to write.", show_default="index.hnsw")
    ] = None,
    import_: Annotated[
        bool, typer.Option("--import", "-i", help="Build pgvector's index in the database; no file without --out.")
    ] = False,
    remote_database: Annotated[
        bool, typer.Option(help="Accepted, and not used: nothing is copied to the server.")
    ] = True,
    index_name: Annotated[
        str | None, typer.Option(help="The name of the index in the database.", show_default="<table>_<column>_hnsw")
    ] = None,
    pq: Annotated[bool, typer.Option("--pq", help="Not provided.", hidden=True)] = False,
    remote: Annotated[str | None, typer.Argument(metavar="true|false", hidden=True)] = None,  # --remote-database true
) -> None:
    """Build an HNSW index of a column once, outside the database, without locking its table.

    The file is hnswlib's, beside it `<file>.keys.csv` says which row each label is. For an index that follows its table
    and can be searched over HTTP, use an external index job of `walvec start-daemon`.
    """
    from cdc import index_once
    from cdc.cli.lantern import INSTEAD
    from cdc.jobs import IndexSpec
    from cdc.rows import Table

    if remote not in (None, "true", "false"):
        raise ConfigError(f"{remote!r} is no flag.", "`walvec create-index --help` lists them.")
    if pq:
        raise ConfigError(*INSTEAD["pq-table"])
    settings = with_database(settings, uri)
    source = Table(schema, table_name)
    spec = IndexSpec(column, _metric(metric_kind), m, efc, ef, index_name or f"{table_name}_{column}_hnsw"[:63])
    with Progress() as progress:
        if out is not None or not import_:
            out = out or Path("index.hnsw")
            made = index_once.build_file(
                settings, source, spec, out, dimension, lambda done, rows: progress.update(str(source), done, rows)
            )
            print(
                f"{out}: {made.rows:,} vectors of {made.dimension} dimensions, {size(made.bytes)}, in "
                f"{made.seconds:.1f} s; open it with hnswlib.Index({SPACES[spec.metric]!r}, {made.dimension}), and "
                f"search with ef {ef}. "
                f"{made.keys} has the keys."
            )
            if made.skipped:
                note(f"{made.skipped:,} rows were left out: their vectors have other dimensions, or no direction.")
        if import_:
            said = asyncio.run(
                index_once.build_in_database(
                    settings, source, spec, lambda percent: progress.update(spec.name, percent, 100)
                )
            )
            print(said)
