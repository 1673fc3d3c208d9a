"""How fast a model is here: texts and tokens a second, short texts and long ones, by the rows of a request.

Each size is measured twice over, by turns: as walvec asks the runtime (:meth:`inference.front.Front.embed`, replies
proved), and as a bare loop that sends requests made ready beforehand and looks at no reply. The best bare rate of a
length is the ceiling of the runtime on this machine; what walvec reaches of it is its own doing. The best of the rounds
counts, for neighbours on a machine can only make a round slower.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from inference.front import Front

SHORT, LONG = 12, 128
"""Tokens of a text, the two marks around it included."""
SIZES = (1, 4, 16, 64, 256)
ROUNDS = 5
POOL = 2_048
"""Different texts, at most; they are used again and again."""
READY_MADE = 16
"""Requests of the bare loop that are made ready, and then sent again and again."""

_WORDS = (
    "the a of and in to for with on by from at row rows table tables text word words time year day house water river "
    "city road light hand book page line number name state people world school music paper letter market bridge garden "
    "window mountain island summer winter morning evening north south read write move find open close turn build carry "
    "small large early late old new long short high low green blue white black first last three four seven ten"
)
WORDS = _WORDS.split()
"""Each is one token in the usual vocabularies."""


@dataclass(frozen=True, slots=True)
class Point:
    """What one length of text at one size of request came to. Rates are texts a second."""

    length: str
    tokens: float
    rows: int
    texts_per_s: float
    tokens_per_s: float
    request_ms: float
    bare_texts_per_s: float | None
    share: float | None
    """Of the ceiling: the best bare rate of this length, whatever the size of request."""

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {name: round(v, 4) if isinstance(v, float) else v for name, v in asdict(self).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much to measure: texts and seconds bound each round of each size; ``inflight`` requests are under way."""

    texts: int = 10_000
    seconds: float = 0.3
    inflight: int = 4
    max_rows: int = 256
    max_tokens: int = 16_384
    """Tokens in one request."""
    long_tokens: int = LONG
    """Tokens of a long text."""


def make_texts(tokens: int, count: int, seed: int = 1) -> list[str]:
    """Return texts of about ``tokens`` tokens each, the two marks included; the same every time."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=max(1, tokens - 2))) for _ in range(count)]


async def run(front: Front, effort: Effort, done: Callable[[Point], None] = lambda _: None) -> list[Point]:
    """Start an embedder, measure it, and close it; see :func:`measure`.

    Raises:
        inference.errors.EmbedError: it does not start, or a request failed.
    """
    try:
        await front.start()
        return await measure(front, effort, done)
    finally:
        await front.close()


async def measure(front: Front, effort: Effort, done: Callable[[Point], None] = lambda _: None) -> list[Point]:
    """Measure a started embedder.

    Args:
        front: the embedder.
        effort: how long, and how.
        done: told of each point as soon as it is known; its ``share`` is not known yet.

    Returns:
        Points by length and size, with the share of the ceiling where the runtime has a bare loop.

    Raises:
        inference.errors.EmbedError: a request failed.
    """
    points: list[Point] = []
    for name, tokens in (("short", SHORT), ("long", effort.long_tokens)):
        texts = make_texts(tokens, max(1, min(effort.texts, POOL)))
        found = []
        for rows in _sizes(front, tokens, effort):
            point = await _point(front, name, tokens, rows, texts, effort)
            done(point)
            found.append(point)
        ceiling = max((p.bare_texts_per_s for p in found if p.bare_texts_per_s is not None), default=None)
        points += [_with_share(point, ceiling) for point in found]
    return points


def _sizes(front: Front, tokens: int, effort: Effort) -> list[int]:
    limits = front.limits
    room = min(limits.max_padded_tokens, effort.max_tokens) // max(1, min(tokens, limits.max_tokens))
    most = max(1, min(limits.max_rows, effort.max_rows, effort.texts, room))
    return sorted({rows for rows in SIZES if rows < most} | {most})


async def _point(front: Front, name: str, tokens: int, rows: int, texts: Sequence[str], effort: Effort) -> Point:
    requests = [texts[i : i + rows] for i in range(0, len(texts) - rows + 1, rows)]
    bare = [call for request in requests[:READY_MADE] if (call := front.bare(request)) is not None]
    await front.embed(requests[0])  # warm
    before = front.usage.tokens, front.usage.rows
    best, bare_best, times = 0.0, 0.0, []
    for _ in range(ROUNDS):
        rate, took = await _rate((_ask(front, request) for request in itertools.cycle(requests)), rows, effort)
        if rate > best:
            best, times = rate, took
        if bare:
            bare_best = max(bare_best, (await _rate(itertools.cycle(bare), rows, effort))[0])
    usage = front.usage
    each = (usage.tokens - before[0]) / (usage.rows - before[1]) if usage.exact else float(tokens)
    return Point(name, each, rows, best, best * each, median(times) * 1000, bare_best if bare else None, None)


def _ask(front: Front, request: Sequence[str]) -> Callable[[], Awaitable[object]]:
    return lambda: front.embed(request)


async def _rate(
    calls: Iterator[Callable[[], Awaitable[object]]], rows: int, effort: Effort
) -> tuple[float, list[float]]:
    """Return texts a second, and the seconds that each request took."""
    begun = time.perf_counter()
    left = max(1, effort.texts // rows)
    times: list[float] = []

    async def work() -> None:
        nonlocal left
        while left > 0 and time.perf_counter() - begun < effort.seconds:
            left -= 1
            sent = time.perf_counter()
            await next(calls)()
            times.append(time.perf_counter() - sent)

    async with asyncio.TaskGroup() as group:
        for _ in range(effort.inflight):
            group.create_task(work())
    return len(times) * rows / (time.perf_counter() - begun), times


def _with_share(point: Point, ceiling: float | None) -> Point:
    return point if ceiling is None else replace(point, share=point.texts_per_s / ceiling)
