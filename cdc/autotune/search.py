"""One search for HNSW parameters, from the sample to the index. Blocking.

A random sample of the column (all of it where it fits), queries that no index under test holds, their exact neighbours,
a short ladder of graphs on hnswlib, one build by pgvector, and the least ``hnsw.ef_search`` that reaches the recall as
pgvector itself answers. Where the index is to stay it is built on the table, else on a scratch copy.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, cast

import numpy as np

from cdc.autotune.existing import check_indexes, fits
from cdc.autotune.ground import Ground, Sampler, Stop
from cdc.autotune.words import comment, sentence
from cdc.errors import PipelineFault
from cdc.jobs import AutotuneSpec
from cdc.ports.tuning import AutotuneResult, Earlier, Say, Trial
from cdc.postgres.trials import Target, Trials
from cdc.postgres.tuning import Place, Subject, TuningSession
from cdc.postgres.tuning_indexes import Claim, finish, index_name
from cdc.rows import Table
from inference import queries as asking
from inference.proxy import Measured, Proxy, climb, quicker_threads
from inference.recall import Metric, Truth, Vectors
from inference.tuning import MOST_EF, PGVECTOR_SHARE, Climbed, EfSearch, Ladder, Rung

PROXY_ROWS: Final = 20_000
"""Rows on which the graphs of a ladder are compared: their order hardly depends on the number of rows, ``ef`` does."""
PROXY_BYTES: Final = 128 << 20
"""Of such rows, at most."""
PROXY_QUERIES: Final = 500
GROWTH: Final = 0.27
"""``ef`` for a recall grew with about this power of the rows (30, 38, 42, 50, 67 at 3, 6, 12, 25, 50 thousand); used
only to guess where to begin."""
_ENOUGH: Final = 0.001


class Search:
    """One search. See :class:`cdc.autotune.HnswTuner` for the arguments."""

    def __init__(
        self, place: Place, schema: str, table: Table, spec: AutotuneSpec, owner: str, earlier: Sequence[Earlier],
        say: Say, stop: Stop, threads: int, row_bytes: int,
    ) -> None:  # fmt: skip
        self._place, self._schema, self._table, self._owner = place, schema, table, owner
        self._spec, self._metric = spec, cast(Metric, spec.metric)
        self._say, self._stop, self._check = say, stop, stop.check
        self._threads, self._row_bytes = threads, row_bytes
        self._known = earlier
        self._heard: list[Trial] = []
        self._compared: list[Climbed] = []
        self._stage = (40, 97)  # per cent of the whole that building and measuring in the database takes

    def run(self) -> AutotuneResult:
        """Search.

        Raises:
            Stopped: it was told to stop.
            WalvecError: it cannot be done.
        """
        self._say.progress(1)
        seed = int.from_bytes(hashlib.sha256(self._owner.encode()).digest()[:8], "big")
        with TuningSession(self._place, self._schema, self._owner) as session:
            self._stop.connection = session.connection
            try:
                self._session = session
                session.remove_leftovers()
                self._sampler = Sampler(session, self._table, self._spec, self._row_bytes, seed, self._say, self._stop)
                return self._search()
            finally:
                self._stop.connection = None

    def _search(self) -> AutotuneResult:
        spec, session = self._spec, self._session
        subject = session.subject(self._table, spec.column)
        if spec.create_index:
            check_indexes(subject, session.indexes(subject), spec.metric)
        if not session.unindexable(subject, spec.metric, max(subject.width, 1)):
            session.require_scratch()
        rows = self._sampler.load(subject)
        obstacle = session.unindexable(subject, spec.metric, self._sampler.dimension)
        if spec.create_index and obstacle:
            raise PipelineFault(f"No index of column {spec.column} of {self._table} can be made: {obstacle}.")
        ground = self._sampler.ground(rows, self._sampler.logged())
        if obstacle:
            return self._on_hnswlib(ground, obstacle)
        trials = Trials(session, subject, spec.metric, self._sampler.dimension)
        if spec.create_index:
            return self._on_table(trials, subject, rows, ground)
        del rows
        return self._on_scratch(trials, ground)

    # --- graphs -----------------------------------------------------------------------------------------------------

    def _climb(self, ground: Ground, earlier: Earlier | None) -> tuple[Climbed, Proxy, Ground]:
        """Compare graphs on a part of ``ground``; return the cheapest, its graph, and that part."""
        small = self._sampler.part(ground, min(PROXY_ROWS, PROXY_BYTES // (4 * self._sampler.dimension)), PROXY_QUERIES)
        self._threads = self._threads or quicker_threads(self._sampler.dimension)
        target = self._spec.target_recall
        ladder = Ladder(target, rungs=[Rung(earlier.m, earlier.ef_construction)]) if earlier else Ladder(target)
        rungs: set[Rung] = set()

        def heard(proxy: Proxy, measured: Measured) -> None:
            rungs.add(proxy.rung)
            self._say.progress(min(40, 10 + 10 * len(rungs)))
            self._hear_proxy(proxy, measured, small)

        climbed, proxy = climb(
            small.rows, small.queries, small.truth, self._metric, ladder, target,
            threads=self._threads, heard=heard, check=self._check,
        )  # fmt: skip
        self._compared = ladder.climbed
        return climbed, proxy, small

    def _earlier(self, rows: int) -> Earlier | None:
        """Return the newest earlier winner that holds for this search too."""
        spec, dimension = self._spec, self._sampler.dimension
        return next(
            (
                e
                for e in self._known
                if (e.metric, e.dimension) == (spec.metric, dimension)
                and e.k >= spec.k
                and e.rows >= 0.9 * rows
                and e.recall >= spec.target_recall
            ),
            None,
        )

    # --- where it is measured ---------------------------------------------------------------------------------------

    def _on_hnswlib(self, ground: Ground, obstacle: str) -> AutotuneResult:
        """Without pgvector: the graphs are hnswlib's, and so is the answer."""
        earlier = self._earlier(len(ground.rows))
        climbed, proxy, small = self._climb(ground, earlier)
        if len(small.queries) < len(ground.queries) or len(small.rows) < len(ground.rows):
            start = int(climbed.ef * math.pow(len(ground.rows) / len(small.rows), GROWTH))
            full = proxy
            if proxy.rows < len(ground.rows):
                full = Proxy(ground.rows, self._metric, climbed.rung, self._threads, self._check)
            self._say.progress(60)
            climbed = full.least(
                ground.queries, ground.truth, self._ef_search(start),
                lambda m: self._hear_proxy(full, m, ground), self._check,
            )  # fmt: skip
            proxy = full
        wanted = (climbed.rung, climbed.ef, proxy.rows)
        best = next(t for t in reversed(self._heard) if (Rung(t.m, t.ef_construction), t.ef, t.rows) == wanted)
        return self._result(best, climbed.reached, None, f"{obstacle}, so this is hnswlib's answer", earlier)

    def _on_scratch(self, trials: Trials, ground: Ground) -> AutotuneResult:
        """On a copy of the table."""
        earlier = self._earlier(len(ground.rows))
        rung, start = self._rung(ground, earlier, len(ground.rows))
        self._stage = (50, 97)
        best, reached = self._on_copy(trials, ground, rung, start)
        return self._result(best, reached, None, "", earlier)

    def _on_table(self, trials: Trials, subject: Subject, rows: Vectors, ground: Ground) -> AutotuneResult:
        """On the table itself: the index stays.

        It holds every row, so only logged queries can be asked of it. Where there are none, the parameters are found on
        a copy first, and a comparison of the two indexes carries them over.
        """
        earlier = self._earlier(subject.rows)
        rung, start = self._rung(ground, earlier, subject.rows)
        queries, kind, shift = ground.queries, ground.kind, 0.0
        if ground.apart is not None:
            self._stage = (40, 66)
            best, _ = self._on_copy(trials, ground, rung, start)
            queries, kind = self._noise(ground), "carried over"
            trials.ask(queries, self._check)
            found, _ = trials.trial(ground.truth.k, best.ef)
            start, shift = best.ef, best.recall - self._sampler.exact(queries, ground.rows).recall(found)
            self._session.drop_scratch()
        truth = self._sampler.whole_truth(subject, rows, queries)
        return self._in_place(trials, subject, queries, truth, kind, rung, start, shift, earlier)

    def _in_place(
        self, trials: Trials, subject: Subject, queries: Vectors, truth: Truth, kind: str, rung: Rung, start: int,
        shift: float, earlier: Earlier | None,
    ) -> AutotuneResult:  # fmt: skip
        """Measure the table's own index, or what is to replace it; no other search works on the table meanwhile."""
        name = index_name(self._table, self._spec.column, self._metric)
        claim = self._session.hold_index(subject, name, self._check)
        old = next((index for index in self._session.indexes(subject) if index.name == name), None)
        same = old is not None and fits(old, subject, self._metric, self._sampler.dimension)
        if old is not None and same and set(old.options) == {f"m={rung.m}", f"ef_construction={rung.ef_construction}"}:
            self._stage, index, built = (68, 97), claim.index, None
        elif old is None:
            self._stage, index = (68, 97), claim.index
            built = self._build(trials, trials.table, index.name, rung, subject.rows, concurrently=True)
        else:
            return self._replace(trials, subject, claim, queries, truth, kind, rung, start, shift, earlier)
        trials.ask(queries, self._check)
        best, reached = self._in_database(trials, trials.table, index, truth, kind, rung, start, built, shift)
        return self._finish(claim, index, best, reached, earlier)

    def _replace(
        self, trials: Trials, subject: Subject, claim: Claim, queries: Vectors, truth: Truth, kind: str, rung: Rung,
        start: int, shift: float, earlier: Earlier | None,
    ) -> AutotuneResult:  # fmt: skip
        """Measure on a copy of the whole table, and only then build what takes the old index's place.

        Of two indexes alike on one table the planner chooses by itself, so the new one could be measured only once the
        old one were gone; and a search that ends early must leave that one as it was.
        """
        self._stage = (68, 84)
        target = trials.copy_table()
        copied = Table(target.table.schema, f"{target.table.name}_hnsw")
        built = self._build(trials, target, copied.name, rung, subject.rows, concurrently=False)
        trials.ask(queries, self._check)
        best, reached = self._in_database(trials, target, copied, truth, kind, rung, start, built, shift)
        self._session.drop_scratch()
        self._stage = (84, 97)
        built = self._build(trials, trials.table, claim.replacement.name, rung, subject.rows, concurrently=True)
        best = replace(best, build_s=built, size_bytes=trials.size(claim.replacement))
        return self._finish(claim, claim.replacement, best, reached, earlier)

    def _finish(
        self, claim: Claim, index: Table, best: Trial, reached: bool, earlier: Earlier | None
    ) -> AutotuneResult:
        finish(self._session.connection, claim, index, comment(self._spec, best))
        self._sampler.sampled = ""  # ef was measured on all rows
        return self._result(best, reached, claim.index, "", earlier)

    def _rung(self, ground: Ground, earlier: Earlier | None, rows: int) -> tuple[Rung, int]:
        """Return the graph to build on ``rows`` rows, and the ``hnsw.ef_search`` to begin with."""
        if earlier is not None:
            share = 1.0 if earlier.backend == "pgvector" else PGVECTOR_SHARE
            return Rung(earlier.m, earlier.ef_construction), int(earlier.ef * share)
        climbed, _, small = self._climb(ground, None)
        return climbed.rung, int(climbed.ef * PGVECTOR_SHARE * math.pow(rows / len(small.rows), GROWTH))

    def _on_copy(self, trials: Trials, ground: Ground, rung: Rung, start: int) -> tuple[Trial, bool]:
        """Build and measure on a scratch table that holds all rows but the queries."""
        target = trials.make_scratch(ground.rows, self._check)
        index = Table(target.table.schema, f"{target.table.name}_hnsw")
        built = self._build(trials, target, index.name, rung, len(ground.rows), concurrently=False)
        trials.ask(ground.queries, self._check)
        return self._in_database(trials, target, index, ground.truth, ground.kind, rung, start, built)

    def _noise(self, ground: Ground) -> Vectors:
        """Return queries near random rows of ``ground``."""
        assert ground.apart is not None
        random, count = self._sampler.random, min(asking.MOST, len(ground.rows))
        chosen = ground.rows[random.choice(len(ground.rows), count, replace=False)]
        return asking.moved(chosen, self._metric, random.choice(ground.apart, count), random)

    def _build(self, trials: Trials, target: Target, name: str, rung: Rung, rows: int, *, concurrently: bool) -> float:
        self._progress(0)
        self._check()
        return trials.build(
            target, name, rung.m, rung.ef_construction, rows, concurrently=concurrently,
            progress=lambda share: self._progress(0.7 * share),
        )  # fmt: skip

    def _in_database(
        self, trials: Trials, target: Target, index: Table, truth: Truth, kind: str, rung: Rung, start: int,
        built: float | None, shift: float = 0.0,
    ) -> tuple[Trial, bool]:  # fmt: skip
        """Find the least ``hnsw.ef_search``, by pgvector's own answers; return its trial and whether it is enough.

        ``shift`` is added to the recall that these queries have: they are easier or harder by so much.
        """
        self._progress(0.7)
        trials.prepare(target, index)
        trials.warm_up(truth.k)
        size, search, mine = trials.size(index), self._ef_search(start), list[Trial]()
        while (ef := search.ask()) is not None:
            self._check()
            found, took = trials.trial(truth.k, ef)
            p50, p99 = np.percentile(took, (50, 99))
            recall = min(1.0, truth.recall(found) + shift)
            mine.append(
                Trial("pgvector", rung.m, rung.ef_construction, ef, recall, float(p50), float(p99), built, size,
                      truth.rows, len(found), kind)
            )  # fmt: skip
            self._hear(mine[-1])
            search.tell(ef, recall)
            self._progress(min(1.0, 0.7 + 0.04 * len(mine)))
        best = max(mine, key=lambda t: (t.ef == search.found, t.recall, -t.ef))
        return best, search.found is not None

    # --- what is told -----------------------------------------------------------------------------------------------

    def _progress(self, share: float) -> None:
        """Say how much of the present stage is done."""
        first, last = self._stage
        self._say.progress(first + int((last - first) * share))

    def _ef_search(self, start: int) -> EfSearch:
        low = min(self._spec.k, MOST_EF)
        return EfSearch(self._spec.target_recall, start=start, low=low, enough=_ENOUGH, coarse=0.01)

    def _hear(self, trial: Trial) -> None:
        self._heard.append(trial)
        self._say.trial(trial, self._sampler.dimension)

    def _hear_proxy(self, proxy: Proxy, m: Measured, ground: Ground) -> None:
        rung = proxy.rung
        self._hear(
            Trial("hnswlib", rung.m, rung.ef_construction, m.ef, m.recall, m.p50_ms, m.p99_ms, proxy.build_s,
                  proxy.bytes, proxy.rows, len(ground.queries), ground.kind)
        )  # fmt: skip

    def _result(
        self, best: Trial, reached: bool, index: Table | None, remark: str, earlier: Earlier | None
    ) -> AutotuneResult:
        summary = sentence(
            self._spec, best, reached=reached, compared=self._compared, sampled=self._sampler.sampled,
            remark="; ".join(filter(None, (self._sampler.left_out, remark))), reused=earlier is not None,
        )  # fmt: skip
        return AutotuneResult(tuple(self._heard), best, reached, summary, index, self._sampler.dimension)
