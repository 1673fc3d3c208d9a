"""Commands about models: write what a Triton server needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cdc.errors import ConfigError

PANEL = "Models"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    models = typer.Typer(help="Models: export one for a Triton server.", no_args_is_help=True)
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
    import asyncio

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
