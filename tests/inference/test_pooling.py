import numpy as np
import pytest

from inference.pooling import pad, pool, unit

STATES = np.array([[[3.0, 0.0], [3.0, 8.0], [9e6, np.nan]]], np.float32)
MASK = np.array([[1, 1, 0]])


def test_pad():
    ids, mask = pad([[101, 7, 102], [101, 102]])
    assert ids.tolist() == [[101, 7, 102], [101, 102, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]


def test_pad_with_the_models_own_padding_to_a_fixed_width():
    ids, mask = pad([[0, 2]], padding=1, width=4)
    assert ids.tolist() == [[0, 2, 1, 1]] and mask.tolist() == [[1, 1, 0, 0]]


@pytest.mark.parametrize(("how", "vector"), [("mean", [3.0, 4.0]), ("cls", [3.0, 0.0]), ("last", [3.0, 8.0])])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_padding_is_left_out_of_every_pooling(how, vector, kind):
    vectors = pool(STATES.astype(kind), MASK, how)
    assert vectors.dtype == np.float32 and vectors.tolist() == [vector]


def test_half_precision_does_not_overflow_in_the_sum():
    states = np.full((1, 512, 1), 1000, np.float16)
    assert pool(states, np.ones((1, 512), np.int64), "mean").tolist() == [[1000.0]]


def test_unit():
    assert unit(np.array([[3.0, 4.0]], np.float32))[0] == pytest.approx([0.6, 0.8])
