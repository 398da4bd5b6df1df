"""What `kvrouter replay` does: load, simulate, compare, and tell in the way that was asked for."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from kvrouter.errors import SettingsError
from kvrouter.replay.calibrate import Calibration, calibrate
from kvrouter.replay.comparison import Estimate, compare
from kvrouter.replay.findings import CapacityPoint, Findings, TraceFindings, facts_of
from kvrouter.replay.fleet_simulation import check_fits
from kvrouter.replay.plan import PlanRow, plan_workers
from kvrouter.replay.progress import Progress
from kvrouter.replay.questions import Questions, read_questions
from kvrouter.replay.report import as_html
from kvrouter.replay.results_json import as_document
from kvrouter.replay.results_table import as_text
from kvrouter.replay.runs import Run, RunResult, play_all

__all__ = ["answer", "find_out"]


def answer(arguments: argparse.Namespace) -> int:
    """Do what the command line asks for and return the exit code."""
    console = Console(stderr=True)
    warn = console.print if not arguments.json else lambda _text: None
    calibration: Calibration | None = None
    if arguments.calibrate is not None:
        calibration = calibrate(arguments.calibrate, api_key=arguments.api_key, model=arguments.model, tell=warn)
        if not arguments.traces and not arguments.synthetic:
            sys.stdout.write(json.dumps(calibration.document()) + "\n" if arguments.json else calibration.text())
            return 0
    measured = None if calibration is None else calibration.rates
    questions = read_questions(arguments, measured=measured, warn=warn)
    if arguments.html is not None:
        _check_writable(Path(arguments.html))  # better now than after an hour
    with Progress(console, quiet=arguments.json) as progress:
        findings = find_out(questions, progress)
    if calibration is not None:
        findings = replace(findings, calibrated_by=arguments.calibrate)
    if arguments.html is not None:
        _write(Path(arguments.html), as_html(findings))
    sys.stdout.write(json.dumps(as_document(findings)) + "\n" if arguments.json else as_text(findings))
    if arguments.html is not None and not arguments.json:
        sys.stdout.write(f"\nThe report is in {arguments.html}\n")
    return 0


def find_out(questions: Questions, progress: Progress) -> Findings:
    """Run all simulations that the questions need."""
    return _Work(questions, progress).findings()


class _Work:
    def __init__(self, questions: Questions, progress: Progress) -> None:
        self._asked, self._progress = questions, progress
        self._runs, self._cpu_seconds = 0, 0.0

    def findings(self) -> Findings:
        asked, began = self._asked, time.monotonic()
        for source in asked.sources:
            check_fits(source.trace(asked.seeds[0]), asked.fleet.rates)  # better now than in the middle
        compared = [] if asked.plan else self._play("comparing", self._comparisons(asked.rate_scale, curves=True))
        over_rates = self._play("over rates", [
            run for scale in asked.curve for run in self._comparisons(asked.rate_scale * scale, curves=False)
        ])  # fmt: skip
        traces = [
            self._about(position, compared=_of(compared, position), over_rates=_of(over_rates, position))
            for position in range(len(asked.sources))
        ]
        return Findings(
            traces=traces,
            fleet=asked.fleet,
            goal=asked.goal,
            goodput=asked.goodput,
            seeds=asked.seeds,
            calibrated_by=None,
            seconds=time.monotonic() - began,
            runs=self._runs,
            cpu_seconds_per_run=self._cpu_seconds / max(1, self._runs),
        )

    def _about(self, position: int, *, compared: Sequence[RunResult], over_rates: Sequence[RunResult]) -> TraceFindings:
        asked = self._asked
        source = asked.sources[position]
        trace = source.trace(asked.seeds[0]).at_rate(asked.rate_scale)
        facts = facts_of(trace, source.name, asked.fleet)
        requests_per_second = facts.requests / max(facts.span_seconds, 1e-9)
        capacity = {policy: self._points(policy, over_rates, requests_per_second) for policy in asked.policies}
        rows = compare([(each.run.policy, each.run.seed, each.measures) for each in compared]) if compared else []
        return TraceFindings(
            facts=facts,
            rows=sorted(rows, key=lambda row: asked.policies.index(row.policy)),
            curves={each.run.policy: each.curves for each in compared if each.curves is not None},
            capacity=capacity if over_rates else {},
            plan=self._plan(position) if asked.plan else (),
        )

    def _plan(self, position: int) -> list[PlanRow]:
        asked = self._asked
        return plan_workers(
            Run(
                source=position,
                policy="",
                fleet=asked.fleet,
                rate_scale=asked.rate_scale,
                goal=asked.goal,
                wants_bounds=False,
            ),
            asked.sources[position],
            asked.policies,
            asked.seeds,
            goodput=asked.goodput,
            workers_max=asked.workers_max,
            play=lambda runs: self._play("planning", runs),
        )

    def _comparisons(self, rate_scale: float, *, curves: bool) -> list[Run]:
        """Return a run for each trace, seed and policy; plots are drawn of the first seed."""
        asked = self._asked
        return [
            Run(
                source=source,
                policy=policy,
                fleet=asked.fleet,
                seed=seed,
                rate_scale=rate_scale,
                goal=asked.goal,
                wants_bounds=curves,
                wants_curves=curves and seed == asked.seeds[0],
            )
            for source in range(len(asked.sources))
            for seed in asked.seeds
            for policy in asked.policies
        ]

    def _points(self, policy: str, results: Sequence[RunResult], requests_per_second: float) -> list[CapacityPoint]:
        """Return one point for each rate, in order."""
        asked = self._asked
        points = []
        for scale in asked.curve:
            found = [
                each.measures for each in results
                if each.run.policy == policy and each.run.rate_scale == asked.rate_scale * scale
            ]  # fmt: skip
            if found:
                points.append(
                    CapacityPoint(
                        scale=scale,
                        requests_per_second=requests_per_second * scale,
                        ttft_mean=Estimate.of([each.ttft_mean for each in found]),
                        ttft_p99=Estimate.of([each.ttft_p99 for each in found]),
                        goodput=Estimate.of([each.goodput for each in found]),
                    )
                )
        return points

    def _play(self, what: str, runs: Sequence[Run]) -> list[RunResult]:
        if not runs:
            return []
        with self._progress.part(what, len(runs)) as tick:
            results = list(play_all(runs, self._asked.sources, processes=self._asked.processes, tick=tick))
        self._runs += len(results)
        self._cpu_seconds += sum(each.cpu_seconds for each in results)
        return results


def _of(results: Sequence[RunResult], position: int) -> list[RunResult]:
    """Return the results of one trace, in an order that does not depend on which process was faster."""
    return sorted(
        (each for each in results if each.run.source == position),
        key=lambda each: (each.run.rate_scale, each.run.seed, each.run.policy),
    )


def _check_writable(path: Path) -> None:
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        problem = errno.EISDIR if path.is_dir() else errno.EACCES if path.parent.is_dir() else errno.ENOENT
        raise SettingsError(f"--html: cannot write {path}: {os.strerror(problem)}")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"--html: cannot write {path}: {error.strerror or error}") from None
