"""How much a rank may have outstanding before new requests wait: the only thing that fills an admission queue."""

from dataclasses import dataclass

from kvrouter.routing.fleet import Candidates
from kvrouter.routing.load import RankLoad

__all__ = ["RankRoom"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRoom:
    """Bounds on one rank; 0 is none.

    A rank has room while it is below each of them, so an idle rank takes a prompt of any length.

    Attributes:
        requests_max: requests that are booked on it.
        prefill_tokens_max: uncached prompt tokens that it has not computed yet.
    """

    requests_max: int = 0
    prefill_tokens_max: int = 0

    @property
    def is_bounded(self) -> bool:
        """Whether there is any bound."""
        return self.requests_max > 0 or self.prefill_tokens_max > 0

    def has(self, load: RankLoad) -> bool:
        """Whether a rank with this load has room for one more request."""
        return (not self.requests_max or load.active_requests < self.requests_max) and (
            not self.prefill_tokens_max or load.prefill_tokens < self.prefill_tokens_max
        )

    def among(self, candidates: Candidates) -> Candidates:
        """Those that have room; perhaps none, and perhaps all, which then are the same object."""
        rooms = [self.has(load) for load in candidates.loads]
        return candidates if all(rooms) else candidates.only(rooms)

    def anywhere(self, candidates: Candidates) -> bool:
        """Whether one of them has room."""
        return any(map(self.has, candidates.loads))
