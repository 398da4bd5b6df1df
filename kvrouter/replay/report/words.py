"""Numbers as people write them, and text that is safe in HTML."""

from __future__ import annotations

from html import escape

__all__ = ["percent", "round_percent", "round_seconds", "safe", "seconds", "thousands"]


def safe(text: object) -> str:
    """Return text for HTML, also inside quotes."""
    return escape(str(text), quote=True)


def seconds(value: float) -> str:
    """Return a time in the unit that suits it: `85 ms`, `1.83 s`, `27 s`, `12 min`."""
    if value < 0.0995:
        return f"{1000 * value:.0f} ms" if value >= 0.00995 or value == 0 else f"{1000 * value:.1f} ms"
    if value < 0.9995:
        return f"{1000 * value:.0f} ms"
    if value < 9.995:
        return f"{value:.2f} s"
    if value < 99.5:
        return f"{value:.1f} s"
    return f"{value:.0f} s" if value < 600 else f"{value / 60:.0f} min"


def round_seconds(value: float) -> str:
    """Return a round time, such as an axis or a goal has, without digits that say nothing: `2 s`, `50 ms`."""
    if value < 1 and value != 0:
        return f"{1000 * value:g} ms"
    return f"{value:g} s" if value < 3600 else f"{value / 60:g} min"


def round_percent(value: float) -> str:
    """Return a round share: `25%`."""
    return f"{round(100 * value, 2):g}%"


def percent(value: float) -> str:
    """Return a share in percent, with one digit."""
    return f"{100 * value:.1f}%"


def thousands(value: float) -> str:
    """Return a large number in short: `12k`, `1.5M`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"
