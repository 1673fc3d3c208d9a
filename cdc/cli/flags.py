"""Every setting as a flag of the commands that use settings, made from the one table in ``cdc.config``."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from cdc import config

P = ParamSpec("P")


def with_settings(command: Callable[Concatenate[config.Settings, P], None]) -> Callable[..., None]:
    """Return ``command`` with its first parameter, the settings, replaced by one option per setting.

    A setting whose name the command itself uses as an option (``drop --slot``) comes from the environment alone.
    """
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    flags = [flag for flag in _flags() if flag.name not in {parameter.name for parameter in own}]

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        typed: dict[str, Any] = {flag.name: kwargs.pop(flag.name, None) for flag in flags}
        command(config.load(os.environ, typed), *args, **kwargs)

    # typer reads the signature, and through the annotations what each option is.
    signature = inspect.Signature([*own, *flags])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in signature.parameters.values()}
    return run


def _flags() -> Iterator[inspect.Parameter]:
    for setting in config.table():
        default = setting.shown.replace("`", "") or setting.default
        note = f"[{setting.env}; default: {default}]" if default != "–" else f"[{setting.env}]"
        yield _flag(setting.field, setting.flag, f"{setting.help} {note}", setting.group)
        if setting.secret:
            name, help = f"{setting.field}_file", f"A file that holds it. [{setting.env}_FILE]"
            yield _flag(name, f"{setting.flag}-file", help, setting.group)


def _flag(name: str, flag: str, help: str, group: str) -> inspect.Parameter:
    option = typer.Option(flag, help=help, rich_help_panel=group, show_default=False, metavar="VALUE")
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )
