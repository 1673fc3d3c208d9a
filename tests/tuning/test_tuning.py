"""What is measured next, and which parameters win."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference.tuning import LADDER, MOST_EF, Climbed, EfSearch, Ladder, Rung, cheapest, guess


@given(
    least=st.integers(1, 1_400),
    low=st.integers(1, 50),
    start=st.integers(1, 2_000),
    high=st.integers(50, MOST_EF),
    step=st.floats(1e-4, 1e-2),
)
def test_the_least_ef_is_found(least: int, low: int, start: int, high: int, step: float) -> None:
    """On any rising curve: the least ef in range that reaches the target, or none, in few steps."""
    search, asked = EfSearch(0.95, start=start, low=low, high=high), []
    while (ef := search.ask()) is not None:
        assert low <= ef <= high
        assert ef not in asked
        asked.append(ef)
        search.tell(ef, 0.95 + step * (ef - least))
        assert len(asked) <= 25
    expected = max(least, low)
    assert search.found == (expected if expected <= high else None)
    if search.found is None:
        assert high in asked  # the best there is was measured


@given(least=st.integers(10, 900), factor=st.floats(0.7, 1.4))
def test_a_good_guess_is_cheap(least: int, factor: float) -> None:
    search, steps = EfSearch(0.9, start=max(10, int(least * factor)), low=10), 0
    while (ef := search.ask()) is not None:
        steps += 1
        search.tell(ef, 1.0 if ef >= least else 0.0)
    assert search.found == least
    assert steps <= 14


def test_near_enough_ends_it() -> None:
    search = EfSearch(0.95, start=40, low=10, enough=0.002)
    assert search.ask() == 40
    search.tell(40, 0.9515)
    assert search.ask() is None
    assert search.found == 40


def climbed(rung: Rung, latency: float, *, reached: bool = True, recall: float = 0.96) -> Climbed:
    return Climbed(rung, 40, recall, latency, rung.m * 1.0, reached)


def run(ladder: Ladder, latencies: dict[int, float | None]) -> Climbed:
    while (rung := ladder.ask()) is not None:
        latency = latencies[rung.m]
        ladder.tell(
            climbed(
                rung,
                latency or 9.0,
                reached=latency is not None,
                recall=0.5 + rung.m / 100 if latency is None else 0.96,
            )
        )
    return ladder.best()


def test_the_ladder_goes_up_while_it_pays_and_then_looks_down() -> None:
    ladder = Ladder(0.95)
    best = run(ladder, {8: 1.0, 12: 1.05, 16: 1.0, 24: 0.98, 32: 0.9, 48: 0.9})
    assert [c.rung.m for c in ladder.climbed] == [16, 24, 12]
    assert best.rung.m == 12, "as fast as the others, and built quickest"


def test_a_faster_graph_is_worth_its_build() -> None:
    ladder = Ladder(0.95)
    best = run(ladder, {8: 3.0, 12: 2.5, 16: 2.0, 24: 1.5, 32: 1.0, 48: 0.98})
    assert [c.rung.m for c in ladder.climbed] == [16, 24, 32]
    assert best.rung.m == 32


def test_what_does_not_reach_the_target_is_left() -> None:
    ladder = Ladder(0.95)
    assert run(ladder, {8: None, 12: None, 16: None, 24: 1.0, 32: 1.1, 48: 1.2}).rung.m == 24
    assert 12 not in [c.rung.m for c in ladder.climbed]
    ladder = Ladder(0.95)
    assert run(ladder, {8: None, 12: None, 16: 1.0, 24: 1.0, 32: 1.0, 48: 1.0}).rung.m == 16


def test_unreachable_climbs_to_the_top() -> None:
    ladder = Ladder(0.999)
    best = run(ladder, {rung.m: None for rung in LADDER})
    assert not best.reached
    assert best.rung == LADDER[-1], "the highest recall"


@given(target=st.floats(0.01, 1.0), latencies=st.lists(st.none() | st.floats(0.1, 10), min_size=6, max_size=6))
def test_any_ladder_ends(target: float, latencies: list[float | None]) -> None:
    """At most three graphs, none twice, and the winner is among the fastest that reach the target."""
    ladder = Ladder(target)
    best = run(ladder, dict(zip([rung.m for rung in LADDER], latencies, strict=True)))
    rungs = [c.rung for c in ladder.climbed]
    assert 1 <= len(rungs) == len(set(rungs)) <= (3 if any(c.reached for c in ladder.climbed[:3]) else 6)
    reached = [c.latency_ms for c in ladder.climbed if c.reached]
    assert best.reached == bool(reached)
    assert not reached or best.latency_ms <= 1.25 * min(reached)
    assert best == cheapest(ladder.climbed)


def test_guesses_rise_with_the_target() -> None:
    assert guess(10, 0.5) <= guess(10, 0.9) <= guess(10, 0.95) <= guess(10, 0.99) <= guess(10, 1.0)
