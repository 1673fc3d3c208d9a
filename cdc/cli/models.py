"""Commands about models: write what a Triton server needs, what there is to choose from, and how fast it is here."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdc.cli.flags import with_settings
from cdc.cli.output import as_json, console, note, table
from cdc.config import Settings
from cdc.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    from inference.measure import Point

PANEL = "Models"
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    models = typer.Typer(help="Models: list them, measure one, export one for a Triton server.", no_args_is_help=True)
    models.command("list")(with_settings(list_models))
    models.command("measure")(with_settings(measure_model))
    models.command("export")(export)
    app.add_typer(models, name="model", rich_help_panel=PANEL)


def export(
    output: Annotated[Path, typer.Option(metavar="DIR", help="The model repository; made where it is missing.")],
    layout: Annotated[
        str,
        typer.Option(
            metavar="python|ensemble", help="One Python model for any Triton, or tokenizer and network apart, for GPUs."
        ),
    ] = "python",
    precision: Annotated[str, typer.Option(metavar="fp32|fp16", help="What the network computes in.")] = "fp32",
    device: Annotated[
        str | None,
        typer.Option(
            metavar="cpu|cuda|tensorrt",
            help="Where the network runs.",
            show_default="cpu; cuda for the ensemble",
        ),
    ] = None,
    name: Annotated[str, typer.Option(metavar="NAME", help="What clients call the model.")] = "all-minilm-l6-v2",
    instances: Annotated[
        int, typer.Option(metavar="N", help="Copies that compute at once.", show_default="2 on CPUs, 1 on GPUs")
    ] = 0,
    threads: Annotated[int, typer.Option(metavar="N", help="Threads of one copy on the CPU.")] = 1,
    tokenizers: Annotated[int, typer.Option(metavar="N", help="Tokenizer processes of the ensemble.")] = 2,
    max_batch_size: Annotated[int, typer.Option(metavar="ROWS", help="Most rows of a request or batch.")] = 256,
    queue_requests: Annotated[int, typer.Option(metavar="N", help="Most requests that wait in the server.")] = 256,
    queue_timeout_s: Annotated[float, typer.Option(metavar="S", help="How long a request may wait there.")] = 30.0,
    force: Annotated[bool, typer.Option("--force", help="Replace models of these names.")] = False,
) -> None:
    """Write a Triton model repository for all-MiniLM-L6-v2, and prove that its vectors are those of walvec in process.

    docs/triton.md explains each line of the configuration. Start the server with
    `tritonserver --model-repository=DIR`.
    """
    from inference import repository
    from inference.errors import ModelMisconfigured

    try:
        options = repository.Options(
            model=name,
            layout=repository.Layout(_one_of("--layout", layout, list(repository.Layout))),
            precision=repository.Precision(_one_of("--precision", precision, list(repository.Precision))),
            device=repository.Device(
                _one_of("--device", device or ("cpu" if layout == "python" else "cuda"), list(repository.Device))
            ),
            instances=instances,
            threads=threads,
            tokenizers=tokenizers,
            max_batch_size=max_batch_size,
            queue_requests=queue_requests,
            queue_timeout_s=queue_timeout_s,
        )
        names, agreement = asyncio.run(repository.export(output, options, replace=force))
    except ModelMisconfigured as exc:
        raise ConfigError(str(exc)) from exc
    print(f"{output}: {', '.join(names)}")
    print(f"Compared with walvec in process: {agreement}.")


def _one_of(flag: str, value: str, allowed: list[str]) -> str:
    if value not in allowed:
        raise ConfigError(f"{flag}: {value!r} is not allowed.", f"It takes {', '.join(allowed)}.")
    return value


def list_models(settings: Settings, json: Json = False) -> None:
    """Print models to choose from, the one that is set first, with what its runtime says of it."""
    from cdc.app import make_runtime
    from inference import catalogue

    try:
        chosen, state = asyncio.run(catalogue.describe(make_runtime(settings)))
    except ConfigError as exc:
        chosen, state = catalogue.named(settings.runtime, settings.model), str(exc)
    known = catalogue.entries(Path(settings.models_dir) if settings.models_dir else None)
    entries = [chosen, *(entry for entry in known if not entry.is_like(chosen))]
    if json:
        first = {"configured": True, "state": state}
        as_json([{**entry.to_json(), **(first if entry is chosen else {"configured": False})} for entry in entries])
        return
    columns = ["", "runtime", "model", "dimensions", "tokens", "licence", "weights"]
    rows = [
        [
            "→" if entry is chosen else "",
            entry.runtime,
            entry.model,
            entry.dimensions,
            entry.tokens,
            entry.licence,
            entry.weights,
        ]
        for entry in entries
    ]
    console().print(table(columns, rows, ["dimensions", "tokens"]))
    print(f"→ is the model that is set: {state}")
    before, ahead = _quoted(chosen.query_prefix), _quoted(chosen.document_prefix)
    print(f"Before its questions: {before}; before its documents: {ahead}.")
    print("Any model of a server can be used, whether it is named here or not.")


def _quoted(prefix: str) -> str:
    return repr(prefix) if prefix else "nothing"


def measure_model(
    settings: Settings,
    texts: Annotated[int, typer.Option("--texts", metavar="N", min=1, help="Most texts of one round.")] = 10_000,
    seconds: Annotated[
        float,
        typer.Option("--seconds", metavar="S", min=0.01, help="Seconds of one round; there are six for each size."),
    ] = 0.5,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.svg", help="Draw it into a file, too.")] = None,
    json: Json = False,
) -> None:
    """Measure texts and tokens a second, short texts and long, against a bare loop over the same runtime."""
    from cdc.app import make_runtime
    from inference.errors import EmbedError
    from inference.measure import Effort, run
    from inference.plot import draw

    if plot is not None and not plot.absolute().parent.is_dir():
        raise ConfigError(f"{plot} cannot be written: there is no such folder.")
    effort = Effort(
        texts=texts,
        seconds=seconds,
        inflight=settings.inflight,
        max_rows=settings.batch_rows,
        max_tokens=settings.batch_tokens,
    )
    try:
        points = asyncio.run(run(make_runtime(settings), effort, _tell))
    except EmbedError as exc:
        raise Unavailable(f"The model does not answer: {exc}") from exc
    if plot is not None:
        plot.write_text(draw(points, f"{settings.model} on {settings.runtime}"), "utf-8")
        note(f"{plot} is drawn.")
    if json:
        as_json([point.to_json() for point in points])
    else:
        _show(points)


def _tell(point: Point) -> None:
    note(f"{point.length} texts, {point.rows} in a request: {point.texts_per_s:,.1f} texts/s")


def _show(points: list[Point]) -> None:
    columns = ["texts", "tokens each", "rows a request", "texts/s", "tokens/s", "ms a request", "bare loop", "share"]
    rows = [
        [
            point.length,
            f"{point.tokens:.0f}",
            point.rows,
            f"{point.texts_per_s:,.1f}",
            f"{point.tokens_per_s:,.0f}",
            f"{point.request_ms:,.1f}",
            None if point.bare_texts_per_s is None else f"{point.bare_texts_per_s:,.1f}",
            None if point.share is None else f"{point.share:.0%}",
        ]
        for point in points
    ]
    console().print(table(columns, rows, columns[1:]))
    if any(point.share is not None for point in points):
        print(
            "bare loop: texts/s of ready-made requests, replies not looked at. share: of its best rate at that length."
        )
    else:
        print("This runtime has no bare loop to compare with.")
