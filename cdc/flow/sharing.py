"""A whole shared out: by weight, in whole numbers, with nothing lost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def share(whole: int, weights: Sequence[int]) -> list[int]:
    """Return a part of ``whole`` for each weight; the parts add up to it and stand in the weights' proportion.

    Args:
        whole: 0 or more.
        weights: 0 or more each, one of them more than 0.
    """
    total = sum(weights)
    ends = [whole * upto // total for upto in accumulate(weights)]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
