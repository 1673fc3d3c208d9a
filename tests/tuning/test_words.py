"""The sentence that explains a winner never contradicts itself."""

import pytest

from cdc.autotune.words import sentence
from cdc.jobs import AutotuneSpec
from cdc.ports.tuning import Trial
from inference.tuning import Climbed, Rung

SPEC = AutotuneSpec("e", "cosine", 0.95, 10, create_index=False)


def say(*others: Climbed, ef: int = 40, sampled: str = "", backend: str = "pgvector") -> str:
    best = Trial(backend, 12, 48, ef, 0.96, 0.5, 0.9, 3.0, 1_000, 900, 100, "held out")
    own = Climbed(Rung(12, 48), 40, 0.96, 1.0, 2.0, reached=True)
    return sentence(SPEC, best, reached=True, compared=[own, *others], sampled=sampled, remark="", reused=False)


@pytest.mark.parametrize(
    ("m", "latency", "build", "says"),
    [
        (16, 1.0, 4.0, "m 16 takes 2.0 times as long to build and is no faster"),
        (16, 0.9, 4.0, "m 16 takes 2.0 times as long to build and is hardly faster"),
        (16, 1.0, 1.2, "m 16 is larger and is no faster"),
        (16, 0.9, 2.1, "m 16 is larger and is hardly faster"),
        (8, 1.4, 1.0, "m 8 would be 1.4 times as slow"),
        (8, 1.02, 2.0, "m 8 is a little slower"),
    ],
)
def test_another_graph(m: int, latency: float, build: float, says: str) -> None:
    told = say(Climbed(Rung(m, 4 * m), 40, 0.96, latency, build, reached=True))
    assert told.endswith(f"; {says}."), told


def test_a_sample_whose_ef_cannot_be_raised() -> None:
    sampled = "a random sample of 900 of the 9,000 rows"
    assert "hnsw.ef_search must be higher on all of them" in say(sampled=sampled, ef=999)
    assert "hnsw.ef_search ends at 1000: the recall may not be reached on all of them" in say(sampled=sampled, ef=1000)
    assert " ef must be higher on all of them" in say(sampled=sampled, ef=1000, backend="hnswlib")
