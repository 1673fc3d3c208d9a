"""What a search for HNSW parameters came to, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from cdc.jobs import AutotuneSpec
from cdc.ports.tuning import Trial
from inference.tuning import MOST_EF, Climbed

_CLEARLY = 1.1
"""Ratios of times below this may be chance, and are not told."""
_KINDS = {
    "held out": "rows that it does not hold",
    "carried over": "queries, carried over from a copy that was measured with rows it did not hold",
    "logged": "logged queries",
}


def sentence(
    spec: AutotuneSpec, best: Trial, *, reached: bool, compared: Sequence[Climbed], sampled: str, remark: str,
    reused: bool,
) -> str:  # fmt: skip
    """Return the sentence that explains ``best``.

    Args:
        spec: What was wanted.
        best: What was found.
        reached: Whether it is enough.
        compared: The graphs that were compared on hnswlib.
        sampled: Which rows were looked at, where not all.
        remark: Half a sentence more.
        reused: An earlier search for the same model had won with these parameters.
    """
    ef = "hnsw.ef_search" if best.backend == "pgvector" else "ef"
    graph = f"m {best.m} and ef_construction {best.ef_construction} with {ef} = {best.ef}"
    recall = f"recall@{spec.k} {best.recall:.4f}"
    if reached:
        parts = [f"{graph} reach {recall} (wanted: {spec.target_recall:g}) in {best.p50_ms:.2g} ms a search"]
    else:
        parts = [
            f"Recall@{spec.k} {spec.target_recall:g} was not reached; the best is {graph}: {recall} in "
            f"{best.p50_ms:.2g} ms a search"
        ]
    parts[0] += f", measured by {best.backend} on {best.rows:,} rows with {best.queries:,} {_KINDS[best.query_kind]}"
    if reused:
        parts.append("an earlier search for this model had chosen this graph")
    parts += [words for climbed in compared if (words := _against(climbed, compared, best))]
    if sampled:
        most = best.backend == "pgvector" and best.ef >= MOST_EF
        more = (
            f"ends at {MOST_EF}: the recall may not be reached on all of them"
            if most
            else "must be higher on all of them"
        )
        parts.append(f"the rows are {sampled}, and {ef} {more}")
    if remark:
        parts.append(remark)
    return "; ".join(parts) + "."


def comment(spec: AutotuneSpec, best: Trial) -> str:
    """Return the comment of the index: what to set before searching it."""
    return (
        f"walvec autotune: SET hnsw.ef_search = {best.ef}; recall@{spec.k} {best.recall:.4f} (wanted: "
        f"{spec.target_recall:g}) on {best.rows} rows, by {best.queries} queries"
    )


def _against(climbed: Climbed, compared: Sequence[Climbed], best: Trial) -> str:
    """Return why another graph was not taken, from what hnswlib showed."""
    own = next((c for c in compared if c.rung.m == best.m and c.rung.ef_construction == best.ef_construction), None)
    if own is None or climbed is own or not own.reached:
        return ""
    if not climbed.reached:
        return f"m {climbed.rung.m} does not reach it"
    ratio = climbed.latency_ms / own.latency_ms
    if climbed.rung < own.rung:
        if ratio < _CLEARLY:
            return f"m {climbed.rung.m} is a little slower"
        return f"m {climbed.rung.m} would be {ratio:.1f} times as slow"
    build = climbed.build_s / max(own.build_s, 1e-9)
    costs = f"takes {build:.1f} times as long to build" if build >= _CLEARLY else "is larger"
    return f"m {climbed.rung.m} {costs} and is " + ("hardly faster" if ratio < 1 / 1.02 else "no faster")
