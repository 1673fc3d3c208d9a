"""Lantern's commands about models: what there is to compute with, and how fast it is."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdc.cli.flags import with_settings
from cdc.cli.lantern_flags import COMPLETION, JOB_TYPES, check_job_type, params_of, with_database
from cdc.cli.output import as_json, console, note, table
from cdc.config import Settings
from cdc.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    from inference.measure import Point

RUNTIMES = {
    "ort": "ONNX Runtime, in this process",
    "triton": "NVIDIA Triton, or another server of the KServe v2 protocol",
    "openai": "any server with the API of OpenAI: OpenAI, Azure, TEI, vLLM, Ollama",
    "cohere": "Cohere",
    "hash": "no model: vectors made of hashes, for tests",
}
COMPLETIONS = ("gpt-4", "gpt-4o", "gpt-4o-mini", "gpt-4-turbo")
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Params = Annotated[str, typer.Option(metavar="JSON", help="The runtime's parameters.")]
Runtime = Annotated[str | None, typer.Option(help="`walvec show-runtimes` lists them.", show_default="WALVEC_RUNTIME")]


def register(app: typer.Typer, panel: str) -> None:
    """Add the commands."""
    app.command("show-runtimes", rich_help_panel=panel)(show_runtimes)
    app.command("show-models", rich_help_panel=panel)(with_settings(show_models))
    app.command("measure-model-speed", rich_help_panel=panel)(with_settings(measure_model_speed))


def show_runtimes(json: Json = False) -> None:
    """Print what can compute embeddings, and the parameters that each takes in --runtime-params."""
    from inference.lantern import PARAMETERS

    rows = [(name, what, ", ".join(sorted(PARAMETERS[name]))) for name, what in RUNTIMES.items()]
    if json:
        as_json([{"runtime": name, "is": what, "parameters": takes.split(", ")} for name, what, takes in rows])
    else:
        console().print(table(["runtime", "is", "runtime parameters"], rows))


def show_models(
    settings: Settings,
    runtime: Runtime = None,
    runtime_params: Params = "{}",
    job_type: Annotated[str, typer.Option(metavar="|".join(JOB_TYPES), help="What they are to make.")] = JOB_TYPES[0],
    data_path: Annotated[
        str | None, typer.Option("--data-path", "-d", help="Folder of further models (WALVEC_MODELS_DIR).")
    ] = None,
    json: Json = False,
) -> None:
    """Print the models of a runtime. `walvec model list` prints those of all, and whether yours answers."""
    from inference import catalogue, onnx_models
    from inference.lantern import STAND_INS

    check_job_type(job_type)
    params = _params(runtime or settings.runtime, runtime_params)
    settings = _chosen(settings, runtime, None, params, data_path)
    rows: list[dict[str, Any]]
    lines: list[str]
    if job_type == COMPLETION:
        rows = [{"model": name} for name in COMPLETIONS]
        lines = [*COMPLETIONS, "… and any model of a server with that API: --runtime-params '{\"base_url\": …}'"]
    elif settings.runtime == "ort":
        from pathlib import Path

        there = onnx_models.available(Path(settings.models_dir) if settings.models_dir else None, 1000)
        missing = [name for name in STAND_INS if name not in {found.rpartition("/")[2].lower() for found in there}]
        rows = [{"model": name, "type": "textual", "downloaded": True} for name in there]
        lines = [f"{name} - type: textual, downloaded: true" for name in there]
        if settings.model_stand_in == "on":
            lines += [f"{name} - type: textual, downloaded: false; {STAND_INS[name]} stands in" for name in missing]
            rows += [
                {"model": name, "type": "textual", "downloaded": False, "stand_in": STAND_INS[name]} for name in missing
            ]
    else:
        found = [entry for entry in catalogue.entries() if entry.runtime == settings.runtime]
        rows = [entry.to_json() for entry in found]
        lines = [f"{e.model} - sequence_len: {e.tokens or '?'}, dimensions: {e.dimensions or '?'}" for e in found]
        lines.append("… and any other model of the server.")
    if json:
        as_json(rows)
    else:
        print("\n".join(lines))


def measure_model_speed(
    settings: Settings,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The model.", show_default="all that can run in this process")
    ] = None,
    uri: Annotated[
        str | None, typer.Option("--uri", "-u", help="Accepted, and not used: no database is needed.")
    ] = None,
    initial_limit: Annotated[int, typer.Option("--initial-limit", "-i", min=1, help="Most texts of one round.")] = 500,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", "-b", min=1, help="Most texts of a request.", show_default="256")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=3, help="Tokens of a long text.")] = 1000,
    runtime: Runtime = None,
    runtime_params: Params = "{}",
    data_path: Annotated[str | None, typer.Option(help="Folder of further models (WALVEC_MODELS_DIR).")] = None,
    json: Json = False,
) -> None:
    """Measure embeddings a second, of short texts and of long ones. `walvec model measure` tells much more.

    Lantern measured with tables of its own in your database; here the texts come from this process.
    """
    from pathlib import Path

    from inference import onnx_models

    if uri:
        note("--uri is not used: measuring needs no database.")
    params = _params(runtime or settings.runtime, runtime_params)
    settings = _chosen(settings, runtime, model, params, data_path)
    settings = replace(settings, batch_rows=batch_size or settings.batch_rows)
    if model is None and settings.runtime != "ort":
        raise ConfigError(f"Which model of the {settings.runtime} runtime is to be measured?", "Name it with --model.")
    folder = Path(settings.models_dir) if settings.models_dir else None
    names = [model] if model else onnx_models.available(folder)
    rows = [_measured(replace(settings, model=name), initial_limit, max_tokens) for name in names]
    if json:
        as_json(rows)
    else:
        columns = list(rows[0])
        cells = [[f"{cell:,.1f}" if isinstance(cell, float) else cell for cell in row.values()] for row in rows]
        console().print(table(columns, cells, columns[1:]))


def _measured(settings: Settings, texts: int, max_tokens: int) -> dict[str, Any]:
    """Return a model's rates: embeddings a second of short texts (max), of long ones (min), and between them."""
    from cdc.app import make_runtime
    from inference.errors import EmbedError
    from inference.measure import Effort, run

    effort = Effort(
        texts=texts,
        inflight=settings.inflight,
        max_rows=settings.batch_rows,
        max_tokens=settings.batch_tokens,
        long_tokens=max_tokens,
    )
    try:
        points = asyncio.run(run(make_runtime(settings), effort))
    except EmbedError as exc:
        raise Unavailable(f"The model does not answer: {exc}") from exc
    short, long = _best(points, "short"), _best(points, "long")
    return {
        "model": settings.model,
        "max emb/s": short.texts_per_s,
        "min emb/s": long.texts_per_s,
        "avg emb/s": (short.texts_per_s + long.texts_per_s) / 2,
        "tokens of the long texts": round(long.tokens),
    }


def _best(points: list[Point], length: str) -> Point:
    return max((point for point in points if point.length == length), key=lambda point: point.texts_per_s)


def _params(runtime: str, text: str) -> dict[str, Any]:
    """Return the runtime's parameters, checked, their secrets resolved.

    Raises:
        ConfigError: there is no such runtime or parameter.
    """
    from cdc.job_secrets import resolve
    from cdc.job_wishes import SECRETS
    from inference.errors import ModelMisconfigured
    from inference.lantern import read_parameters

    try:
        params = read_parameters(runtime, params_of(text))
    except ModelMisconfigured as exc:
        raise ConfigError(str(exc)) from exc
    for name in SECRETS:
        if name in params:
            params[name] = resolve(params[name], os.environ, None, name)
    return params


def _chosen(
    settings: Settings, runtime: str | None, model: str | None, params: dict[str, Any], data_path: str | None
) -> Settings:
    """Return the settings with what the flags say of the model."""
    runtime = runtime or settings.runtime
    fields = {
        "url": "triton_url",
        "data_path": "models_dir",
        "base_url": f"{runtime}_url",
        "api_token": f"{runtime}_key",
        "token": "triton_token",
        "dimensions": "dimensions",
        "input_type": "input_type",
        "pooling": "pooling",
        "tokenizer": "tokenizer",
        "output": "model_output",
        "query_prefix": "query_prefix",
        "document_prefix": "document_prefix",
        "max_tokens": "max_tokens",
    }
    said: dict[str, Any] = {fields[name]: value for name, value in params.items() if name in fields}
    if "normalize" in params:
        said["normalize"] = "on" if params["normalize"] else "off"
    if params.get("azure_entra_token"):
        said["openai_key"] = f"Bearer {params['azure_entra_token'].removeprefix('Bearer ')}"
    settings = with_database(settings, None, data_path)
    return replace(settings, runtime=runtime, model=model or settings.model, **said)
