"""The command line: parse, call, print.

A refusal is one line on standard error and an exit status, never a traceback. Heavy modules are imported by the command
that needs them, so that ``walvec --help`` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

import typer

from cdc.cli import consumer, daemon, lantern, models, pipelines, setup
from cdc.cli.output import note
from cdc.errors import WalvecError

_terminated = False
INTERRUPTED = 128 + signal.SIGINT
REFUSED = 2
"""Exit status of a refusal that names no other: 1 is kept for answers, such as `verify` finding a difference."""

app = typer.Typer(
    name="walvec",
    help="Embeddings that follow PostgreSQL rows through the write-ahead log.",
    epilog="Start with `walvec doctor`, then `walvec run`. `walvec COMMAND --help` lists the flags of a command.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
for part in (consumer, daemon, setup, pipelines, models, lantern):
    part.register(app)


def main() -> None:
    """Run the command that was typed, and exit."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)  # `run` and `start-daemon` have their own way
    status = _status()
    sys.exit(128 + signal.SIGTERM if _terminated and status == INTERRUPTED else status)


def _end(number: int, frame: FrameType | None) -> None:
    """End a command as Ctrl-C does, so that it clears away what it has made on the way."""
    global _terminated
    _terminated = True
    interrupt = signal.getsignal(signal.SIGINT)
    if not callable(interrupt):  # a shell that starts a command in the background has it ignore Ctrl-C
        raise KeyboardInterrupt
    interrupt(signal.SIGINT, frame)


def _status() -> int:
    try:
        app()
    except SystemExit as exc:  # click's own way to end, with a command's status
        return exc.code if isinstance(exc.code, int) else REFUSED if exc.code else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`walvec status | head`). Nothing more can be written, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except WalvecError as exc:
        return _refuse(exc)
    except Exception as exc:
        if not type(exc).__module__.startswith("psycopg"):
            raise
        from cdc.postgres.connect import classify

        return _refuse(classify(exc))
    return 0


def _refuse(exc: WalvecError) -> int:
    note(str(exc))
    return exc.exit_code if exc.exit_code != 1 else REFUSED
