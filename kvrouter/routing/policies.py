"""The simple policies, and all of them by name."""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from random import Random
from struct import Struct
from types import MappingProxyType

from xxhash import xxh3_64_intdigest

from kvrouter import native_core
from kvrouter.routing.fleet import FleetRank
from kvrouter.routing.kv import KvPolicy, NativeKvPolicy
from kvrouter.routing.policy import Choice, Policy, Request, by_load
from kvrouter.routing.settings import RoutingSettings

__all__ = ["POLICIES", "LeastLoadedPolicy", "RandomPolicy", "RoundRobinPolicy", "StickyPolicy", "make_policy"]

# A prompt without a session is recognised by this many leading tokens.
_STICKY_TOKENS = 2048

_turn = attrgetter("turn")
_pack_pair = Struct("<QQ").pack


class RoundRobinPolicy:
    """Every rank in turn. The one that waited longest is next, so a changing fleet stays even."""

    name = "round-robin"

    def choose(self, candidates: Sequence[FleetRank], request: Request) -> Choice:  # noqa: ARG002 - the interface
        """Return the rank that was chosen longest ago."""
        return min(candidates, key=_turn), "turn"


class RandomPolicy:
    """Any rank, each equally likely; the same seed gives the same choices."""

    name = "random"

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def choose(self, candidates: Sequence[FleetRank], request: Request) -> Choice:  # noqa: ARG002 - the interface
        """Return one of the ranks."""
        return self._random.choice(candidates), "random"


class LeastLoadedPolicy:
    """The rank with the fewest running requests, then the least prefill work, then the longest wait."""

    name = "least-loaded"

    def choose(self, candidates: Sequence[FleetRank], request: Request) -> Choice:  # noqa: ARG002 - the interface
        """Return the least loaded rank."""
        return min(candidates, key=by_load), "load"


class StickyPolicy:
    """A session stays on its rank as long as the rank is there.

    Rendezvous hashing: when a rank leaves, only its own sessions move; when it comes back, they return. A request
    without a session is recognised by the beginning of its prompt, and without that goes where load is least.
    """

    name = "sticky"

    def __init__(self, settings: RoutingSettings) -> None:
        self._block_size = settings.block_size

    def choose(self, candidates: Sequence[FleetRank], request: Request) -> Choice:
        """Return the rank on which the session's hash is highest."""
        if request.session is not None:
            key, reason = xxh3_64_intdigest(request.session.encode()), "session"
        else:
            hashes = self._beginning(request)
            if not hashes:
                return min(candidates, key=by_load), "load"
            key, reason = hashes[-1], "prefix"
        return max(candidates, key=lambda rank: xxh3_64_intdigest(_pack_pair(key, rank.identity))), reason

    def _beginning(self, request: Request) -> list[int]:
        if request.prompt is None:
            return []
        block_size = request.prompt.block_size or self._block_size
        return request.prompt.hash_list(block_size)[: max(1, _STICKY_TOKENS // block_size)]


POLICIES: Mapping[str, Callable[[RoutingSettings, int], Policy]] = MappingProxyType(
    {
        "kv": lambda settings, _: (NativeKvPolicy if native_core.present else KvPolicy)(settings),
        "round-robin": lambda _, __: RoundRobinPolicy(),
        "random": lambda _, seed: RandomPolicy(seed),
        "least-loaded": lambda _, __: LeastLoadedPolicy(),
        "sticky": lambda settings, _: StickyPolicy(settings),
    }
)


def make_policy(name: str, settings: RoutingSettings, *, seed: int = 0) -> Policy:
    """The policy of that name; raises ValueError that lists the known ones."""
    make = POLICIES.get(name)
    if make is None:
        raise ValueError(f"routing policy {name!r} is unknown; known: {', '.join(POLICIES)}")
    return make(settings, seed)
