"""Who can be chosen: workers, their ranks, what they serve, and the dense rank numbers that index and book use."""

from collections.abc import Collection, Iterable, Sequence
from heapq import heappop, heappush
from typing import Self

from xxhash import xxh3_64_intdigest

from kvrouter.errors import NoWorkerError, UnknownModelError, UnmetConstraintError
from kvrouter.events import Source
from kvrouter.index import RANKS_MAX
from kvrouter.routing.constraints import PLAIN, UNCONSTRAINED, Constraints, Traits, fitting
from kvrouter.routing.cost import CostModel
from kvrouter.routing.load import RankLoad

__all__ = ["Candidates", "Fleet", "FleetRank", "FleetWorker", "worth_their_extra"]

_MODELS_MAX = 1024
_NARROWED_MAX = 1024


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
    extra_seconds: tuple[float, ...] | None
    """What each costs on top of its predicted time, because it is not what the request prefers; None: all the same."""

    def __new__(cls, ranks: Iterable[FleetRank], extra_seconds: Sequence[float] = ()) -> Self:
        """Take them in this order."""
        self = super().__new__(cls, ranks)
        self.loads = tuple(rank.load for rank in self)
        # What all cost decides nothing.
        self.extra_seconds = tuple(map(float, extra_seconds)) if len(set(extra_seconds)) > 1 else None
        return self

    def only(self, keep: Iterable[bool]) -> "Candidates":
        """Those for which `keep` is true."""
        extra = self.extra_seconds
        kept = [at for at, is_kept in enumerate(keep) if is_kept]
        return Candidates((self[at] for at in kept), () if extra is None else [extra[at] for at in kept])


class FleetWorker:
    """One worker: its ranks in order, and what it serves. No models means: not known, so any."""

    __slots__ = ("models", "ranks", "routable", "traits", "worker_id")

    def __init__(self, worker_id: str, models: Sequence[str], ranks: tuple[FleetRank, ...]) -> None:
        self.worker_id = worker_id
        self.models = frozenset(models)
        self.ranks = ranks
        self.traits = PLAIN
        self.routable = True


class Fleet:
    """The workers by id. Candidates are computed once per model and change of the fleet."""

    __slots__ = ("_candidates", "_free", "_narrowed", "_workers", "defaults", "ranks", "version")

    def __init__(self) -> None:
        self._workers: dict[str, FleetWorker] = {}
        self.ranks: list[FleetRank | None] = []
        """By dense number; None where a number is free. Only the fleet changes it."""
        self._free: list[int] = []
        self._candidates: dict[str | None, Candidates] = {}
        self._narrowed: dict[tuple[str | None, Constraints], Candidates] = {}
        self.version = 0
        """Grows with every change of who is there and may be chosen."""
        self.defaults = UNCONSTRAINED
        """What a request asks for that comes without constraints; `set_defaults` changes it."""

    def __contains__(self, worker_id: str) -> bool:
        return worker_id in self._workers

    def __len__(self) -> int:
        return len(self._workers)

    def set_defaults(self, defaults: Constraints) -> None:
        """Let requests that come without constraints ask for these."""
        self.defaults = defaults
        self._changed()

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
        self._changed()

    def remove(self, worker_id: str) -> FleetWorker:
        """Forget a worker and free its numbers; the caller has cleared what was kept under them."""
        worker = self._workers.pop(worker_id)
        for rank in worker.ranks:
            self.ranks[rank.dense_rank] = None
            heappush(self._free, rank.dense_rank)
        self._changed()
        return worker

    def set_routable(self, worker_id: str, *, routable: bool) -> None:
        """Allow or forbid that the worker is chosen."""
        self._workers[worker_id].routable = routable
        self._changed()

    def set_models(self, worker_id: str, models: Sequence[str]) -> None:
        """Say what the worker serves."""
        self._workers[worker_id].models = frozenset(models)
        self._changed()

    def set_traits(self, worker_id: str, traits: Traits) -> None:
        """Say what the worker is."""
        self._workers[worker_id].traits = traits
        self._changed()

    def candidates(self, model: str | None, constraints: Constraints | None = None) -> Candidates:
        """Ranks of routable workers that serve `model` (None: any model) and fit `constraints`; never empty.

        Raises:
            UnknownModelError: no worker, routable or not, serves it.
            UnmetConstraintError: none of those that do is what is asked for.
            NoWorkerError: none of those that do, and fit, is routable.
        """
        if constraints is not None:
            return self._fitting(model, constraints)
        found = self._candidates.get(model)
        if found is None:
            found = self._find(model, self.defaults)
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
    ) -> Candidates:
        """The candidates that are left without some workers; raises NoWorkerError where nobody is."""
        left = candidates.only(
            rank.worker_id not in exclude and (allowed is None or rank.worker_id in allowed) for rank in candidates
        )
        if left:
            return left
        raise NoWorkerError(f"none of the {len(candidates)} available ranks is left after the request's own conditions")

    def _changed(self) -> None:
        self.version += 1
        self._candidates.clear()
        self._narrowed.clear()

    def _fitting(self, model: str | None, constraints: Constraints) -> Candidates:
        key = model, constraints
        found = self._narrowed.get(key)
        if found is None:
            found = self._find(model, constraints)
            if len(self._narrowed) >= _NARROWED_MAX:  # clients choose what they ask for
                self._narrowed.clear()
            self._narrowed[key] = found
        return found

    def _find(self, model: str | None, constraints: Constraints) -> Candidates:
        if not self._workers:
            raise NoWorkerError("there are no workers")
        serving = [
            worker for worker in self._workers.values() if model is None or not worker.models or model in worker.models
        ]
        if not serving:
            assert model is not None
            raise UnknownModelError(model, frozenset().union(*(worker.models for worker in self._workers.values())))
        found = fitting(serving, constraints)
        routable = [worker for worker in found if worker.routable]
        if not routable:
            names = ", ".join(worker.worker_id for worker in found[:8])
            raise NoWorkerError(f"no worker can take requests now; not routable: {names}")
        return _candidates(routable, constraints)


def _candidates(workers: Sequence[FleetWorker], asked: Constraints) -> Candidates:
    """The ranks of workers that fit, with what those cost that are not what is preferred."""
    pinned = asked.pinned
    ranks = [
        (rank, worker.traits) for worker in workers for rank in worker.ranks if pinned is None or rank.source == pinned
    ]
    if not ranks and pinned is not None:
        raise UnmetConstraintError(
            f"rank {pinned.rank} of worker {pinned.worker_id!r}, to which this is pinned, is not available"
        )
    return Candidates((rank for rank, _ in ranks), [asked.seconds(rank.source, traits) for rank, traits in ranks])


def worth_their_extra(candidates: Candidates, model: CostModel, now: float) -> Candidates:
    """The candidates among which a policy chooses that does not weigh `extra_seconds` itself.

    Those of one price: of the price whose least busy rank is predicted to be done first, the price included. So all
    requests stay among the preferred ranks until those are busier than others by more than the others' price.
    """
    extra = candidates.extra_seconds
    if extra is None:
        return candidates
    waits = (
        model.cost(load, 0, 0, now).first_token + price for load, price in zip(candidates.loads, extra, strict=True)
    )
    _, worth = min(zip(waits, extra, strict=True))
    return candidates.only(price == worth for price in extra)
