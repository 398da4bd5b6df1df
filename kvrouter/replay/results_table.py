"""Findings as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kvrouter.replay.comparison import Estimate, PolicyRow
from kvrouter.replay.findings import CapacityPoint, Findings, TraceFacts, TraceFindings
from kvrouter.replay.plan import PlanRow

__all__ = ["as_text"]

# (heading, figure, form); one policy is one row.
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
_MARKS: Final = {"best": "*", "tied": "=", "behind": ""}


def as_text(findings: Findings) -> str:
    """Return what a person wants to read, trace by trace."""
    parts = [_about(found, findings) for found in findings.traces]
    runs, seeds = findings.runs, len(findings.seeds)
    parts.append(
        f"{runs} simulation{_plural(runs)} in {findings.seconds:.1f} s, {findings.cpu_seconds_per_run:.1f} s of "
        f"processor time each; {seeds} seed{_plural(seeds)} per policy"
    )
    return "\n\n".join(parts) + "\n"


def _about(found: TraceFindings, findings: Findings) -> str:
    parts = [_facts(found.facts, findings)]
    if found.rows:
        parts.append(_comparison(found.rows))
    if found.capacity:
        parts.append(_capacity(found, findings))
    if found.plan:
        parts.append(_plan(found.plan, findings))
    return "\n\n".join(parts)


def _facts(facts: TraceFacts, findings: Findings) -> str:
    kind = "" if facts.is_open else ", sessions wait for their answers"
    workers, cache = findings.fleet.workers, findings.fleet.rates.cache_tokens
    return (
        f"{facts.name}: {facts.requests:,} request{_plural(facts.requests)} in {facts.span_seconds:,.0f} s{kind}, "
        f"{facts.input_tokens / facts.requests:,.0f} prompt tokens each; "
        f"{workers} worker{_plural(workers)} with {cache:,} tokens of cache\n"
        f"load without any cache {facts.offered_load:.2f}; one pooled cache would hit "
        f"{100 * facts.bounds.pooled_share:.1f}%, one without end {100 * facts.bounds.ideal_share:.1f}%"
    )


def _comparison(rows: Sequence[PolicyRow]) -> str:
    lines = [["policy", "", *(heading for heading, _, _ in _COLUMNS)]]
    lines += [
        [row.policy, _MARKS[row.verdict], *(_cell(row.figures[figure], form) for _, figure, form in _COLUMNS)]
        for row in rows
    ]
    return _aligned(lines, left=2)


def _capacity(found: TraceFindings, findings: Findings) -> str:
    """One line for each rate; the mean TTFT and the goodput of each policy."""
    curves, goodput = found.capacity.values(), findings.goodput
    lines = [["requests/s", *found.capacity]]
    lines += [
        [f"{points[0].requests_per_second:.2f}", *(_capacity_cell(point) for point in points)]
        for points in zip(*curves, strict=True)
    ]
    lines.append([f"{100 * goodput:g}% good", *(_most(points, goodput) for points in curves)])
    return "TTFT mean, and goodput, by rate\n" + _aligned(lines)


def _capacity_cell(point: CapacityPoint) -> str:
    return f"{_short(point.ttft_mean.mean)} s {100 * point.goodput.mean:5.1f}%"


def _most(points: Sequence[CapacityPoint], goodput: float) -> str:
    """The highest of the tried rates up to which all are good enough."""
    good = ""
    for point in points:
        if point.goodput.mean < goodput:
            break
        good = f"up to {point.requests_per_second:.2f}/s"
    return good or "at no rate"


def _plan(rows: Sequence[PlanRow], findings: Findings) -> str:
    goal = f"first token within {findings.goal.ttft_seconds:g} s"
    if findings.goal.token_seconds is not None:
        goal += f" and {1000 * findings.goal.token_seconds:g} ms per token"
    lines = [["policy", "workers", "goodput", "TTFT mean", "p99", "hits"]]
    for row in rows:
        most = max(workers for workers, _ in row.tried)
        lines.append(
            [
                row.policy,
                f"more than {most}" if row.workers is None else str(row.workers),
                f"{100 * row.goodput:.2f}%",
                f"{_short(row.measures.ttft_mean)} s",
                f"{_short(row.measures.ttft_p99)} s",
                f"{100 * row.measures.hit_share:.1f}%",
            ]
        )
    return f"workers needed for {100 * findings.goodput:g}% of the requests with {goal}\n" + _aligned(lines)


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


def _aligned(lines: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Return lines in columns, of which the first `left` are texts."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _plural(count: int) -> str:
    return "" if count == 1 else "s"
