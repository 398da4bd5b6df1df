"""The cells of the routing benchmark: which traffic, on how many workers, with how much cache, how busy.

How busy a fleet is, is not the rate alone: what caches save does not have to be computed. So a level of load is the
prefill work that one pooled cache of the fleet's size would leave, as a share of what the workers can do; a router that
finds fewer hits than that has more to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Final

from kvrouter.replay.bounds import least_prefill_seconds
from kvrouter.replay.fleet_simulation import FleetOptions
from kvrouter.replay.loading import load_trace
from kvrouter.replay.rates import EngineRates
from kvrouter.replay.runs import FixedTrace, Run, TraceSource
from kvrouter.replay.synthetic import KINDS

LOADS: Final = {"light": 0.3, "medium": 0.55, "heavy": 0.8}
WORKERS: Final = (4, 8, 16)
CACHES: Final = (250_000, 1_000_000, 4_000_000)
# Made-up requests for each worker: conversations need more of them, or most of a run would be its beginning and end.
_REQUESTS: Final = {"multi-turn": 700}
_REQUESTS_OF_OTHERS: Final = 300
_KILO: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One set of conditions, under which all policies are compared."""

    source: int
    trace: str
    workers: int
    cache_tokens: int
    load: str
    rate_scale: float

    @property
    def name(self) -> str:
        """What its row is called."""
        return f"{self.trace}-{self.workers}w-{self.cache_tokens // _KILO}k-{self.load}"

    @property
    def fleet(self) -> FleetOptions:
        """The fleet of the cell."""
        return FleetOptions(workers=self.workers, rates=EngineRates(cache_tokens=self.cache_tokens))

    def runs(self, policies: Iterable[str], seeds: Iterable[int]) -> Iterator[Run]:
        """Yield a run for each policy and seed."""
        for seed, policy in product(seeds, policies):
            yield Run(
                source=self.source,
                policy=policy,
                fleet=self.fleet,
                seed=seed,
                rate_scale=self.rate_scale,
                wants_bounds=False,
            )


class Grid:
    """All cells, and the sources of their traces."""

    def __init__(
        self,
        folder: Path,
        *,
        kinds: Iterable[str],
        workers: Iterable[int],
        caches: Iterable[int],
        loads: Iterable[str],
        requests: int,
        made_up_share: float = 1.0,
    ) -> None:
        self.sources: list[TraceSource] = []
        self.cells: list[Cell] = []
        self._caches, self._loads = list(caches), list(loads)
        counts = list(workers)
        for path in sorted(folder.glob("*.jsonl")) if folder.is_dir() else ():
            trace = load_trace(path).head(requests=requests)
            self._add(FixedTrace(replace(trace, name=trace.name.removesuffix("_trace"))), counts)
        for kind, count in product(kinds, counts):
            per_worker = made_up_share * _REQUESTS.get(kind, _REQUESTS_OF_OTHERS)
            self._add(KINDS[kind](requests=round(per_worker * count)), [count])

    def _add(self, source: TraceSource, counts: Iterable[int]) -> None:
        self.sources.append(source)
        trace = source.trace(0)
        for count, cache in product(counts, self._caches):
            work = least_prefill_seconds(trace, EngineRates(), cache_tokens=count * cache)
            busy = work / (count * trace.span_seconds)
            for load in self._loads:
                self.cells.append(
                    Cell(
                        source=len(self.sources) - 1,
                        trace=source.name,
                        workers=count,
                        cache_tokens=cache,
                        load=load,
                        rate_scale=LOADS[load] / busy,
                    )
                )
