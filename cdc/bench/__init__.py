"""``walvec bench``: the speed and memory of this machine, with ratios measured in one run.

A missed target is said in the table and fails nothing, for speed depends on the machine; a wrong result ends with exit
status 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from cdc.bench import decode, drain, endtoend, latency, machine, memory
from cdc.bench.figures import Figure, WrongResult, render
from cdc.bench.scene import server
from cdc.testing.cluster import Cluster

Benchmark = Callable[[Cluster, int | None, int], list[Figure]]
"""(server, rows or the benchmark's own number, runs) → figures."""

_BENCHMARKS: Final[dict[str, tuple[Benchmark, int, str]]] = {
    "decode": (lambda _, rows, repeat: decode.run(rows, repeat), 5, "rows decoded from memory per second of one core"),
    "drain": (drain.run, 3, "a backlog of a million rows read from a slot, beside pg_recvlogical"),
    "backfill": (endtoend.backfill, 3, "100,000 rows that were there before the consumer, embedded by hash"),
    "stream": (endtoend.stream, 3, "100,000 rows that come through the stream, embedded by hash"),
    "latency": (latency.run, 3, "from commit to visible embedding, at 200 rows/s"),
    "memory": (memory.run, 1, "peak memory with one transaction of a million rows"),
}
"""Name → (what runs, how often by default, what it measures)."""


def main(args: Sequence[str]) -> int:
    """Run the benchmarks that ``args`` name and print their figures; return the exit status: 1 for a wrong result."""
    chosen = _parser().parse_args(args)
    names = list(_BENCHMARKS) if chosen.which == "all" else [chosen.which]
    figures: list[Figure] = []
    wrong = 0
    before = machine.load()
    with server(chosen.pg) as cluster:
        version = _version(cluster)
        if not chosen.json:
            print(f"{machine.describe(version)}; load average {before}", flush=True)
        for name, outcome in _outcomes(names, cluster, chosen.rows, chosen.repeat):
            if isinstance(outcome, WrongResult):
                wrong += 1
                print(f"walvec: {name}: wrong result: {outcome}", file=sys.stderr, flush=True)
                continue
            figures += outcome
            if not chosen.json:
                print(f"  {name}: done (load average {machine.load()})", file=sys.stderr, flush=True)
    if chosen.json:
        about = {"machine": machine.describe(version), "load": [before, machine.load()]}
        print(json.dumps({**about, "figures": [figure.to_json() for figure in figures]}, indent=2))
    elif figures:
        print(render(figures))
    return 1 if wrong else 0


def _outcomes(
    names: Sequence[str], cluster: Cluster, rows: int | None, repeat: int | None
) -> Iterator[tuple[str, list[Figure] | WrongResult]]:
    for name in names:
        benchmark, runs, _ = _BENCHMARKS[name]
        try:
            yield name, benchmark(cluster, rows, repeat or runs)
        except WrongResult as exc:
            yield name, exc


def _version(cluster: Cluster) -> str:
    with cluster.create_database("bench_version").connect() as connection:
        row = connection.execute("SHOW server_version").fetchone()
    return str(row[0]).split()[0] if row else cluster.major


def _parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:9} {what}" for name, (_, _, what) in _BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="walvec bench",
        description="Measure this machine: medians, with the slowest and the fastest run, and whether targets are met.",
        epilog=f"benchmarks:\n{lines}\n\nA missed target is not a failure; a wrong result is (exit status 1).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("which", nargs="?", default="all", choices=["all", *_BENCHMARKS], help="default: all")
    parser.add_argument("--rows", type=_positive, metavar="N", help="rows, in place of each benchmark's own number")
    parser.add_argument("--repeat", type=_positive, metavar="N", help="runs, in place of each benchmark's own number")
    parser.add_argument("--pg", default="18", choices=["15", "18"], help="PostgreSQL's major version (default: 18)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value
