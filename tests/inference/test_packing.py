import argparse
import itertools
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.embedder import Limits
from inference.packing import pack, padded
from inference.tokens import estimate

lengths_of = st.lists(st.integers(0, 600), max_size=300)
limits_of = st.builds(
    Limits,
    max_rows=st.integers(1, 300),
    max_padded_tokens=st.integers(1, 20_000),
    max_tokens=st.integers(1, 512),
    concurrency=st.just(1),
)


@given(lengths_of, limits_of, st.sampled_from([0.0, 0.5, 0.7, 1.0]))
def test_each_text_travels_once(lengths, limits, alike):
    assert sorted(i for batch in pack(lengths, limits, alike=alike) for i in batch) == list(range(len(lengths)))


@given(lengths_of, limits_of)
def test_no_batch_is_over_budget_unless_it_is_one_text(lengths, limits):
    for batch in pack(lengths, limits):
        assert 1 <= len(batch) <= limits.max_rows
        cost = padded(lengths, [batch], limits.max_tokens)
        assert cost <= limits.max_padded_tokens or len(batch) == 1


@given(lengths_of, limits_of)
def test_no_two_neighbours_would_have_fitted_one_batch(lengths, limits):
    batches = pack(lengths, limits)
    for left, right in itertools.pairwise(batches):
        joined = [*left, right[0]]
        assert len(joined) > limits.max_rows or padded(lengths, [joined], limits.max_tokens) > limits.max_padded_tokens


@given(lengths_of.filter(len), limits_of, st.sampled_from([0.5, 0.7, 1.0]))
def test_alike_bounds_the_padding(lengths, limits, alike):
    real = sum(max(1, min(length, limits.max_tokens)) for length in lengths)
    assert padded(lengths, pack(lengths, limits, alike=alike), limits.max_tokens) * alike <= real


@given(st.lists(st.integers(1, 256), min_size=256, max_size=256))
def test_padding_of_a_window_is_small(lengths):
    # Sorted lengths fall once from 256 to 1, so all batches together cannot waste more than each one's fall
    # times its rows; the first batch of a budget of 1024 has four rows.
    limits = Limits(256, 1024, 256, 1)
    batches = pack(lengths, limits)
    falls = sum((max(lengths[i] for i in b) - min(lengths[i] for i in b)) for b in batches)
    assert falls <= 255
    assert padded(lengths, batches, 256) - sum(lengths) <= sum(
        (max(lengths[i] for i in b) - min(lengths[i] for i in b)) * (len(b) - 1) for b in batches
    )


def test_sorting_saves_what_arrival_order_wastes():
    lengths = [8, 256] * 64
    limits = Limits(64, 4096, 256, 1)
    arrival = [list(range(i, i + 16)) for i in range(0, 128, 16)]
    assert padded(lengths, pack(lengths, limits), 256) == sum(lengths)
    assert padded(lengths, arrival, 256) > 1.9 * sum(lengths)


def test_order_of_equal_lengths_is_kept():
    assert pack([5, 9, 5, 9], Limits(2, 100, 256, 1)) == [[1, 3], [0, 2]]


def test_nothing_gives_no_batch():
    assert pack([], Limits(1, 1, 1, 1)) == []


@given(st.integers(0, 50_000_000), st.integers(1, 10_000))
def test_estimate_is_at_least_one_and_at_most_the_cut(length, max_tokens):
    assert 1 <= estimate(length, max_tokens) <= max_tokens


@pytest.mark.parametrize(("length", "tokens"), [(0, 2), (1, 3), (4, 3), (5, 4), (400, 102), (5000, 256)])
def test_estimate(length, tokens):
    assert estimate(length, 256) == tokens


def test_estimate_is_near_the_truth_on_english():
    from inference.minilm import load_tokenizer

    members = (argparse, zipfile, zipfile.ZipFile, zipfile.ZipFile.open, argparse.ArgumentParser)
    texts = [part for member in members for part in str(member.__doc__).split("\n\n")]
    true = sum(map(len, load_tokenizer().encode(texts)))
    guessed = sum(estimate(len(text.encode()), 256) for text in texts)
    assert 0.75 < guessed / true < 1.35
