"""Policies that send what belongs together to the same place, knowing nothing of caches.

Rendezvous hashing: every key has its own order of all ranks. When a rank leaves, only its own keys move; when it comes
back, they return.
"""

from collections.abc import Sequence
from math import ceil
from struct import Struct

from xxhash import xxh3_64_intdigest

from kvrouter.routing.fleet import FleetRank
from kvrouter.routing.policy import Choice, Request, by_load
from kvrouter.routing.settings import RoutingSettings

__all__ = ["PrefixHashPolicy", "StickyPolicy"]

# A prompt without a session is recognised by this many leading tokens.
_STICKY_TOKENS = 2048
_PREFIX_TOKENS = 1024
# A rank takes at most this multiple of the mean number of requests.
_BOUND = 1.25

_pack_pair = Struct("<QQ").pack


class StickyPolicy:
    """A session stays on its rank as long as the rank is there.

    A request without a session is recognised by the beginning of its prompt, and without that goes where load is least.
    """

    name = "sticky"
    uses_sessions = True

    def __init__(self, settings: RoutingSettings) -> None:
        self._block_size = settings.block_size

    def choose(self, candidates: Sequence[FleetRank], request: Request) -> Choice:
        """Return the rank on which the session's hash is highest."""
        if request.session is not None:
            key, reason = xxh3_64_intdigest(request.session.encode()), "session"
        else:
            found = _beginning(request, _STICKY_TOKENS, self._block_size)
            if found is None:
                return min(candidates, key=by_load), "load"
            key, reason = found, "prefix"
        return max(candidates, key=lambda rank: _weight(key, rank)), reason


class PrefixHashPolicy:
    """Consistent hashing with bounded loads: prompts that begin alike go together, until a rank has too many.

    The key is the first 1024 tokens. A rank with more than 1.25 times the mean number of requests is passed over for
    the next one in the key's order. Mirrokni, Thorup and Zadimoghaddam, Consistent Hashing with Bounded Loads, 2017.
    """

    name = "prefix-hash"

    def __init__(self, settings: RoutingSettings) -> None:
        self._block_size = settings.block_size

    def choose(self, candidates: Sequence[FleetRank], request: Request) -> Choice:
        """Return the first rank in the prompt's order that has room."""
        key = _beginning(request, _PREFIX_TOKENS, self._block_size)
        if key is None:
            return min(candidates, key=by_load), "load"
        most = ceil(_BOUND * (1 + sum(each.load.active_requests for each in candidates)) / len(candidates))
        order = sorted(candidates, key=lambda rank: _weight(key, rank), reverse=True)
        chosen = next(each for each in order if each.load.active_requests < most)
        return chosen, "prefix" if chosen is order[0] else "bound"


def _weight(key: int, rank: FleetRank) -> int:
    return xxh3_64_intdigest(_pack_pair(key, rank.identity))


def _beginning(request: Request, tokens: int, block_size: int) -> int | None:
    """A number for the first tokens of a prompt; None if it has no whole block."""
    if request.prompt is None:
        return None
    block_size = request.prompt.block_size or block_size
    hashes = request.prompt.hash_list(block_size)[: max(1, tokens // block_size)]
    return hashes[-1] if hashes else None
