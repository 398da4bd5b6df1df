"""Everything that one call of `kvrouter replay` found out, as values; table, JSON and HTML report are made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvrouter.replay.bounds import Bounds, bounds_of
from kvrouter.replay.comparison import Estimate, PolicyRow
from kvrouter.replay.curves import Curves
from kvrouter.replay.fleet_simulation import FleetOptions
from kvrouter.replay.measures import Goal
from kvrouter.replay.plan import PlanRow
from kvrouter.replay.trace import Trace

__all__ = ["CapacityPoint", "Findings", "TraceFacts", "TraceFindings", "facts_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFacts:
    """One trace as it was played (seed 0).

    `offered_load` is the prefill work of all prompts, as if nothing were ever cached, in shares of what the workers can
    do: above 1 they need hits to keep up.
    """

    name: str
    requests: int
    input_tokens: int
    output_tokens: int
    span_seconds: float
    block_tokens: int
    is_open: bool
    offered_load: float
    bounds: Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityPoint:
    """One policy at one rate, over all seeds."""

    scale: float
    requests_per_second: float
    ttft_mean: Estimate
    ttft_p99: Estimate
    goodput: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFindings:
    """What was found about one trace. What was not asked for is empty."""

    facts: TraceFacts
    rows: Sequence[PolicyRow] = ()
    curves: Mapping[str, Curves]
    capacity: Mapping[str, Sequence[CapacityPoint]]
    plan: Sequence[PlanRow] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All of it. `seconds` is how long it took, `cpu_seconds_per_run` the mean over all simulations."""

    traces: Sequence[TraceFindings]
    fleet: FleetOptions
    goal: Goal
    goodput: float
    seeds: Sequence[int]
    calibrated_by: str | None
    seconds: float
    runs: int
    cpu_seconds_per_run: float


def facts_of(trace: Trace, name: str, fleet: FleetOptions) -> TraceFacts:
    """Return the facts about a trace."""
    work = sum(fleet.rates.prefill_seconds(turn.input_tokens) for turn in trace.turns)
    return TraceFacts(
        name=name,
        requests=len(trace.turns),
        input_tokens=trace.input_tokens,
        output_tokens=sum(turn.output_tokens for turn in trace.turns),
        span_seconds=trace.span_seconds,
        block_tokens=trace.block_tokens,
        is_open=trace.is_open,
        offered_load=work / (fleet.workers * max(trace.span_seconds, 1.0)),
        bounds=bounds_of(trace, cache_tokens=fleet.workers * fleet.rates.cache_tokens),
    )
