"""Runs of several policies and seeds side by side: means, how sure they are, and who is best.

Seeds are paired: all policies play the same requests at the same times under one seed. So differences are taken seed
by seed, and what seeds have in common does not count as noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any, Final

from kvrouter.replay.measures import Measures

__all__ = ["Estimate", "PolicyRow", "compare", "paired_difference"]

# Two-sided 95 % points of Student's t for 1, 2, ... degrees of freedom; beyond them the normal one is near enough.
_STUDENT: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086,
)  # fmt: skip
_STUDENT_BEYOND: Final = 2.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds, and how far from it the true one may be with 95 % confidence; None for one seed."""

    mean: float
    margin: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Estimate the mean of values that do not depend on each other."""
        count = len(values)
        mean = sum(values) / count
        if count < 2:
            return cls(mean, None)
        spread = sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
        point = _STUDENT[count - 2] if count - 2 < len(_STUDENT) else _STUDENT_BEYOND
        return cls(mean, point * spread / sqrt(count))


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRow:
    """One policy over all seeds. `verdict` is `best`, `tied` with the best, or `behind`, by mean time to first token.

    `figures` has each field of `Measures` by name, and `pooled_efficiency`; what nobody asked for is absent.
    """

    policy: str
    verdict: str
    seeds: tuple[int, ...]
    figures: dict[str, Estimate]


def compare(results: Iterable[tuple[str, int, Measures]], *, by: str = "ttft_mean") -> list[PolicyRow]:
    """Return a row for each policy from (policy, seed, measures), in the order in which policies come first."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for policy, seed, measures in results:
        found.setdefault(policy, {})[seed] = _figures(measures)
    means = {policy: sum(row[by] for row in rows.values()) / len(rows) for policy, rows in found.items()}
    best = min(means, key=lambda policy: means[policy])
    rows = []
    for policy, by_seed in found.items():
        seeds = tuple(sorted(by_seed))
        names = by_seed[seeds[0]]
        verdict = "best"
        if policy != best:
            verdict = "tied" if is_tied(_column(by_seed, by), _column(found[best], by)) else "behind"
        rows.append(
            PolicyRow(
                policy=policy,
                verdict=verdict,
                seeds=seeds,
                figures={name: Estimate.of([by_seed[seed][name] for seed in seeds]) for name in names},
            )
        )
    return rows


def paired_difference(ours: dict[int, float], theirs: dict[int, float]) -> Estimate:
    """Return how much greater `ours` is, over the seeds that both have."""
    return Estimate.of([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def is_tied(ours: dict[int, float], best: dict[int, float]) -> bool:
    """Whether chance may be all that separates `ours` from the `best`, the smaller one."""
    difference = paired_difference(ours, best)
    return difference.mean <= (difference.margin or 0.0)


def _figures(measures: Measures) -> dict[str, float]:
    fields: dict[str, Any] = {**asdict(measures), "pooled_efficiency": measures.pooled_efficiency}
    return {name: float(value) for name, value in fields.items() if value is not None}


def _column(by_seed: dict[int, dict[str, float]], name: str) -> dict[int, float]:
    return {seed: row[name] for seed, row in by_seed.items()}
