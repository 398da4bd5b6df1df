"""What a routing policy is: given candidates and a request, it names one candidate."""

from typing import Protocol, TypeAlias

import msgspec

from kvrouter.blocks import Prompt
from kvrouter.routing.fleet import Candidates, FleetRank

__all__ = ["Choice", "Policy", "Request", "by_load"]

# The chosen rank, and in one word why.
Choice: TypeAlias = tuple[FleetRank, str]


class Request(msgspec.Struct, eq=False, frozen=True, gc=False):
    """What a policy may know of a request.

    `credits` are the prompt tokens that each dense rank is believed to have cached; ranks that have none are absent.
    `prompt` is None, and `tokens` 0, where nothing is known of it.
    """

    prompt: Prompt | None
    tokens: int
    credits: dict[int, int]
    session: str | None
    now: float = 0.0


class Policy(Protocol):
    """Chooses a rank. Deterministic: the same fleet, request and own history give the same choice.

    `candidates` is never empty and in a stable order. A policy reads loads and turns; it changes nothing but itself.
    Optional attributes, False without them: `uses_sessions`, whether it looks at `Request.session`, which is only
    searched for if it does; `weighs_extra_seconds`, whether it looks at `Candidates.extra_seconds`; `weighs_room`,
    whether loads say how much fits into a rank's cache, and what does not is booked as prompt tokens to compute.
    """

    name: str

    def choose(self, candidates: Candidates, request: Request) -> Choice:
        """Return one of `candidates` and the reason."""
        ...


def by_load(rank: FleetRank) -> tuple[int, int, int]:
    """Sorts the least busy rank first; among equals the one that was chosen longest ago."""
    load = rank.load
    return load.active_requests, load.prefill_tokens, rank.turn
