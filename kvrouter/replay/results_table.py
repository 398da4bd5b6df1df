"""Results of a replay for terminals and for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from kvrouter.replay.comparison import Estimate, PolicyRow

__all__ = ["as_document", "as_table"]

# (heading, figure, format); one policy is one row.
_COLUMNS: Final = (
    ("hits", "hit_share", "share"),
    ("of bound", "pooled_efficiency", "share"),
    ("TTFT mean", "ttft_mean", "seconds"),
    ("p50", "ttft_p50", "seconds"),
    ("p90", "ttft_p90", "seconds"),
    ("p99", "ttft_p99", "seconds"),
    ("per token", "token_mean", "milliseconds"),
    ("goodput", "goodput", "share"),
    ("imbalance", "imbalance", "ratio"),
    ("promise error", "promise_error", "share"),
    ("TTFT error", "prediction_error", "share"),
)


def as_table(rows: Sequence[PolicyRow]) -> str:
    """Return one line for each policy, the best ones marked."""
    lines = [["policy", "", *(heading for heading, _, _ in _COLUMNS)]]
    for row in rows:
        mark = {"best": "*", "tied": "=", "behind": ""}[row.verdict]
        lines.append([row.policy, mark, *(_cell(row.figures[figure], form) for _, figure, form in _COLUMNS)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(_aligned(cell, widths[at], at) for at, cell in enumerate(line)).rstrip() for line in lines]
    return "\n".join(text)


def as_document(rows: Iterable[PolicyRow]) -> list[dict[str, Any]]:
    """Return the rows as plain values; `margin` is null where there was one seed."""
    return [
        {
            "policy": row.policy,
            "verdict": row.verdict,
            "seeds": list(row.seeds),
            "figures": {name: {"mean": each.mean, "margin": each.margin} for name, each in row.figures.items()},
        }
        for row in rows
    ]


def _cell(estimate: Estimate, form: str) -> str:
    match form:
        case "share":
            return _with_margin(f"{100 * estimate.mean:.1f}", estimate, 100.0, "%")
        case "seconds":
            return _with_margin(_short(estimate.mean), estimate, 1.0, " s")
        case "milliseconds":
            return _with_margin(f"{1000 * estimate.mean:.0f}", estimate, 1000.0, " ms")
    return f"{estimate.mean:.2f}"


def _with_margin(text: str, estimate: Estimate, factor: float, unit: str) -> str:
    """Append how sure a figure is, where that is not small against it."""
    margin = estimate.margin
    if margin is None or margin < 0.02 * abs(estimate.mean) or margin * factor < 0.005:
        return text + unit
    return f"{text} ±{_short(margin * factor)}{unit}"


def _short(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < 2 else cell.rjust(width)
