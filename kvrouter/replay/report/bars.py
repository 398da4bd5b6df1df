"""Bars: the load of each worker under each policy, and bars inside table cells."""

from __future__ import annotations

from typing import Final

from kvrouter.replay.curves import Curves
from kvrouter.replay.report.words import percent, safe

__all__ = ["cell_bar", "worker_bars"]

_WIDTH: Final = 250
_HEIGHT: Final = 112
_SIDE: Final = 4
_BASE: Final = 94
_ROOM: Final = 86
_NUMBERED_MAX: Final = 16


def worker_bars(policy: str, colour: int, curves: Curves, note: str) -> str:
    """Return a small chart: how busy each worker was, and the part of it in which it computed prompts."""
    busy, prefill = curves.worker_busy_share, curves.worker_prefill_share
    most = max(1e-9, *busy)
    slot = (_WIDTH - 2 * _SIDE) / len(busy)
    gap = min(4.0, slot * 0.22)
    parts = []
    for number, (share, computing) in enumerate(zip(busy, prefill, strict=True)):
        words = (
            f"worker {number}: busy {percent(share)}, with prompts {percent(computing)}, "
            f"{curves.worker_requests[number]:,} requests, {percent(curves.worker_hit_share[number])} hits"
        )
        left = _SIDE + number * slot
        bars = _bar(left + gap / 2, slot - gap, share / most, f"rest s{colour}")
        bars += _bar(left + gap / 2, slot - gap, computing / most, f"s{colour}")
        parts.append(f"<g><title>{safe(words)}</title>{bars}</g>")
        if len(busy) <= _NUMBERED_MAX:
            parts.append(
                f'<text class="tick" x="{left + slot / 2:.1f}" y="{_HEIGHT - 5}" text-anchor="middle">{number}</text>'
            )
    at = _BASE - _ROOM * sum(prefill) / len(prefill) / most
    parts.append(f'<line class="mean" x1="0" x2="{_WIDTH}" y1="{at:.1f}" y2="{at:.1f}"/>')
    parts.append(f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{_BASE}" y2="{_BASE}"/>')
    label = safe(f"load of the workers under {policy}")
    return (
        f'<figure class="small" data-policy="{safe(policy)}"><figcaption><b>{safe(policy)}</b>'
        f"<span>{safe(note)}</span></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg></figure>'
    )


def _bar(left: float, width: float, share: float, kind: str) -> str:
    height = max(1.0, _ROOM * share)
    return (
        f'<rect class="bar {kind}" x="{left:.1f}" y="{_BASE - height:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'rx="{min(2.5, width / 3):.1f}"/>'
    )


def cell_bar(words: str, share: float, colour: int, *, margin: str = "") -> str:
    """Return a table cell with a bar of `share`, 0..1, under its words."""
    extra = f"<i>{safe(margin)}</i>" if margin else ""
    width = 100 * min(1.0, max(0.0, share))
    return (
        f'<td class="n"><span>{safe(words)}{extra}</span><div class="track">'
        f'<div class="fill s{colour}" style="width:{width:.1f}%"></div></div></td>'
    )
