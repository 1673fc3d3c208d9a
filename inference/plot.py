"""The plot of a measurement: one SVG file, written by hand, that any browser shows.

Two panels side by side, short texts and long ones, each with its own scale: rows in a request across, texts a second
up. A solid line with dots is walvec, a dashed one the bare loop, and every dot of walvec's says its number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from inference.measure import Point

WIDTH, HEIGHT = 960, 440
PANEL, PLOT_TOP, PLOT_BOTTOM = 380, 96, 340
LEFT = (80, 560)
BLUE, GREY, INK, RULE = "#1f5fa8", "#8a5a00", "#222222", "#dddddd"


def draw(points: Sequence[Point], title: str) -> str:
    """Return the SVG document of what was measured."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="{INK}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT[0] - 50}" y="32" font-size="17" font-weight="bold">{escape(title)}</text>',
    ]
    for left, length in zip(LEFT, ("short", "long"), strict=True):
        mine = [point for point in points if point.length == length]
        if mine:
            parts += _panel(left, length, mine)
    return "\n".join([*parts, *_legend(any(p.bare_texts_per_s is not None for p in points)), "</svg>"]) + "\n"


def _panel(left: int, length: str, points: Sequence[Point]) -> list[str]:
    width = PANEL - 40
    bare = [point.bare_texts_per_s for point in points if point.bare_texts_per_s is not None]
    ticks = nice_ticks(max([point.texts_per_s for point in points] + bare))
    step = width / max(1, len(points) - 1)

    def x(place: int) -> float:
        return left + width / 2 if len(points) == 1 else left + place * step

    def y(value: float) -> float:
        return PLOT_BOTTOM - (PLOT_BOTTOM - PLOT_TOP) * value / ticks[-1]

    heading = f"{length} texts, {points[0].tokens:.0f} tokens each"
    parts = [f'<text x="{left}" y="{PLOT_TOP - 28}" font-weight="bold">{escape(heading)}</text>']
    for tick in ticks:
        parts.append(
            f'<line x1="{left - 8}" x2="{left + width + 8}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="{RULE}"/>'
            f'<text x="{left - 14}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:,.10g}</text>'
        )
    for place, point in enumerate(points):
        parts.append(f'<text x="{x(place):.1f}" y="{PLOT_BOTTOM + 22}" text-anchor="middle">{point.rows}</text>')
    middle = left + width / 2
    parts.append(f'<text x="{middle:.1f}" y="{PLOT_BOTTOM + 44}" text-anchor="middle">rows in a request</text>')
    if len(bare) == len(points):
        parts.append(_line([(x(i), y(rate)) for i, rate in enumerate(bare)], GREY, dashed=True))
    own = [(x(i), y(point.texts_per_s)) for i, point in enumerate(points)]
    parts.append(_line(own, BLUE))
    for (across, up), point in zip(own, points, strict=True):
        parts.append(
            f'<circle cx="{across:.1f}" cy="{up:.1f}" r="4" fill="{BLUE}"/>'
            f'<text x="{across:.1f}" y="{up + 20:.1f}" text-anchor="middle" fill="{BLUE}" stroke="#ffffff" '
            f'stroke-width="4" paint-order="stroke">{_number(point.texts_per_s)}</text>'
        )
    return parts


def _line(places: Sequence[tuple[float, float]], colour: str, *, dashed: bool = False) -> str:
    path = " ".join(f"{across:.1f},{up:.1f}" for across, up in places)
    dashes = ' stroke-dasharray="6 4"' if dashed else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'


def _legend(with_bare: bool) -> list[str]:
    y = HEIGHT - 12
    parts = [_line([(30, y - 4), (60, y - 4)], BLUE), f'<text x="68" y="{y}">walvec, texts a second</text>']
    if with_bare:
        parts += [
            _line([(250, y - 4), (280, y - 4)], GREY, dashed=True),
            f'<text x="288" y="{y}">bare loop: ready-made requests, replies not looked at</text>',
        ]
    return parts


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def nice_ticks(most: float) -> list[float]:
    """Return 4 to 6 round numbers from 0 to ``most`` or a little more."""
    if most <= 0 or not math.isfinite(most):
        return [0.0, 1.0]
    rough = most / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    return [step * i for i in range(math.ceil(most / step - 1e-9) + 1)]
