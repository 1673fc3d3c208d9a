"""Which texts travel together: batches cut from a window so that little padding is computed.

A model pads every text of a batch to the longest one, so a batch costs ``longest x rows``, not the sum of its lengths.
Sorting a window by length before cutting it makes neighbours alike. On a CPU, with lengths as prose has them, that
alone is worth a factor of four. Nothing here reads a text, a clock or a socket.
"""

from __future__ import annotations

from collections.abc import Sequence

from inference.embedder import Limits


def pack(lengths: Sequence[int], limits: Limits, *, alike: float = 0.0) -> list[list[int]]:
    """Cut a window into batches that each fit one request.

    Longest texts first, so that the last batches to finish are small ones. A length counts as no more than
    ``limits.max_tokens``, because the model cuts it there, and as no less than one.

    Args:
        lengths: tokens of each text, exact or estimated.
        limits: what one request may hold. A text that alone is over ``max_padded_tokens`` gets a batch of its own.
        alike: the share (0 to 1) of a batch's longest text that each of its texts must have. With ``a``, a batch is
            never less than ``a`` full of real tokens; worth it where padding costs more than one more request does.

    Returns:
        Indices into ``lengths``, each exactly once, by batch. Equal lengths keep their order.
    """
    capped = [max(1, min(length, limits.max_tokens)) for length in lengths]
    order = sorted(range(len(capped)), key=lambda index: -capped[index])
    batches: list[list[int]] = []
    room, shortest = 0, 0.0
    for index in order:
        length = capped[index]
        if room == 0 or length < shortest:
            batches.append([])
            room = max(1, min(limits.max_rows, limits.max_padded_tokens // length))
            shortest = length * alike
        batches[-1].append(index)
        room -= 1
    return batches


def padded(lengths: Sequence[int], batches: Sequence[Sequence[int]], max_tokens: int) -> int:
    """Return the tokens, padding included, that a model computes for these batches."""
    return sum(max(1, min(max_tokens, max(lengths[i] for i in batch))) * len(batch) for batch in batches)
