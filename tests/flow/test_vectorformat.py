"""Vectors in text form, as the WAL brings them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from cdc.flow.vectorformat import VectorFormat

CASES = [
    ("vector", b"[1,2.5,-3e-05]", [1, 2.5, -3e-05]),
    ("halfvec", b"[1,2]", [1, 2]),
    ("_float4", b"{1,2}", [1, 2]),
    ("_float4", b"[0:2]={4,5,6}", [4, 5, 6]),
    ("_float8", b"[-1:0]={4,5}", [4, 5]),
    ("_float8", b"{1e300,NaN,-Infinity}", [np.inf, np.nan, -np.inf]),
    ("_float4", b"{}", None),
    ("_float4", b"{1,NULL}", None),
    ("_float4", b"{{1,2},{3,4}}", None),
    ("_float4", b"[0:1][0:1]={{1,2},{3,4}}", None),
    ("_int4", b"[0:0]={1}", [0] * 31 + [1]),
    ("_int4", b"{-1}", [1] * 32),
    ("_int4", b"{1,NULL}", None),
    ("bit", b"101", [1, 0, 1]),
]


@pytest.mark.parametrize(("base", "cell", "vector"), CASES)
def test_a_cell_is_read(base: str, cell: bytes, vector: list[float] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    # The filters of warnings are the whole process's: a thread that changes them, changes them for all.
    form = VectorFormat(base, "hamming" if base in ("bit", "_int4") else "l2")
    with monkeypatch.context() as patched:
        patched.setattr(warnings, "catch_warnings", None)
        found = form.from_text(cell)
    if vector is None:
        assert found is None
    else:
        assert found is not None and found.dtype == np.float32
        assert np.array_equal(found, np.array(vector, np.float32), equal_nan=True)
