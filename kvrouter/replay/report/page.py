"""Puts the report together: for each trace a verdict in a sentence, the figures, and the plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Final

from kvrouter import __version__
from kvrouter.replay.comparison import Estimate, PolicyRow
from kvrouter.replay.findings import Findings, TraceFacts, TraceFindings
from kvrouter.replay.report.bars import cell_bar, worker_bars
from kvrouter.replay.report.plots import capacity_charts, over_time, plan_chart, ttft_distribution
from kvrouter.replay.report.words import percent, round_percent, round_seconds, safe, seconds, thousands

__all__ = ["as_html"]

_COLOURS: Final = 12
# Heading, figure, and how it is written.
_COLUMNS: Final = (
    ("TTFT mean", "ttft_mean", "seconds"),
    ("p50", "ttft_p50", "seconds"),
    ("p90", "ttft_p90", "seconds"),
    ("p99", "ttft_p99", "seconds"),
    ("hits", "hit_share", "share"),
    ("of bound", "pooled_efficiency", "share"),
    ("goodput", "goodput", "share"),
    ("per token", "token_mean", "seconds"),
    ("imbalance", "imbalance", "ratio"),
    ("promise error", "promise_error", "share"),
    ("TTFT error", "prediction_error", "share"),
)
# Figures that have a bar, drawn against the largest of their column.
_BARS: Final = {"ttft_mean", "ttft_p99", "hit_share", "goodput"}


def as_html(findings: Findings) -> str:
    """Return the whole report."""
    style = (files(__package__) / "page.css").read_text(encoding="utf-8")
    script = (files(__package__) / "page.js").read_text(encoding="utf-8")
    names = ", ".join(found.facts.name for found in findings.traces)
    body = "".join(_section(found, findings) for found in findings.traces)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Replay of {safe(names)}</title><style>\n{style}</style></head><body><main>\n"
        f"<header><h1>Replay of {safe(names)}</h1><p>{safe(_subtitle(findings))}</p></header>\n"
        f"{body}{_footer(findings)}</main><script>\n{script}</script></body></html>\n"
    )


def _subtitle(findings: Findings) -> str:
    seeds = len(findings.seeds)
    return (
        f"{findings.runs:,} simulations of {findings.fleet.workers} workers behind kvrouter's own routing and index, "
        f"{seeds} seed{'s' if seeds > 1 else ''} for each policy. All policies played the same requests at the same "
        "times."
    )


def _section(found: TraceFindings, findings: Findings) -> str:
    policies = [row.policy for row in found.rows] or [row.policy for row in found.plan] or list(found.capacity)
    colours = {policy: number % _COLOURS for number, policy in enumerate(policies)}
    heading = f"<h2>{safe(found.facts.name)}</h2>" if len(findings.traces) > 1 else ""
    parts = [f'<section>{heading}<p class="lead">{safe(_facts(found.facts))}</p>']
    if found.rows:
        parts += [_verdict(found.rows), _tiles(found, findings)]
    parts.append(_legend(colours))
    if found.rows:
        parts.append(_table(found.rows, colours))
        curves = found.curves
        drawn = ttft_distribution(curves, colours, findings.goal) + "".join(over_time(curves, colours))
        parts.append(f'<h3>Time to first token, and hits</h3><div class="charts">{drawn}</div>')
        parts.append(_workers(found, colours))
    if found.capacity:
        drawn = "".join(capacity_charts(found.capacity, colours, findings))
        parts.append(f'<h3>How much more the fleet would bear</h3><div class="charts">{drawn}</div>')
    if found.plan:
        parts.append(f"<h3>How many workers are needed</h3>{_plan(found, findings, colours)}")
    return "".join(parts) + "</section>\n"


def _facts(facts: TraceFacts) -> str:
    kind = "" if facts.is_open else " Users wait for their answers before they go on."
    return (
        f"{facts.requests:,} requests over {seconds(facts.span_seconds)}, "
        f"{thousands(round(facts.input_tokens / facts.requests))} prompt and "
        f"{thousands(round(facts.output_tokens / facts.requests))} output tokens each on average.{kind} Without any "
        f"cache the prompts would be {facts.offered_load:.2f} times the work that the workers can do; one pooled cache "
        f"of the fleet's size would save {percent(facts.bounds.pooled_share)} of it, one without end "
        f"{percent(facts.bounds.ideal_share)}."
    )


def _verdict(rows: Sequence[PolicyRow]) -> str:
    ordered = sorted(rows, key=lambda row: row.figures["ttft_mean"].mean)
    best, rest = ordered[0], ordered[1:]
    mean = best.figures["ttft_mean"].mean
    text = f"<b>{safe(best.policy)}</b> answers first: {seconds(mean)} to the first token on average"
    tied = [safe(row.policy) for row in rest if row.verdict == "tied"]
    behind = [row for row in rest if row.verdict == "behind"]
    if tied:
        text += f", which chance alone may separate from {' and '.join(tied)}"
    if behind:
        other = behind[0].figures["ttft_mean"].mean
        share = 1 - mean / other if other else 0.0
        text += f"; {percent(share)} less than {safe(behind[0].policy)} with {seconds(other)}"
    return f'<p class="verdict">{text}.</p>'


def _tiles(found: TraceFindings, findings: Findings) -> str:
    best = min(found.rows, key=lambda row: row.figures["ttft_mean"].mean)
    mean, p99 = best.figures["ttft_mean"], best.figures["ttft_p99"]
    hits, good = best.figures["hit_share"].mean, best.figures["goodput"].mean
    goal = f"first token within {round_seconds(findings.goal.ttft_seconds)}"
    return (
        '<div class="tiles">'
        + _tile("mean time to first token", seconds(mean.mean), _margin(mean, "seconds") or best.policy)
        + _tile("99th percentile", seconds(p99.mean), _margin(p99, "seconds") or best.policy)
        + _tile("prompt tokens from cache", percent(hits), f"of {percent(found.facts.bounds.pooled_share)} possible")
        + _tile(goal, percent(good), "of all requests")
        + _tile("busiest worker", f"{best.figures['imbalance'].mean:.2f}", "times the mean")
        + "</div>"
    )


def _tile(name: str, value: str, note: str) -> str:
    return f'<div class="tile"><span>{safe(name)}</span><b>{safe(value)}</b><small>{safe(note)}</small></div>'


def _legend(colours: dict[str, int]) -> str:
    boxes = "".join(
        f'<label class="s{colour}"><input type="checkbox" checked value="{safe(policy)}"><i></i>'
        f"<span>{safe(policy)}</span></label>"
        for policy, colour in colours.items()
    )
    return f'<div class="legend">{boxes}</div>'


def _table(rows: Sequence[PolicyRow], colours: Mapping[str, int]) -> str:
    columns = [column for column in _COLUMNS if column[1] in rows[0].figures]
    most = {figure: max(row.figures[figure].mean for row in rows) for _, figure, _ in columns}
    body = []
    for row in sorted(rows, key=lambda row: row.figures["ttft_mean"].mean):
        badge = "" if row.verdict == "behind" else f'<span class="badge {row.verdict}">{row.verdict}</span>'
        cells = [
            _cell(row.figures[figure], form, most[figure], figure, colours[row.policy]) for _, figure, form in columns
        ]
        body.append(_table_row(row.policy, colours[row.policy], badge, cells))
    return _sheet(["policy", *(heading for heading, _, _ in columns)], body)


def _cell(estimate: Estimate, form: str, most: float, figure: str, colour: int) -> str:
    words, margin = _words(estimate.mean, form), _margin(estimate, form)
    if figure in _BARS:
        return cell_bar(words, estimate.mean / most if most else 0.0, colour, margin=margin)
    return f'<td class="n"><span>{safe(words)}<i>{safe(margin)}</i></span></td>'


def _table_row(policy: str, colour: int, badge: str, cells: Sequence[str]) -> str:
    name = f'<td class="s{colour}"><span class="swatch"></span>{safe(policy)}{badge}</td>'
    return f'<tr data-policy="{safe(policy)}">{name}{"".join(cells)}</tr>'


def _sheet(headings: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{safe(heading)}</th>" for heading in headings)
    return f'<div class="sheet"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _workers(found: TraceFindings, colours: dict[str, int]) -> str:
    figures = {row.policy: row.figures for row in found.rows}
    bars = [
        worker_bars(name, colours[name], curves, _imbalance(figures[name])) for name, curves in found.curves.items()
    ]
    note = (
        "How long each worker was busy, computing prompts (dark) or only continuing answers (light); the dotted line "
        "is the mean of the dark part. Bars of one policy have the same scale."
    )
    return f'<h3>Load of each worker</h3><p class="lead">{note}</p><div class="smalls">{"".join(bars)}</div>'


def _imbalance(figures: Mapping[str, Estimate]) -> str:
    busiest, variation = figures["imbalance"].mean, figures["prefill_variation"].mean
    return f"busiest {busiest:.2f} times the mean, prompts vary by {percent(variation)}"


def _plan(found: TraceFindings, findings: Findings, colours: Mapping[str, int]) -> str:
    rows = []
    for row in found.plan:
        needed = f"more than {max(at for at, _ in row.tried)}" if row.workers is None else str(row.workers)
        measures = row.measures
        words = (
            percent(row.goodput),
            seconds(measures.ttft_mean),
            seconds(measures.ttft_p99),
            percent(measures.hit_share),
        )
        cells = [f'<td class="n"><b>{needed}</b></td>', *(f'<td class="n">{each}</td>' for each in words)]
        rows.append(_table_row(row.policy, colours[row.policy], "", cells))
    good, within = round_percent(findings.goodput), round_seconds(findings.goal.ttft_seconds)
    goal = f"{good} of the requests with a first token within {within}"
    if findings.goal.token_seconds is not None:
        goal += f" and at most {round_seconds(findings.goal.token_seconds)} for each further one"
    return (
        f'<p class="lead">For {safe(goal)}.</p>'
        f"{_sheet(['policy', 'workers', 'goodput', 'TTFT mean', 'p99', 'hits'], rows)}"
        f'<div class="charts" style="margin-top:14px">{plan_chart(found.plan, colours, findings)}</div>'
    )


def _footer(findings: Findings) -> str:
    fleet = findings.fleet
    rates = asdict(fleet.rates)
    facts: list[tuple[str, str]] = [
        ("workers", str(fleet.workers)),
        ("router replicas", str(fleet.routers) + ("" if fleet.replica_state else ", each for itself")),
        ("KV cache of a worker", f"{thousands(rates['cache_tokens'])} tokens"),
        ("prefill", f"{thousands(rates['prefill_tokens_per_second'])} tokens/s"),
        (
            "twice as slow after",
            f"{thousands(rates['attention_tokens'])} tokens" if rates["attention_tokens"] else "never",
        ),
        ("decode step", seconds(rates["step_seconds"] + rates["decode_seconds"])),
        ("and each request in it", f"{1000 * rates['decode_seconds_per_request']:.2f} ms"),
        ("requests at a time", str(rates["running_max"])),
        ("tokens of a step", thousands(rates["step_tokens_max"])),
        ("delay of events", seconds(fleet.event_delay_seconds) if fleet.event_delay_seconds else "none"),
        ("loss of events", percent(fleet.event_loss) if fleet.event_loss else "none"),
        ("restarts", f"every {seconds(fleet.restart_every_seconds)}" if fleet.restart_every_seconds else "none"),
    ]
    if findings.calibrated_by is not None:
        facts.append(("speed measured at", findings.calibrated_by))
    listed = "".join(_fact(*each) for each in facts)
    return (
        f"<h3>The simulated fleet</h3><dl>{listed}</dl>"
        "<footer><p>Hits are prompt tokens that were cached where the request came to. The bound is one "
        "least-recently-used cache as large as all workers' together. TTFT is the time from arrival to first token. "
        "Goodput is the share of requests that met the goal. Promise error is how far the router was off about the "
        "cached tokens of a prompt, TTFT error how far about the time. ± is the 95 % interval over seeds; a policy is "
        "tied with the best if the difference, paired by seed, may be chance.</p>"
        f"<p>kvrouter {safe(__version__)}; {findings.runs:,} simulations in {seconds(findings.seconds)}.</p></footer>"
    )


def _fact(name: str, value: str) -> str:
    return f"<div><dt>{safe(name)}</dt><dd>{safe(value)}</dd></div>"


def _words(value: float, form: str) -> str:
    match form:
        case "seconds":
            return seconds(value)
        case "share":
            return percent(value)
    return f"{value:.2f}"


def _margin(estimate: Estimate, form: str) -> str:
    """Return how sure a figure is, where that is not small against it."""
    margin = estimate.margin
    if margin is None or margin < 0.01 * abs(estimate.mean):
        return ""
    return f"±{_words(margin, form)}"
