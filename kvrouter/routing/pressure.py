"""What a second of computing costs others: measured once a second, written into the loads of ranks.

Urgency: how many later requests wait for each second that a rank computes. In a queue that is busy for a share of the
time, a second of work delays everybody who comes until the queue is empty again: with `arrivals` a second, that are
`arrivals / (1 - share)` for each second of queue.

Miss price: what computing a block costs those whose blocks are evicted for it, as a share of its own seconds. It is the
probability that a block at the end of a rank's least-recently-used list would have been used again if it had stayed as
long as blocks do: blocks that a rank stores again while it evicts a small part of its cache, over that part. A rank
that evicts nothing, or whose evicted blocks nobody asks for, has none.

Room: the tokens that a rank's cache holds, which are those that it has cached while it evicts. Before it has evicted
anything nobody can tell how much more would fit.
"""

from collections.abc import Callable, Iterable
from math import exp, inf
from typing import Final

from kvrouter.routing.rank_load import RankLoad

__all__ = ["Evictions", "Pressure"]

Evictions = Callable[[int], tuple[int, int, float, int]]
"""Blocks that a dense rank has evicted, those that it stored again soon, and how soon, as a share of its cache; and
those that it holds."""

_TICK_SECONDS: Final = 1.0
_TRAFFIC_SECONDS: Final = 60.0
# Over less than this no rate can be told.
_MOMENT_SECONDS: Final = 1e-6
_EVICTIONS_SECONDS: Final = 300.0
# A queue that is never empty would make the price of delay infinite.
_BUSY_MAX: Final = 0.9
_MISS_PRICE_MAX: Final = 1.0
_EVICTED_ENOUGH: Final = 64.0


class _Faded:
    """Averages over the recent past, right from the first moment on."""

    __slots__ = ("arrivals", "busy", "seconds")

    def __init__(self) -> None:
        self.arrivals = self.busy = self.seconds = 0.0


class _Evicted:
    __slots__ = ("before", "evicted", "returned", "room")

    def __init__(self) -> None:
        self.evicted = self.returned = self.room = 0.0
        self.before = (0, 0)


class Pressure:
    """Measures and prices; `tick` as often as convenient, it does nothing in between."""

    __slots__ = ("_arrivals", "_evicted", "_evictions", "_groups", "due", "last", "measures_room")

    def __init__(self, evictions: Evictions) -> None:
        self._evictions = evictions
        self.measures_room = False
        """Whether ranks are told their room: from the first policy on that weighs it."""
        self._groups: dict[frozenset[str], _Faded] = {}
        self._evicted: dict[int, _Evicted] = {}
        self._arrivals: dict[int, int] = {}
        self.due = self.last = float("-inf")

    def forget(self, rank: int) -> None:
        """A rank is gone."""
        self._evicted.pop(rank, None)
        self._arrivals.pop(rank, None)

    def tick(self, ranks: Iterable[tuple[RankLoad, frozenset[str]]], now: float) -> None:
        """Measure all ranks, each with its group: those that serve the same models."""
        since = now - self.last
        # Neither the first time nor a clock that jumps tells how long it was.
        seconds = min(since, _TRAFFIC_SECONDS) if 0.0 < since < inf else 0.0
        self.last, self.due = now, now + _TICK_SECONDS
        grouped: dict[frozenset[str], list[RankLoad]] = {}
        for load, group in ranks:
            grouped.setdefault(group, []).append(load)
        for group, loads in grouped.items():
            faded = self._groups.setdefault(group, _Faded())
            came = sum(load.arrivals - self._arrivals.get(load.rank, 0) for load in loads)
            busy = sum(load.waiting > 0 for load in loads)
            urgency = _urgency(faded, came / len(loads), busy / len(loads), seconds)
            for load in loads:
                self._arrivals[load.rank] = load.arrivals
                load.urgency = urgency
                self._weigh_evictions(load, seconds)
        for gone in self._groups.keys() - grouped.keys():
            del self._groups[gone]

    def _weigh_evictions(self, load: RankLoad, seconds: float) -> None:
        evicted, returned, share, held = self._evictions(load.rank)
        noted = self._evicted.setdefault(load.rank, _Evicted())
        before_evicted, before_returned = noted.before
        noted.before = evicted, returned
        kept = exp(-seconds / _EVICTIONS_SECONDS)
        # A source that began anew counts from zero again.
        noted.evicted = kept * noted.evicted + max(evicted - before_evicted, 0)
        noted.returned = kept * noted.returned + max(returned - before_returned, 0)
        if evicted < before_evicted:
            noted.room = 0.0
        elif evicted > before_evicted:
            noted.room = max(held, kept * noted.room + (1.0 - kept) * held)
        if self.measures_room:
            load.room_tokens = int(noted.room * load.block_size)
        load.miss_price = _miss_price(noted, share)


def _miss_price(noted: _Evicted, share: float) -> float:
    if noted.evicted < _EVICTED_ENOUGH or share <= 0.0:
        return 0.0
    return min(noted.returned / noted.evicted / share, _MISS_PRICE_MAX)


def _urgency(faded: _Faded, came: float, busy: float, seconds: float) -> float:
    """Later requests that wait for each second of queue on one rank."""
    kept = exp(-seconds / _TRAFFIC_SECONDS)
    faded.arrivals = kept * faded.arrivals + came
    faded.busy = kept * faded.busy + busy * seconds
    faded.seconds = kept * faded.seconds + seconds
    if faded.seconds < _MOMENT_SECONDS:
        return 0.0
    return faded.arrivals / faded.seconds / (1.0 - min(faded.busy / faded.seconds, _BUSY_MAX))
