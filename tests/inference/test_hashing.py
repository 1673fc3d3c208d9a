import hashlib
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference import hashing
from inference.errors import ModelMisconfigured
from inference.hashing import HashEmbedder, dimension_of, hash_vectors


def by_the_contract(text: str, dimension: int) -> np.ndarray:
    digest = hashlib.shake_256(text.encode()).digest(2 * dimension)
    vector = np.frombuffer(digest, "<i2").astype("float32")
    unit: np.ndarray = vector / np.linalg.norm(vector)
    return unit


@given(st.lists(st.text(), max_size=20), st.sampled_from([8, 33, 384, 768]))
def test_equals_the_definition_bit_for_bit(texts, dimension):
    vectors = hash_vectors(texts, dimension)
    assert vectors.shape == (len(texts), dimension) and vectors.dtype == np.float32
    for text, vector in zip(texts, vectors, strict=True):
        assert np.array_equal(vector, by_the_contract(text, dimension))


def test_a_known_vector():
    # echo -n walvec | openssl dgst -shake256 -xoflen 8: little-endian int16, divided by their norm
    digest = hashlib.shake_256(b"walvec").digest(8)
    parts = [int.from_bytes(digest[i : i + 2], "little", signed=True) for i in range(0, 8, 2)]
    norm = sum(part * part for part in parts) ** 0.5
    assert hash_vectors(["walvec"], 4)[0] == pytest.approx([part / norm for part in parts], rel=1e-6)


@pytest.mark.parametrize(
    ("model", "dimension"),
    [("hash-384", 384), ("hash-8", 8), ("all-minilm-l6-v2", 384), ("hash", 384), ("hash-x", 384)],
)
def test_dimension_from_the_name(model, dimension):
    assert HashEmbedder(model).dimension == dimension


@pytest.mark.parametrize("model", ["hash-0", "hash-16001", "hash-99999999999999999999"])
def test_impossible_dimensions_are_refused(model):
    with pytest.raises(ModelMisconfigured, match="hash-1 to hash-16000"):
        dimension_of(model)


def test_one_dimension_never_gives_a_zero_vector():
    assert hashlib.shake_256(b"382055").digest(2) == b"\0\0"
    assert hash_vectors(["382055"], 1).tolist() == [[1.0]]


async def test_large_requests_do_not_stop_the_event_loop(monkeypatch):
    embedder = HashEmbedder("hash-16")
    await embedder.start()
    seen: list[int] = []

    def noted(texts, dimension):
        seen.append(threading.get_ident())
        return hash_vectors(texts, dimension)

    monkeypatch.setattr(hashing, "hash_vectors", noted)
    await embedder.embed(["x" * (hashing.INLINE_CHARACTERS + 1)])
    await embedder.embed(["x"])
    assert seen[0] != threading.get_ident() == seen[1]
