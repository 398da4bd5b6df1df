"""From the medians of the proxy benchmark to the rows of its report."""

from collections.abc import Sequence
from typing import Any

from benchmarks.proxy_rounds import DIRECT, Results
from benchmarks.report import Report

__all__ = ["add_rows"]

_FULL = ("1k", "1k-conversation", "1k-text", "32k", "32k-conversation", "32k-text")
_MICROSECONDS, _MILLISECONDS = 1e6, 1e3
# Above this share of what the workers and the load generator can do without a router, they limit the figure too.
_CAPACITY_SHARE = 0.8


def add_rows(report: Report, results: Results, peers: Sequence[str], *, ours: str) -> None:
    """Add a row for every figure and every peer that has one, or the reason why it has none."""
    report.conditions["direct"] = {
        name: results.value(name, DIRECT, "rate") for name in (*_FULL, "streams") if results.value(name, DIRECT, "rate")
    }
    for peer in peers:
        for scenario in _FULL:
            if _compared(results, scenario, peer):
                _rate(report, results, f"requests-per-second-{scenario}", scenario, ours, peer)
                _cpu(report, results, f"cpu-per-request-{scenario}", scenario, ours, peer)
        if results.all("streams", peer, "rate") or results.reason("streams", peer):
            _rate(report, results, "streams-per-second", "streams", ours, peer)
            _cpu(report, results, "cpu-per-stream", "streams", ours, peer)
        for measure in ("p50", "p99"):
            _added(report, results, f"added-latency-{measure}", ("latency", measure), ours, peer)
        for measure in ("p50", "p99") if results.all("first-chunk", DIRECT, "first-p50") else ():
            _added(report, results, f"added-first-chunk-{measure}", ("first-chunk", f"first-{measure}"), ours, peer)


def _compared(results: Results, scenario: str, peer: str) -> bool:
    """Not every candidate is in every scenario; the basic two have a row for every peer, present or not."""
    return scenario in {"1k", "32k"} or bool(results.all(scenario, peer, "rate"))


def _rate(report: Report, results: Results, name: str, scenario: str, ours: str, peer: str) -> None:
    extra: dict[str, Any] = {}
    direct = results.value(scenario, DIRECT, "rate") or results.value(scenario.partition("-")[0], DIRECT, "rate")
    for one in (ours, peer):
        rates = results.all(scenario, one, "rate")
        if rates:
            extra["ours_rounds" if one == ours else "peer_rounds"] = [round(rate) for rate in rates]
        # One process of the streaming workers is reached directly, so its capacity is no bound there.
        if rates and direct and scenario != "streams" and max(rates) > direct * _CAPACITY_SHARE:
            extra["near_capacity"] = f"{direct:.0f} requests/s without a router"
    ours_value, peer_value = results.value(scenario, ours, "rate"), results.value(scenario, peer, "rate")
    unit = "streams/s" if scenario == "streams" else "requests/s"
    report.row(name, unit, ours_value, peer_value, peer, reason=_reason(results, scenario, ours, peer), **extra)


def _cpu(report: Report, results: Results, name: str, scenario: str, ours: str, peer: str) -> None:
    values = [results.value(scenario, one, "cpu") for one in (ours, peer)]
    ours_value, peer_value = (None if each is None else each * _MICROSECONDS for each in values)
    reason = _reason(results, scenario, ours, peer)
    report.row(name, "µs", ours_value, peer_value, peer, reason=reason, less_is_better=True)


def _added(report: Report, results: Results, name: str, what: tuple[str, str], ours: str, peer: str) -> None:
    scenario, measure = what
    direct = results.value(scenario, DIRECT, measure)
    values = [results.value(scenario, one, measure) for one in (ours, peer)]
    added = [None if each is None or direct is None else (each - direct) * _MILLISECONDS for each in values]
    extra = {} if direct is None else {"direct": float(f"{direct * _MILLISECONDS:.4g}")}
    reason = _reason(results, scenario, ours, peer)
    report.row(name, "ms", added[0], added[1], peer, reason=reason, less_is_better=True, **extra)


def _reason(results: Results, scenario: str, ours: str, peer: str) -> str | None:
    """Say which side has no figure, and why."""
    reasons = [results.reason(scenario, peer)]
    if results.reason(scenario, ours) is not None:
        reasons.append(f"{ours}: {results.reason(scenario, ours)}")
    return "; ".join(reason for reason in reasons if reason is not None) or None
