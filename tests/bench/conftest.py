"""A server as the benchmarks run it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cdc.bench.scene import server
from cdc.testing.cluster import Cluster


@pytest.fixture(scope="session")
def pg18_with_commit_times() -> Iterator[Cluster]:
    with server("18") as cluster:
        yield cluster
