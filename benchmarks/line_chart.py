"""Line charts as SVG text, one under the other, both axes logarithmic; readable on light and dark pages.

Only what the benchmarks draw: no other axes, no interaction, no dependency.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

__all__ = ["Chart", "Line", "draw"]

_WIDTH, _HEIGHT = 640, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 34, 40
_COLOURS = ("#0a7d4f", "#c2410c", "#4f46e5")
_TEXT = "#6b7280"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve; its points are (x, y), both positive, x ascending."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Some curves over one axis."""

    title: str
    unit: str
    lines: tuple[Line, ...]


def draw(charts: Sequence[Chart], *, across: str) -> str:
    """Return the SVG document; `across` names what all charts have on their horizontal axis."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT * len(charts)}" '
        f'font-family="sans-serif" font-size="11" fill="{_TEXT}">'
    ]
    for number, chart in enumerate(charts):
        parts += [f'<g transform="translate(0 {_HEIGHT * number})">', *_chart(chart, across), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _chart(chart: Chart, across: str) -> list[str]:
    points = [point for line in chart.lines for point in line.points]
    decades_x = _decades([x for x, _ in points])
    decades_y = _decades([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        wide = _share(x, decades_x) * (_WIDTH - _LEFT - _RIGHT)
        high = _share(y, decades_y) * (_HEIGHT - _TOP - _BOTTOM)
        return round(_LEFT + wide, 1), round(_HEIGHT - _BOTTOM - high, 1)

    parts = [f'<text x="{_LEFT}" y="18" font-size="13" font-weight="bold">{escape(chart.title)}, {chart.unit}</text>']
    for exponent in range(decades_x[0], decades_x[1] + 1):
        x, _ = place(10.0**exponent, 10.0 ** decades_y[0])
        parts.append(_grid(x, _TOP, x, _HEIGHT - _BOTTOM))
        parts.append(f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 14}" text-anchor="middle">{_number(exponent)}</text>')
    for exponent in range(decades_y[0], decades_y[1] + 1):
        _, y = place(10.0 ** decades_x[0], 10.0**exponent)
        parts.append(_grid(_LEFT, y, _WIDTH - _RIGHT, y))
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{_number(exponent)}</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 10}" text-anchor="end">{escape(across)}</text>')
    for number, line in enumerate(chart.lines):
        parts += _line(line, [place(x, y) for x, y in line.points], _COLOURS[number % len(_COLOURS)], number)
    return parts


def _line(line: Line, places: list[tuple[float, float]], colour: str, number: int) -> list[str]:
    path = " ".join(f"{x},{y}" for x, y in places)
    dots = [f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>' for x, y in places]
    legend = _LEFT + 180 * number
    return [
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
        *dots,
        f'<circle cx="{legend + 4}" cy="{_HEIGHT - 14}" r="4" fill="{colour}"/>',
        f'<text x="{legend + 13}" y="{_HEIGHT - 10}">{escape(line.name)}</text>',
    ]


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _share(value: float, decades: tuple[int, int]) -> float:
    return (math.log10(value) - decades[0]) / (decades[1] - decades[0])


def _grid(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{_TEXT}" stroke-opacity="0.25"/>'


def _number(exponent: int) -> str:
    for unit, step in (("G", 9), ("M", 6), ("k", 3)):
        if exponent >= step:
            return f"{10 ** (exponent - step)}{unit}"
    return f"{10.0**exponent:g}"
