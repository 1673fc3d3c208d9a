"""``walvec demo``: all of it on one screen, with a PostgreSQL, real text and a real model, and no preparation.

What is shown is the program itself: the consumer is ``walvec run`` in a process of its own, searches go through its
HTTP interface, and times are taken by a second session that looks at the table of embeddings. What the demo claims, it
checks; a claim that fails ends it with exit status 1.
"""

from __future__ import annotations

import signal

from cdc.demo import acts, closing
from cdc.demo.screen import Screen
from cdc.demo.stage import Disappointed, Stage

INTERRUPTED = 130


def main(keep: bool, *, runtime: str = "ort", screen: Screen | None = None) -> int:
    """Show everything; return the exit status.

    Args:
        keep: Leave it running afterwards, until Ctrl-C or SIGTERM.
        runtime: Where the model runs: ``ort`` is the real one.
        screen: Where it is shown; by default the terminal.

    Raises:
        cdc.errors.WalvecError: this machine lacks something, PostgreSQL for one; the sentence says what.
    """
    screen = screen or Screen()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: everything is removed first
    try:
        _show(screen, keep, runtime)
    except KeyboardInterrupt:
        screen.say("Stopped; everything that the demo made is gone.")
        return 0 if screen.finished else INTERRUPTED
    except Disappointed as exc:
        screen.say(f"The demo failed: {exc}")
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _show(screen: Screen, keep: bool, runtime: str) -> None:
    screen.title("walvec: embeddings that follow PostgreSQL rows through the write-ahead log")
    with Stage.open(screen, runtime) as stage:
        corpus = acts.load(screen, stage)
        acts.backfill(screen, stage)
        acts.follow(screen, stage, acts.STORY)
        acts.measure(screen, stage, corpus)
        acts.leave_alone(screen, stage)
        acts.ask(screen, stage, acts.QUESTIONS)
        acts.agree(screen, stage)
        closing.own_database(screen)
        screen.finished = True
        if keep:
            closing.stay(screen, stage)
    if not keep:
        screen.say("", "Everything that the demo made is gone again. `make demo KEEP=1` leaves it running.")
