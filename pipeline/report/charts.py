"""Small drawings as inline SVG: they need neither scripts nor files beside the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

Point = tuple[float, float]

WIDTH, HEIGHT = 320, 190
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 28
TICKS = 4


def bar(value: float, low: float, high: float, mark: float | None = None) -> Markup:
    """A horizontal bar from `low` to `value` on an axis that ends at `high`, with a tick at `mark`."""
    width = 100.0
    parts = [
        f'<svg class="bar" viewBox="0 0 {width:g} 10" preserveAspectRatio="none" aria-hidden="true">',
        f'<rect class="track" width="{width:g}" height="10"/>',
        f'<rect class="fill" width="{_place(value, low, high) * width:.2f}" height="10"/>',
    ]
    if mark is not None:
        parts.append(f'<rect class="mark" x="{_place(mark, low, high) * (width - 1.5):.2f}" width="1.5" height="10"/>')
    return Markup("".join([*parts, "</svg>"]))


def histogram(heights: Sequence[float]) -> Markup:
    """Columns side by side; nothing for no heights."""
    top = max(heights, default=0)
    if top <= 0:
        return Markup("")
    columns = "".join(
        f'<rect class="fill" x="{i * 10 + 0.5:g}" y="{20 - 20 * h / top:.2f}" width="9" height="{20 * h / top:.2f}"/>'
        for i, h in enumerate(heights)
    )
    box = f"0 0 {len(heights) * 10} 20"
    return Markup(
        f'<svg class="histogram" viewBox="{box}" preserveAspectRatio="none" aria-hidden="true">{columns}</svg>'
    )


def lines(title: str, series: Mapping[str, Sequence[Point]], diagonal: bool = False) -> Markup:
    """A line chart with axes and a legend.

    Args:
        title: Heading, and what a screen reader says.
        series: Points (x, y) by name; those that are not finite are left out.
        diagonal: Whether to draw y = x, as the line of exact calibration; both axes then go from 0 to 1.
    """
    finite = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    shown = [p for points in finite.values() for p in points]
    if not shown:
        return Markup("")
    x_range = (0.0, 1.0) if diagonal else _range([x for x, _ in shown])
    y_range = (0.0, 1.0) if diagonal else _range([y for _, y in shown])
    marks = [_axes(x_range, y_range, integers=not diagonal)]
    if diagonal:
        marks.append(_polyline([(0, 0), (1, 1)], x_range, y_range, "ideal"))
    for index, points in enumerate(finite.values()):
        marks.append(_polyline(points, x_range, y_range, f"series{index}"))
        marks += [_dot(point, x_range, y_range, f"series{index}") for point in points]
    legend = " ".join(f'<span class="key series{i}">{escape(name)}</span>' for i, name in enumerate(finite))
    return Markup(
        f'<figure><figcaption>{escape(title)} <span class="legend">{legend}</span></figcaption>'
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(marks)}</svg></figure>"
    )


def _place(value: float, low: float, high: float) -> float:
    if high <= low or math.isnan(value):
        return 0.0
    return min(max((value - low) / (high - low), 0.0), 1.0)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        return low - 0.5, high + 0.5
    return low, high


def _at(point: Point, x_range: Point, y_range: Point) -> Point:
    x = LEFT + _place(point[0], *x_range) * (WIDTH - LEFT - RIGHT)
    y = HEIGHT - BOTTOM - _place(point[1], *y_range) * (HEIGHT - TOP - BOTTOM)
    return x, y


def _polyline(points: Sequence[Point], x_range: Point, y_range: Point, css: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (_at(p, x_range, y_range) for p in points))
    return f'<polyline class="line {css}" points="{path}"/>'


def _dot(point: Point, x_range: Point, y_range: Point, css: str) -> str:
    x, y = _at(point, x_range, y_range)
    label = f"{point[0]:.4g}: {point[1]:.4f}"
    return f'<circle class="dot {css}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{label}</title></circle>'


def _axes(x_range: Point, y_range: Point, integers: bool) -> str:
    marks = []
    for i in range(TICKS + 1):
        y_value = y_range[0] + (y_range[1] - y_range[0]) * i / TICKS
        _, y = _at((x_range[0], y_value), x_range, y_range)
        marks.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(y_value)}</text>')
    for x_value in _x_ticks(x_range, integers):
        x, _ = _at((x_value, y_range[0]), x_range, y_range)
        marks.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{x_value:g}</text>')
    return "".join(marks)


def _tick(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _x_ticks(x_range: Point, integers: bool) -> list[float]:
    if not integers:
        return [x_range[0] + (x_range[1] - x_range[0]) * i / TICKS for i in range(TICKS + 1)]
    first, last = math.ceil(x_range[0]), math.floor(x_range[1])
    return [float(x) for x in range(first, last + 1, max(1, math.ceil((last - first) / 8)))]
