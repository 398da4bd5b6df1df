"""Where a value is on an axis, and which values deserve a label."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Final

__all__ = ["Scale", "linear", "logarithmic"]

_LABELS_MAX: Final = 11


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis from `low` to `high`, drawn from `begin` to `end` pixels. `ticks` are the labelled values."""

    low: float
    high: float
    begin: float
    end: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def at(self, value: float) -> float:
        """Return the pixel of a value; values beyond the axis are at its end."""
        value = min(max(value, self.low), self.high)
        if self.is_log:
            share = (log10(value) - log10(self.low)) / (log10(self.high) - log10(self.low))
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)


def linear(low: float, high: float, begin: float, end: float, *, ticks: int = 5, tight: bool = False) -> Scale:
    """Return an axis that reaches at least from `low` to `high`, with about so many round ticks.

    A `tight` one ends where the values do.
    """
    if not high > low:
        high = low + 1.0
    step = _round_step((high - low) / max(1, ticks))
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    values = tuple(round(step * number, 12) for number in range(first, last + 1))
    if tight:
        return Scale(low, high, begin, end, tuple(value for value in values if low <= value <= high))
    return Scale(values[0], values[-1], begin, end, values)


def logarithmic(low: float, high: float, begin: float, end: float) -> Scale:
    """Return an axis from one of 1, 2, 5 times a power of ten to another; `low` must be above 0.

    All of them are labelled, or only the powers where there are many.
    """
    high = max(high, low * 1.5)
    first, last = floor(log10(low)) - 1, ceil(log10(high)) + 1
    values = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    lowest = max(value for value in values if value <= low * 1.0001)
    highest = min(value for value in values if value >= high * 0.9999)
    inside = [value for value in values if lowest <= value <= highest]
    powers = [value for value in inside if round(log10(value), 6) == round(log10(value))]
    ticks = inside if len(inside) <= _LABELS_MAX else powers
    return Scale(lowest, highest, begin, end, tuple(ticks), is_log=True)


def _round_step(step: float) -> float:
    """Return the smallest of 1, 2, 2.5, 5 times a power of ten that is at least `step`."""
    power = 10.0 ** floor(log10(step))
    for factor in (1.0, 2.0, 2.5, 5.0, 10.0):
        if factor * power >= step * 0.999:
            return factor * power
    return 10.0 * power
