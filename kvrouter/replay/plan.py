"""How many workers a trace needs under each policy, so that a share of its requests reaches the goal.

The count is doubled until it suffices and then bisected. All policies are tried at once, each at its own count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kvrouter.replay.bounds import least_prefill_seconds
from kvrouter.replay.measures import Measures
from kvrouter.replay.runs import Run, RunResult, TraceSource

__all__ = ["PlanRow", "plan_workers"]

PlayAll = Callable[[Sequence[Run]], Sequence[RunResult]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """What one policy needs. `workers` is None if not even the most that were tried suffice.

    `tried` has (workers, goodput) of every count, in order; `measures` are of one seed at the count that is needed.
    """

    policy: str
    workers: int | None
    goodput: float
    tried: tuple[tuple[int, float], ...]
    measures: Measures


class _Search:
    """The search of one policy: `low` does not suffice, `high` does."""

    def __init__(self, policy: str, first: int, most: int) -> None:
        self.policy, self._most = policy, most
        self.low, self.high = 0, most + 1
        self.tried: dict[int, tuple[float, Measures]] = {}
        self.next: int | None = min(first, most)

    def note(self, workers: int, results: Sequence[Measures], goodput: float) -> None:
        """Learn how good a count was, and choose the next one; None when the answer is known."""
        reached = sum(each.goodput for each in results) / len(results)
        self.tried[workers] = (reached, results[0])
        if reached >= goodput:
            self.high = workers
        else:
            self.low = workers
        if self.high - self.low <= 1:
            self.next = None
        elif self.high <= self._most:
            self.next = (self.low + self.high) // 2
        else:
            self.next = min(2 * self.low, self._most) if self.low < self._most else None

    def row(self) -> PlanRow:
        workers = self.high if self.high <= self._most else None
        goodput, measures = self.tried[self._most if workers is None else workers]
        tried = tuple((count, each[0]) for count, each in sorted(self.tried.items()))
        return PlanRow(policy=self.policy, workers=workers, goodput=goodput, tried=tried, measures=measures)


def plan_workers(
    template: Run,
    source: TraceSource,
    policies: Sequence[str],
    seeds: Sequence[int],
    *,
    goodput: float,
    workers_max: int,
    play: PlayAll,
) -> list[PlanRow]:
    """Return what each policy needs. `template` is a run whose policy, seed and number of workers are to be filled in.

    A count suffices if the mean goodput over seeds does.
    """
    searches = {policy: _Search(policy, _first_guess(template, source), workers_max) for policy in policies}
    while trying := {search.policy: search.next for search in searches.values() if search.next is not None}:
        runs = [
            replace(template, policy=policy, seed=seed, fleet=replace(template.fleet, workers=workers))
            for policy, workers in trying.items()
            for seed in seeds
        ]
        found: dict[str, list[Measures]] = {}
        for result in sorted(play(runs), key=lambda result: result.run.seed):
            found.setdefault(result.run.policy, []).append(result.measures)
        for policy, workers in trying.items():
            searches[policy].note(workers, found[policy], goodput)
    return [search.row() for search in searches.values()]


def _first_guess(template: Run, source: TraceSource) -> int:
    """Return about how many workers the prefill work keeps three quarters busy."""
    trace = source.trace(template.seed).at_rate(template.rate_scale)
    rates = template.fleet.rates
    work = least_prefill_seconds(trace, rates, cache_tokens=template.fleet.workers * rates.cache_tokens)
    return max(1, round(work / max(trace.span_seconds, 1.0) / 0.75))
