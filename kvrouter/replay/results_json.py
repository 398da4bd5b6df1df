"""Findings as one object for programs. Names are those of the values they come from; times are in seconds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from kvrouter import __version__
from kvrouter.replay.comparison import Estimate, PolicyRow
from kvrouter.replay.findings import CapacityPoint, Findings, TraceFindings
from kvrouter.replay.plan import PlanRow

__all__ = ["as_document"]


def as_document(findings: Findings) -> dict[str, Any]:
    """Return plain values. A `margin` is the half-width of the 95 % interval over seeds, null where there was one."""
    fleet = asdict(findings.fleet)
    fleet.pop("settings")
    return {
        "version": __version__,
        "fleet": fleet,
        "goal": asdict(findings.goal) | {"goodput": findings.goodput},
        "seeds": list(findings.seeds),
        "calibrated_by": findings.calibrated_by,
        "traces": [_trace(each) for each in findings.traces],
        "seconds": round(findings.seconds, 3),
        "runs": findings.runs,
        "cpu_seconds_per_run": round(findings.cpu_seconds_per_run, 3),
    }


def _trace(found: TraceFindings) -> dict[str, Any]:
    return {
        **asdict(found.facts),
        "policies": [_row(row, found) for row in found.rows],
        "capacity": {policy: [_point(point) for point in points] for policy, points in found.capacity.items()},
        "plan": [_plan(row) for row in found.plan],
    }


def _row(row: PolicyRow, found: TraceFindings) -> dict[str, Any]:
    curves = found.curves.get(row.policy)
    return {
        "policy": row.policy,
        "verdict": row.verdict,
        "figures": {name: _estimate(each) for name, each in row.figures.items()},
        "curves": None if curves is None else asdict(curves),
    }


def _point(point: CapacityPoint) -> dict[str, Any]:
    return {
        "scale": point.scale,
        "requests_per_second": point.requests_per_second,
        "ttft_mean": _estimate(point.ttft_mean),
        "ttft_p99": _estimate(point.ttft_p99),
        "goodput": _estimate(point.goodput),
    }


def _plan(row: PlanRow) -> dict[str, Any]:
    return {
        "policy": row.policy,
        "workers": row.workers,
        "goodput": row.goodput,
        "tried": [{"workers": workers, "goodput": goodput} for workers, goodput in row.tried],
        "ttft_mean": row.measures.ttft_mean,
        "ttft_p99": row.measures.ttft_p99,
        "hit_share": row.measures.hit_share,
    }


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    return {"mean": estimate.mean, "margin": estimate.margin}
