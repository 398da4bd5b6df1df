"""Routing policies on recorded and made-up traffic, in simulated fleets: time to first token, cell by cell.

Every cell of a grid (trace, workers, cache, load) plays the same requests at the same times under each policy, for
several seeds, through the router's own code (`kvrouter.replay`). Ours is the policy `kv`; its peer in each row is the
best of the others *in that cell*, so that a policy that is best in some cells only never counts as a whole. Wins and
losses are by differences paired over seeds: `tied` means that with 95 % confidence chance may be all of it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.report import Report, argument_parser
from benchmarks.routing_grid import CACHES, LOADS, WORKERS, Cell, Grid
from benchmarks.routing_journal import Journal, JournalError
from benchmarks.routing_table import tables
from kvrouter.replay.comparison import paired_difference
from kvrouter.replay.measures import Measures
from kvrouter.replay.runs import Run, RunResult, play_all
from kvrouter.replay.synthetic import KINDS
from kvrouter.routing import POLICIES

OURS: Final = "kv"
_TRACES: Final = "../shared/traces"
_QUICK_SHARE: Final = 0.2
_FIGURES: Final = ("ttft_mean", "ttft_p99")

# By policy and seed, what one cell measured.
Measured = dict[str, dict[int, Measures]]


def main() -> int:
    """Measure and print; returns the exit code."""
    arguments = _arguments()
    report = Report("routing", packages=["numpy"])
    folder = Path(arguments.traces)
    grid = Grid(
        folder,
        kinds=arguments.kinds,
        workers=arguments.workers,
        caches=arguments.caches,
        loads=arguments.loads,
        requests=arguments.requests,
        made_up_share=_QUICK_SHARE if arguments.quick else 1.0,
    )
    report.conditions |= {
        "traces": list(dict.fromkeys(source.name for source in grid.sources)),
        "recorded_traces": "present" if folder.is_dir() else f"none in {folder}; give a folder with --traces",
        "seeds": arguments.seeds,
        "requests": arguments.requests,
        "loads": {name: LOADS[name] for name in arguments.loads},
        "policies": arguments.policies,
        "within": arguments.within,
    }
    played = {"requests": arguments.requests, "quick": arguments.quick}
    seeds = range(1, arguments.seeds + 1)
    try:
        journal = Journal(Path(arguments.journal) if arguments.journal else None, played)
    except JournalError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    began = time.monotonic()
    field = Field(arguments.policies, list(seeds), arguments.within)
    measured = measure(grid, field, arguments.processes, journal, plays=not arguments.known_only)
    report.conditions["seconds"] = round(time.monotonic() - began, 1)
    whole = [cell for cell in grid.cells if field.is_whole(measured[cell.name])]
    if not whole:
        sys.stderr.write("no cell has been measured under every policy and seed yet\n")
        return 1
    add_rows(report, whole, measured)
    if arguments.markdown:
        sys.stdout.write(tables(whole, {str(row["name"]): row for row in report.rows}))
    else:
        report.emit(arguments.json)
    return 0


@dataclass(frozen=True, slots=True)
class Field:
    """Who plays under which seeds.

    With `within`, another policy whose mean and 99th percentile are both more than `within` times those of the best
    other ones under the first seed is out of reach in that cell: it has its row, and is not repeated.
    """

    policies: Sequence[str]
    seeds: Sequence[int]
    within: float | None = None

    def contenders(self, found: Measured) -> list[str]:
        """The policies that play under all seeds; `found` has all of them under the first."""
        if self.within is None:
            return list(self.policies)
        others = {policy: found[policy][self.seeds[0]] for policy in self.policies if policy != OURS}
        bounds = {each: self.within * min(getattr(row, each) for row in others.values()) for each in _FIGURES}
        near = [name for name, row in others.items() if any(getattr(row, each) <= bounds[each] for each in _FIGURES)]
        return [policy for policy in self.policies if policy == OURS or policy in near]

    def is_whole(self, found: Measured) -> bool:
        """Whether nothing is left to play in a cell."""
        if any(self.seeds[0] not in found.get(policy, {}) for policy in self.policies):
            return False
        return all(seed in found[policy] for policy in self.contenders(found) for seed in self.seeds)


def measure(
    grid: Grid, field: Field, processes: int | None, journal: Journal, *, plays: bool = True
) -> dict[str, Measured]:
    """Run all cells, or those of them that are not in the journal; returns by the cell's name what was measured.

    Small caches come first: a run in which none was ever full is that of a larger one too.
    """
    measured: dict[str, Measured] = defaultdict(lambda: defaultdict(dict))
    table = _Table(measured, journal)
    for cache_tokens in sorted({cell.cache_tokens for cell in grid.cells}):
        cells = [cell for cell in grid.cells if cell.cache_tokens == cache_tokens]
        first = {run: cell.name for cell in cells for run in cell.runs(field.policies, field.seeds[:1])}
        _play(first, grid, processes, table, plays=plays)
        began = [cell for cell in cells if all(field.seeds[0] in measured[cell.name][each] for each in field.policies)]
        others = {
            run: cell.name
            for cell in began
            for run in cell.runs(field.contenders(measured[cell.name]), field.seeds[1:])
        }
        _play(others, grid, processes, table, plays=plays)
    return measured


class _Table:
    """What is measured, by cell, from the journal and from runs."""

    def __init__(self, measured: dict[str, Measured], journal: Journal) -> None:
        self._measured, self._journal = measured, journal
        self._roomy: dict[tuple[object, ...], Measures] = {}

    def knows(self, name: str, run: Run) -> bool:
        """Take what is known of a run, if anything is."""
        known = self._journal.known.get((name, run.policy, run.seed)) or self._roomy.get(_but_cache(run))
        if known is not None:
            self._take(name, run, known)
        return known is not None

    def note(self, name: str, run: Run, measures: Measures) -> None:
        """Keep what a run has measured."""
        self._journal.note((name, run.policy, run.seed), measures)
        self._take(name, run, measures)

    def _take(self, name: str, run: Run, measures: Measures) -> None:
        self._measured[name][run.policy][run.seed] = measures
        if not measures.full_workers:
            self._roomy[_but_cache(run)] = measures


def _play(names: Mapping[Run, str], grid: Grid, processes: int | None, table: _Table, *, plays: bool) -> None:
    """Do those runs of which nothing is known yet."""
    unknown = [run for run, name in names.items() if not table.knows(name, run)]
    began = time.monotonic()
    for done, result in enumerate(play_all(unknown if plays else [], grid.sources, processes=processes), 1):
        table.note(names[result.run], result.run, result.measures)
        _tell(done, len(unknown), time.monotonic() - began, result)


def _but_cache(run: Run) -> tuple[object, ...]:
    """What decides of a run beside the size of caches."""
    return run.source, run.policy, run.seed, run.rate_scale, run.fleet.workers


def add_rows(report: Report, grid: Sequence[Cell], measured: dict[str, Measured]) -> None:
    """Add a row for each cell, and what they come to."""
    won, ratios = 0, []
    for cell in grid:
        found = measured[cell.name]
        others = [policy for policy in found if policy != OURS and found[policy].keys() == found[OURS].keys()]
        best = {figure: min(others, key=lambda policy: _mean(found[policy], figure)) for figure in _FIGURES}
        verdicts = {figure: verdict(found[OURS], found[best[figure]], figure) for figure in _FIGURES}
        ours = _mean(found[OURS], "ttft_mean")
        peer = _mean(found[best["ttft_mean"]], "ttft_mean")
        won += all(each != "lost" for each in verdicts.values())
        ratios.append(ours / min(ours, peer))
        report.row(
            cell.name,
            "s mean TTFT",
            ours,
            peer,
            best["ttft_mean"],
            less_is_better=True,
            mean=verdicts["ttft_mean"],
            p99=verdicts["ttft_p99"],
            p99_peer=best["ttft_p99"],
            rate_scale=round(cell.rate_scale, 4),
            policies={policy: _summary(rows) for policy, rows in found.items()},
        )
    report.row(
        "share-of-cells-best-or-tied", "share", won / len(grid), reason="in mean and p99 TTFT", cells=len(grid), won=won
    )
    report.row("worst-cell-mean-ttft-ratio", "x the best", max(ratios), reason="1 is as good as the best of all")


def verdict(ours: dict[int, Measures], theirs: dict[int, Measures], figure: str) -> str:
    """Return `best`, `tied` or `lost`, by one figure of which less is better."""
    difference = paired_difference(
        {seed: getattr(row, figure) for seed, row in ours.items()},
        {seed: getattr(row, figure) for seed, row in theirs.items()},
    )
    margin = difference.margin or 0.0
    if difference.mean <= 0 and difference.mean + margin <= 0:
        return "best"
    return "tied" if difference.mean - margin <= 0 else "lost"


def _mean(rows: dict[int, Measures], figure: str) -> float:
    return sum(float(getattr(row, figure)) for row in rows.values()) / len(rows)


def _summary(rows: dict[int, Measures]) -> dict[str, float]:
    named = {"mean": "ttft_mean", "p99": "ttft_p99", "hits": "hit_share", "imbalance": "imbalance"}
    return {name: float(f"{_mean(rows, figure):.4g}") for name, figure in named.items()} | {"seeds": len(rows)}


def _tell(done: int, total: int, seconds: float, result: RunResult) -> None:
    """Show progress where a person waits; a line now and then where a file does."""
    left = seconds / done * (total - done)
    line = f"{done}/{total} runs, about {left:.0f} s left, last {result.run.policy}"
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{line:<78}" + ("\n" if done == total else ""))
    elif done % max(1, total // 20) == 0 or done == total:
        sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _arguments() -> argparse.Namespace:
    parser = argument_parser("routing", "Routing policies on recorded and made-up traffic, cell by cell.")
    parser.add_argument("--traces", default=_TRACES, metavar="FOLDER", help="recorded traces (default: %(default)s)")
    parser.add_argument("--kinds", type=_names(KINDS), metavar="KIND,...", help="made-up traffic (default: all kinds)")
    parser.add_argument(
        "--policies", type=_names(POLICIES), default=list(POLICIES), metavar="NAME,...", help="default: all of them"
    )
    parser.add_argument("--workers", type=_integers, metavar="N,...", help="default: 4,8,16")
    parser.add_argument("--caches", type=_integers, metavar="TOKENS,...", help="KV cache of a worker")
    parser.add_argument("--loads", type=_names(LOADS), metavar="LOAD,...", help="light, medium, heavy")
    parser.add_argument("--requests", type=int, metavar="N", help="requests of each recorded trace")
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each policy in each cell")
    parser.add_argument(
        "--within", type=float, metavar="RATIO", help="do not repeat who is behind by more under the first seed"
    )
    parser.add_argument("--processes", type=int, metavar="N", help="default: one for each core")
    parser.add_argument(
        "--journal", metavar="FILE", help="keep every run there, and do not repeat those that are there"
    )
    parser.add_argument("--known-only", action="store_true", help="report what is in the journal; run nothing")
    parser.add_argument("--markdown", action="store_true", help="print the cells as tables for a page")
    arguments = parser.parse_args()
    quick = arguments.quick
    arguments.kinds = arguments.kinds or (["multi-turn", "shared-prompt"] if quick else list(KINDS))
    arguments.workers = arguments.workers or ([8] if quick else list(WORKERS))
    arguments.caches = arguments.caches or (CACHES[1:2] if quick else list(CACHES))
    arguments.loads = arguments.loads or (["heavy"] if quick else list(LOADS))
    arguments.requests = arguments.requests or (400 if quick else 6000)
    arguments.seeds = arguments.seeds or (2 if quick else 5)
    if OURS not in arguments.policies:
        arguments.policies = [OURS, *arguments.policies]
    return arguments


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    allowed = list(known)

    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is unknown; known: {', '.join(allowed)}")
        return names

    return parse


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
