"""Who can be chosen: workers, their ranks, what they serve, and the dense rank numbers that index and book use."""

from collections.abc import Collection, Iterable, Sequence
from heapq import heappop, heappush
from typing import Self

from xxhash import xxh3_64_intdigest

from kvrouter.errors import NoWorkerError, UnknownModelError
from kvrouter.events import Source
from kvrouter.index import RANKS_MAX
from kvrouter.routing.load import RankLoad

__all__ = ["Candidates", "Fleet", "FleetRank", "FleetWorker"]

_MODELS_MAX = 1024


class FleetRank:
    """One rank that requests can be sent to. Policies read it; only fleet and router write it."""

    __slots__ = ("dense_rank", "identity", "load", "rank", "source", "worker_id")

    def __init__(self, source: Source, dense_rank: int, load: RankLoad) -> None:
        self.source = source
        self.worker_id, self.rank = source
        self.dense_rank = dense_rank
        self.load = load
        self.identity: int = xxh3_64_intdigest(f"{source.worker_id}\0{source.rank}".encode())

    @property
    def turn(self) -> int:
        """Number of the decision that chose it last; ties go to the one that waited longest."""
        return self.load.turn


class Candidates(tuple[FleetRank, ...]):
    """Ranks to choose from, in a stable order, and their loads side by side."""

    loads: tuple[RankLoad, ...]

    def __new__(cls, ranks: Iterable[FleetRank]) -> Self:
        """Take them in this order."""
        self = super().__new__(cls, ranks)
        self.loads = tuple(rank.load for rank in self)
        return self


class FleetWorker:
    """One worker: its ranks in order, and what it serves. No models means: not known, so any."""

    __slots__ = ("models", "ranks", "routable", "worker_id")

    def __init__(self, worker_id: str, models: Sequence[str], ranks: tuple[FleetRank, ...]) -> None:
        self.worker_id = worker_id
        self.models = frozenset(models)
        self.ranks = ranks
        self.routable = True


class Fleet:
    """The workers by id. Candidates are computed once per model and change of the fleet."""

    __slots__ = ("_candidates", "_free", "_workers", "ranks")

    def __init__(self) -> None:
        self._workers: dict[str, FleetWorker] = {}
        self.ranks: list[FleetRank | None] = []
        """By dense number; None where a number is free. Only the fleet changes it."""
        self._free: list[int] = []
        self._candidates: dict[str | None, Candidates] = {}

    def __contains__(self, worker_id: str) -> bool:
        return worker_id in self._workers

    def __len__(self) -> int:
        return len(self._workers)

    def workers(self) -> tuple[FleetWorker, ...]:
        """All workers, in the order in which they came."""
        return tuple(self._workers.values())

    def worker(self, worker_id: str) -> FleetWorker:
        """One worker; raises KeyError if there is none of that id."""
        return self._workers[worker_id]

    def at(self, dense_rank: int) -> FleetRank | None:
        """The rank that has a dense number now."""
        return self.ranks[dense_rank] if 0 <= dense_rank < len(self.ranks) else None

    def allocate(self, count: int) -> list[int]:
        """Dense numbers for new ranks: freed ones first, smallest first.

        Raises:
            ValueError: the fleet would have more than RANKS_MAX ranks.
        """
        if len(self.ranks) - len(self._free) + count > RANKS_MAX:
            raise ValueError(f"{count} more ranks would exceed the {RANKS_MAX} that one router serves")
        numbers = []
        for _ in range(count):
            if self._free:
                numbers.append(heappop(self._free))
            else:
                numbers.append(len(self.ranks))
                self.ranks.append(None)
        return numbers

    def add(self, worker: FleetWorker) -> None:
        """Take in a worker whose ranks have allocated numbers."""
        self._workers[worker.worker_id] = worker
        for rank in worker.ranks:
            self.ranks[rank.dense_rank] = rank
        self._candidates.clear()

    def remove(self, worker_id: str) -> FleetWorker:
        """Forget a worker and free its numbers; the caller has cleared what was kept under them."""
        worker = self._workers.pop(worker_id)
        for rank in worker.ranks:
            self.ranks[rank.dense_rank] = None
            heappush(self._free, rank.dense_rank)
        self._candidates.clear()
        return worker

    def set_routable(self, worker_id: str, *, routable: bool) -> None:
        """Allow or forbid that the worker is chosen."""
        self._workers[worker_id].routable = routable
        self._candidates.clear()

    def set_models(self, worker_id: str, models: Sequence[str]) -> None:
        """Say what the worker serves."""
        self._workers[worker_id].models = frozenset(models)
        self._candidates.clear()

    def candidates(self, model: str | None) -> Candidates:
        """Ranks of routable workers that serve `model` (None: any model); never empty.

        Raises:
            UnknownModelError: no worker, routable or not, serves it.
            NoWorkerError: none of those that do is routable.
        """
        found = self._candidates.get(model)
        if found is None:
            found = self._find(model)
            if len(self._candidates) >= _MODELS_MAX:  # workers that serve any model let clients invent names
                self._candidates.clear()
            self._candidates[model] = found
        return found

    def narrow(
        self,
        candidates: Candidates,
        *,
        exclude: Collection[str],
        allowed: Collection[str] | None,
        pinned: Source | None,
    ) -> Candidates:
        """The candidates that a request's own conditions leave; raises NoWorkerError where they leave none."""
        left = Candidates(
            rank
            for rank in candidates
            if rank.worker_id not in exclude
            and (allowed is None or rank.worker_id in allowed)
            and (pinned is None or rank.source == pinned)
        )
        if left:
            return left
        if pinned is not None:
            raise NoWorkerError(
                f"rank {pinned.rank} of worker {pinned.worker_id!r}, to which this is pinned, is not available"
            )
        raise NoWorkerError(f"none of the {len(candidates)} available ranks is left after the request's own conditions")

    def _find(self, model: str | None) -> Candidates:
        if not self._workers:
            raise NoWorkerError("there are no workers")
        serving = [
            worker for worker in self._workers.values() if model is None or not worker.models or model in worker.models
        ]
        if not serving:
            assert model is not None
            raise UnknownModelError(model, frozenset().union(*(worker.models for worker in self._workers.values())))
        found = Candidates(rank for worker in serving if worker.routable for rank in worker.ranks)
        if not found:
            names = ", ".join(worker.worker_id for worker in serving[:8])
            raise NoWorkerError(f"no worker can take requests now; not routable: {names}")
        return found
