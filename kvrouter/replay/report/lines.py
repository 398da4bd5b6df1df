"""Line charts as SVG: one line for each policy, axes, a grid, and what the script needs to tell values."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from kvrouter.replay.report.scales import Scale, linear, logarithmic
from kvrouter.replay.report.words import safe

__all__ = ["Chart", "Series", "line_chart"]

WIDTH: Final = 520
HEIGHT: Final = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 14, 14, 44
_LOG_FROM: Final = 25.0
_X_TICKS: Final = 6
_Y_TICKS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: its name, the number of its colour, and its points; None ends a stretch."""

    name: str
    colour: int
    points: Sequence[tuple[float, float | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What a chart shows.

    `x_words` and `y_words` tell a value under the pointer, `x_tick` and `y_tick` label the axes. `x_log` and `y_log`
    None: logarithmic if values differ much. `y_bounds` fixes the axis. The marks are values of x, or of y, that mean
    something, with what they mean.
    """

    title: str
    note: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_words: Callable[[float], str]
    y_words: Callable[[float], str]
    x_tick: Callable[[float], str]
    y_tick: Callable[[float], str]
    x_log: bool | None = False
    y_log: bool | None = False
    y_bounds: tuple[float, float] | None = None
    x_marks: Sequence[tuple[float, str]] = ()
    y_marks: Sequence[tuple[float, str]] = ()
    width: int = WIDTH


def line_chart(chart: Chart) -> str:
    """Return the chart as a figure; empty where there is nothing to draw."""
    xs = [x for line in chart.series for x, y in line.points if y is not None]
    ys = [y for line in chart.series for _, y in line.points if y is not None]
    if not xs:
        return ""
    x, y = _x_scale(chart, xs), _y_scale(chart, ys)
    drawn = [*_axes(chart, x, y), *_marks(chart, x, y), *(_line(line, x, y) for line in chart.series)]
    return (
        f'<figure class="chart{" wide" if chart.width > WIDTH else ""}"><figcaption><b>{safe(chart.title)}</b>'
        f"<span>{safe(chart.note)}</span></figcaption>"
        f'<svg viewBox="0 0 {chart.width} {HEIGHT}" role="img" aria-label="{safe(chart.title)}" '
        f"data-values='{_values(chart, x, y)}'>{''.join(drawn)}"
        f'<line class="cursor" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/></svg></figure>'
    )


def _x_scale(chart: Chart, values: Sequence[float]) -> Scale:
    begin, end = float(_LEFT), float(chart.width - _RIGHT)
    if _is_log(values, chart.x_log):
        return logarithmic(min(values), max(values), begin, end)
    return linear(min(0.0, *values), max(values), begin, end, ticks=_X_TICKS, tight=True)


def _y_scale(chart: Chart, values: Sequence[float]) -> Scale:
    begin, end = float(HEIGHT - _BOTTOM), float(_TOP)
    if chart.y_bounds is not None:
        return linear(*chart.y_bounds, begin, end, ticks=_Y_TICKS)
    if _is_log(values, chart.y_log):
        return logarithmic(min(values), max(values), begin, end)
    return linear(min(0.0, *values), max(values), begin, end, ticks=_Y_TICKS)


def _is_log(values: Sequence[float], wanted: bool | None) -> bool:  # noqa: FBT001 - what the chart says
    """Whether an axis is logarithmic: as wanted, or where nothing is said, because the values differ much."""
    least = min(values)
    return least > 0 and (max(values) > _LOG_FROM * least if wanted is None else wanted)


def _axes(chart: Chart, x: Scale, y: Scale) -> Iterable[str]:
    for tick in y.ticks:
        at = y.at(tick)
        yield f'<line class="grid" x1="{_LEFT}" x2="{chart.width - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        words = safe(chart.y_tick(tick))
        yield f'<text class="tick" x="{_LEFT - 7}" y="{at + 3.5:.1f}" text-anchor="end">{words}</text>'
    bottom = HEIGHT - _BOTTOM
    yield f'<line class="axis" x1="{_LEFT}" x2="{chart.width - _RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    taken = -1e9
    for tick in x.ticks:
        at, words = x.at(tick), chart.x_tick(tick)
        half = 3.4 * len(words)
        if at - half < taken:
            continue
        taken = at + half + 6
        yield f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        yield f'<text class="tick" x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{safe(words)}</text>'
    middle = (_LEFT + chart.width - _RIGHT) / 2
    yield f'<text class="label" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{safe(chart.x_label)}</text>'
    yield (
        f'<text class="label" transform="translate(11 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{safe(chart.y_label)}</text>"
    )


def _marks(chart: Chart, x: Scale, y: Scale) -> Iterable[str]:
    for value, words in chart.x_marks:
        if x.low <= value <= x.high:
            at = x.at(value)
            yield f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
            side, anchor = (-5, "end") if at > chart.width * 0.7 else (5, "start")
            yield (
                f'<text class="mark-words" x="{at + side:.1f}" y="{HEIGHT - _BOTTOM - 7}" text-anchor="{anchor}">'
                f"{safe(words)}</text>"
            )
    for value, words in chart.y_marks:
        if y.low <= value <= y.high:
            at = y.at(value)
            yield f'<line class="mark" x1="{_LEFT}" x2="{chart.width - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            yield (
                f'<text class="mark-words" x="{chart.width - _RIGHT - 4}" y="{at + (14 if at < 40 else -5):.1f}" '
                f'text-anchor="end">{safe(words)}</text>'
            )


def _line(series: Series, x: Scale, y: Scale) -> str:
    path, pen = [], "M"
    for at, value in series.points:
        if value is None:
            pen = "M"
            continue
        path.append(f"{pen}{x.at(at):.1f} {y.at(value):.1f}")
        pen = "L"
    return (
        f'<path class="line s{series.colour}" data-policy="{safe(series.name)}" d="{"".join(path)}">'
        f"<title>{safe(series.name)}</title></path>"
    )


def _values(chart: Chart, x: Scale, y: Scale) -> str:
    """Return what a pointer over the chart tells: for each line the pixels and words of its points."""
    lines = [
        {
            "name": line.name,
            "colour": line.colour,
            "points": [
                [round(x.at(at), 1), round(y.at(value), 1), chart.x_words(at), chart.y_words(value)]
                for at, value in line.points
                if value is not None
            ],
        }
        for line in chart.series
    ]
    return safe(json.dumps({"x": chart.x_label, "lines": lines}, ensure_ascii=False))
