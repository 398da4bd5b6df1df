"""What `kvrouter replay` was asked, checked: from the command line's words to traces, fleet, policies and goal."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final

from kvrouter.errors import SettingsError
from kvrouter.replay.fleet_simulation import FleetOptions
from kvrouter.replay.loading import LoadOptions, load_trace
from kvrouter.replay.measures import Goal
from kvrouter.replay.rates import EngineRates
from kvrouter.replay.runs import FixedTrace, HeadOf, TraceSource
from kvrouter.replay.synthetic import parse_synthetic
from kvrouter.routing import POLICIES, RoutingSettings, make_policy

__all__ = ["Questions", "read_questions"]

_CURVE: Final = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
_SCALES_MAX: Final = 64
# Flags that are named otherwise than the field of `EngineRates`.
_RATE_FLAGS: Final = {"prefill_tokens_per_second": "prefill_rate"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """One call of the command."""

    sources: tuple[TraceSource, ...]
    policies: tuple[str, ...]
    fleet: FleetOptions
    goal: Goal
    seeds: tuple[int, ...]
    rate_scale: float
    curve: tuple[float, ...]
    """Rates to try, as multiples of `rate_scale`; empty: none."""
    plan: bool
    goodput: float
    workers_max: int
    processes: int | None


def read_questions(
    arguments: argparse.Namespace, *, measured: EngineRates | None = None, warn: Callable[[str], None] | None = None
) -> Questions:
    """Check what was asked and load the traces. `measured` are a real worker's rates, where there is one.

    Raises:
        SettingsError: the call is wrong.
        TraceError: a trace is.
    """
    policies = _policies(arguments.policies)
    goal = Goal(ttft_seconds=arguments.slo_ttft, token_seconds=arguments.slo_tpot)
    fleet = FleetOptions(
        workers=arguments.workers,
        rates=_rates(arguments, measured or EngineRates()),
        routers=arguments.routers,
        replica_state=not arguments.no_replica_state,
        replica_interval_seconds=arguments.replica_interval,
        replica_delay_seconds=arguments.replica_delay,
        event_delay_seconds=arguments.event_delay,
        event_loss=arguments.event_loss,
        event_replay=not arguments.no_event_replay,
        restart_every_seconds=arguments.restart_every,
        restart_seconds=arguments.restart_seconds,
    )
    curve = _curve(arguments.capacity_curve)
    sources = _sources(arguments, warn)
    return Questions(
        sources=sources,
        policies=policies,
        fleet=fleet,
        goal=goal,
        seeds=tuple(range(arguments.seeds)),
        rate_scale=arguments.rate_scale,
        curve=curve,
        plan=arguments.plan,
        goodput=arguments.goodput,
        workers_max=arguments.workers_max,
        processes=arguments.processes,
    )


def _policies(text: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        names = list(POLICIES)
    if not names:
        raise SettingsError("--policies names none; known: " + ", ".join(POLICIES))
    for name in names:
        try:
            make_policy(name, RoutingSettings())
        except ValueError as error:
            raise SettingsError(f"--policies: {error}") from None
    return tuple(dict.fromkeys(names))


def _rates(arguments: argparse.Namespace, rates: EngineRates) -> EngineRates:
    """Return `rates` with those that were given by flags."""
    given = {field.name: getattr(arguments, _RATE_FLAGS.get(field.name, field.name)) for field in fields(rates)}
    changed = replace(rates, **{name: value for name, value in given.items() if value is not None})
    if changed.running_max >= changed.step_tokens_max:
        raise SettingsError(
            f"--running-max {changed.running_max} must be below --step-tokens-max {changed.step_tokens_max}: "
            "each running request has a token in a step"
        )
    return changed


def _curve(text: str | None) -> tuple[float, ...]:
    if text is None:
        return ()
    if not text:
        return _CURVE
    try:
        scales = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise SettingsError(f"--capacity-curve {text!r} is not a list of numbers such as 0.5,1,2") from None
    if not scales[0] > 0 or not scales[-1] <= 1000 or len(scales) > _SCALES_MAX:
        raise SettingsError(
            f"--capacity-curve {text!r}: at most {_SCALES_MAX} numbers above 0 and up to 1000 are tried"
        )
    return tuple(scales)


def _sources(arguments: argparse.Namespace, warn: Callable[[str], None] | None) -> tuple[TraceSource, ...]:
    if not arguments.traces and not arguments.synthetic:
        raise SettingsError("replay needs traffic: name a trace file, or try --synthetic multi-turn")
    made_up: list[TraceSource] = [parse_synthetic(text) for text in arguments.synthetic]
    options = LoadOptions(
        format=arguments.format,
        block_tokens=arguments.block_tokens,
        tokenizer=None if arguments.tokenizer is None else Path(arguments.tokenizer),
        rate=arguments.rate,
    )
    head = {"requests": arguments.requests, "seconds": arguments.seconds}
    recorded = [FixedTrace(load_trace(Path(path), options, warn=warn).head(**head)) for path in arguments.traces]
    for source in recorded:
        if not source.fixed.turns:
            raise SettingsError(f"{source.name}: no request is left to replay")
    if arguments.requests is not None or arguments.seconds is not None:
        made_up = [HeadOf(source, **head) for source in made_up]
    return (*recorded, *made_up)
