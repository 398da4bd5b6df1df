"""What `kvrouter replay` does: load, simulate, compare, print."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from kvrouter.errors import SettingsError
from kvrouter.replay.comparison import compare
from kvrouter.replay.fleet_simulation import FleetOptions
from kvrouter.replay.loading import load_trace
from kvrouter.replay.measures import Goal
from kvrouter.replay.rates import EngineRates
from kvrouter.replay.results_table import as_document, as_table
from kvrouter.replay.runs import FixedTrace, Run, RunResult, TraceSource, play_all
from kvrouter.replay.synthetic import parse_synthetic

__all__ = ["answer"]


def answer(arguments: argparse.Namespace) -> int:
    """Run what the command line asks for."""
    sources: list[TraceSource] = [
        FixedTrace(load_trace(Path(path)).head(requests=arguments.requests)) for path in arguments.traces
    ]
    sources += [parse_synthetic(text) for text in arguments.synthetic]
    if not sources:
        raise SettingsError("a trace is needed: name a file, or use --synthetic KIND")
    policies = [name.strip() for name in arguments.policies.split(",") if name.strip()]
    fleet = FleetOptions(workers=arguments.workers, rates=EngineRates(cache_tokens=arguments.cache_tokens))
    runs = [
        Run(
            source=source,
            policy=policy,
            fleet=fleet,
            seed=seed,
            rate_scale=arguments.rate_scale,
            goal=Goal(ttft_seconds=arguments.slo_ttft),
        )
        for source in range(len(sources))
        for seed in range(1, arguments.seeds + 1)
        for policy in policies
    ]
    results = _play(runs, sources, processes=arguments.processes)
    documents = []
    for number, source in enumerate(sources):
        rows = compare(
            [(each.run.policy, each.run.seed, each.measures) for each in results if each.run.source == number]
        )
        rows.sort(key=lambda row: policies.index(row.policy))
        documents.append({"trace": source.name, "policies": as_document(rows)})
        if not arguments.json:
            sys.stdout.write(f"{source.name}, {arguments.workers} workers\n{as_table(rows)}\n")
    if arguments.json:
        sys.stdout.write(json.dumps({"traces": documents}) + "\n")
    return 0


def _play(runs: list[Run], sources: list[TraceSource], *, processes: int | None) -> list[RunResult]:
    console = Console(stderr=True)
    with Progress(
        TextColumn("[bold]replay"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("replay", total=len(runs))
        return list(
            play_all(
                runs, sources, processes=processes, tick=lambda shares: progress.update(task, completed=sum(shares))
            )
        )
