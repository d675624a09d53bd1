"""A figure of lines over logarithmic axes, as SVG that stands alone."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

COLOURS = ("#4477aa", "#ee6677", "#228833", "#aa3377", "#ccbb44", "#66ccee")
WIDTH, HEIGHT, LEFT, TOP = 480, 280, 70, 20


def growth(x: Sequence[float], series: Mapping[str, Sequence[float]], x_name: str, y_name: str) -> str:
    """Lines of positive values; each power of ten has a grid line.

    Args:
        x: At least two values, rising.
        series: Values by name, as many as `x`.
        x_name: Title of the axis.
        y_name: Likewise.
    """
    values = [value for line in series.values() for value in line]
    lows, highs = _decades(x), _decades(values)
    out = io.StringIO()

    def at(a: float, b: float) -> tuple[float, float]:
        across = (math.log10(a) - lows[0]) / (lows[1] - lows[0])
        up = (math.log10(b) - highs[0]) / (highs[1] - highs[0])
        return LEFT + WIDTH * across, TOP + HEIGHT * (1 - up)

    for power in range(lows[0], lows[1] + 1):
        position, _ = at(10.0**power, 10.0 ** highs[0])
        out.write(f'<path d="M{position:.0f} {TOP}v{HEIGHT}" stroke="#ddd"/>')
        out.write(f'<text x="{position:.0f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{10.0**power:,.10g}</text>')
    for power in range(highs[0], highs[1] + 1):
        _, position = at(10.0 ** lows[0], 10.0**power)
        out.write(f'<path d="M{LEFT} {position:.0f}h{WIDTH}" stroke="#ddd"/>')
        out.write(f'<text x="{LEFT - 6}" y="{position + 4:.0f}" text-anchor="end">{10.0**power:,.10g}</text>')
    for i, (name, line) in enumerate(series.items()):
        points = " ".join("{:.1f},{:.1f}".format(*at(a, b)) for a, b in zip(x, line, strict=True))
        colour = COLOURS[i % len(COLOURS)]
        out.write(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out.write(f'<text x="{LEFT + WIDTH + 12}" y="{TOP + 12 + 18 * i}" fill="{colour}">{name}</text>')
    out.write(f'<text x="{LEFT + WIDTH / 2:.0f}" y="{TOP + HEIGHT + 36}" text-anchor="middle">{x_name}</text>')
    out.write(f'<text x="{LEFT}" y="{TOP - 6}">{y_name}</text>')
    width, height = LEFT + WIDTH + 200, TOP + HEIGHT + 50
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
    return f'{head} font-size="12"><rect width="{width}" height="{height}" fill="white"/>{out.getvalue()}</svg>\n'


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)
