"""hnswlib must be compiled, so it may be missing: what needs it says what mends that."""

import sys

import pytest

from cdc.errors import ConfigError
from cdc.external_indexes import HnswIndexes
from cdc.jobs import IndexSpec


def test_an_index_job_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "hnswlib", None)
    with pytest.raises(ConfigError, match=r"hnswlib is not installed.*apt-get install g\+\+ python3-dev"):
        HnswIndexes(1, 0).make(IndexSpec("v", "l2", 8, 32, 16), 3, 10)
