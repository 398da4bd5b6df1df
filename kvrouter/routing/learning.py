"""What a router learns as it goes: speeds of ranks, the price of delay, and how far promises can be believed.

These are `speeds.py`, `tier_costs.py`, `pressure.py`, `losses.py` and `audit.py`; nearly all of it ends up in the loads
of the ranks, where a choice reads it. Once a second is often enough; so that nothing has to wake up for it, whoever
tells the time to a router calls `advance`, which mostly does nothing.
"""

from collections.abc import Callable

from kvrouter.routing.audit import Audit
from kvrouter.routing.cost import staying
from kvrouter.routing.fleet import Fleet, FleetWorker
from kvrouter.routing.load import Booking, Outcome
from kvrouter.routing.losses import Losses
from kvrouter.routing.pressure import Evictions, Pressure
from kvrouter.routing.rank_load import pairs_of
from kvrouter.routing.settings import RoutingSettings
from kvrouter.routing.speeds import Speeds
from kvrouter.routing.tier_costs import TierCosts

__all__ = ["BlockSize", "Learning"]

BlockSize = Callable[[int], int | None]
"""Tokens per block of a dense rank; None until known."""


class Learning:
    """Speeds, pressure and kept promises of one fleet."""

    __slots__ = (
        "_block_size", "_fleet", "_usual_block_size", "audit", "due", "last", "losses", "pressure", "speeds", "tiers",
    )  # fmt: skip

    def __init__(
        self,
        fleet: Fleet,
        settings: RoutingSettings,
        *,
        evictions: Evictions,
        block_size: BlockSize,
    ) -> None:
        self._fleet = fleet
        self._block_size, self._usual_block_size = block_size, settings.block_size
        self.speeds = Speeds(settings)
        self.pressure = Pressure(evictions)
        self.audit = Audit()
        self.losses = Losses()
        self.tiers = TierCosts(settings.tier_costs)
        self.last = self.due = float("-inf")
        """`advance` is to be called when the time is not between these two."""

    def adopt(self, worker: FleetWorker) -> None:
        """A worker is new."""
        for rank in worker.ranks:
            self.speeds.adopt(rank.load, worker.models)

    def forget(self, worker: FleetWorker) -> None:
        """A worker is gone."""
        for rank in worker.ranks:
            self.speeds.forget(rank.dense_rank)
            self.pressure.forget(rank.dense_rank)
            self.audit.forget(rank.dense_rank)
            self.losses.forget(rank.dense_rank)

    def first_token(self, booking: Booking, now: float) -> None:
        """The first token of a booking came, which has not been noted in it yet."""
        outcome = booking.outcome
        if outcome is not None and outcome.first_token_seconds is not None:
            booking.load.observe(outcome.cost, outcome.first_token_seconds)
            if outcome.loads and self._tells_of_a_tier(booking, outcome, now):
                return
        self.speeds.first_token(booking, now)

    def _tells_of_a_tier(self, booking: Booking, outcome: Outcome, now: float) -> bool:
        """Whether it was learnt from for a tier: then it is nothing to learn a speed of computing from."""
        overlap, tokens = outcome.overlap_tokens, outcome.prompt_tokens
        return self.tiers.first_token(booking, outcome.loads, promised=overlap, prompt_tokens=tokens, now=now)

    def answered(self, booking: Booking, *, promised: int, cached: int, now: float) -> None:
        """A booking ended of which `promised` tokens were promised and `cached` were."""
        load, expected = booking.load, promised
        outcome = booking.outcome
        if outcome is not None and outcome.first_token_seconds is not None and promised > 0:
            fresh = max(outcome.prompt_tokens - cached, 0)
            own = fresh * load.token_seconds + pairs_of(fresh, outcome.prompt_tokens) * load.pair_seconds
            waited = max(outcome.first_token_seconds - load.first_seconds - own, 0.0)
            kept, left, over = min(cached, promised), promised, booking.over_tokens
            if over:
                left = self.losses.overflowed(load, promised=promised, kept=kept, over=over)
            expected = staying(left, load.loss_rate * waited)
            self.losses.learn(load, promised=left, kept=min(kept, left), waited=waited)
        self.audit.answered(load, promised=promised, expected=expected, cached=cached, now=now)

    def slowness(self, dense_rank: int) -> float:
        """How many times longer than all ranks that serve the same models together a rank takes for its work."""
        target = self._fleet.ranks[dense_rank]
        return 1.0 if target is None else self.speeds.slowness(dense_rank, self._fleet.worker(target.worker_id).models)

    def advance(self, now: float) -> None:
        """Learn, if it is time to."""
        if self.last <= now < self.due:
            return
        for load in (rank.load for worker in self._fleet.workers() for rank in worker.ranks):
            load.block_size = self._block_size(load.rank) or self._usual_block_size
        ranks = [(rank.load, worker.models) for worker in self._fleet.workers() for rank in worker.ranks]
        self.pressure.tick(ranks, now)
        self.speeds.learn(ranks, now)
        self.audit.advance(now)
        self.last, self.due = now, self.pressure.due
