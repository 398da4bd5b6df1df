"""Who waits, and what is theirs: the tenants of an admission queue and their deficit counters.

Each tenant has a counter of prefill tokens. What is served is taken from it, and while it is above zero its tenant may
be served, in whatever order the queue has. When nobody who waits is above zero, a round ends: everybody gets a quantum
times their weight, and never has more than that (deficit longest prefix match, arXiv 2501.14312, with any order in the
place of the longest prefix). Of two tenants who wait all the time, none is ever ahead by more than one quantum and one
request, both by weight. Who did not wait saves nothing up, beyond one quantum.
"""

from collections.abc import Iterable, Iterator, Mapping
from math import floor
from types import MappingProxyType

__all__ = ["OTHERS", "Shares", "Tenant"]

OTHERS = "(others)"
"""Whom those belong to who are too many to be told apart."""

_NO_WEIGHTS: Mapping[str, float] = MappingProxyType({})


class Tenant:
    """One tenant: what waits for it, and what it was served."""

    __slots__ = ("bytes", "counter", "name", "requests", "round", "served_tokens", "tokens", "weight")

    def __init__(self, name: str, weight: float, *, counter: float, round_number: int) -> None:
        self.name, self.weight = name, weight
        self.counter = counter
        """Tokens that it may still be served, as of `round`."""
        self.round = round_number
        self.requests = self.bytes = self.tokens = 0
        """What waits."""
        self.served_tokens = 0
        """What was charged since it is known."""

    def wait(self, *, tokens: int, size: int) -> None:
        """One more request waits."""
        self.requests += 1
        self.tokens += tokens
        self.bytes += size

    def leave(self, *, tokens: int, size: int) -> None:
        """One waits no longer."""
        self.requests -= 1
        self.tokens -= tokens
        self.bytes -= size


class Shares:
    """The tenants that are known: those who wait, and for a while those who did. Bounded by `tenants_max`."""

    __slots__ = ("_quantum", "_tenants", "_tenants_max", "_weight", "_weights", "round")

    def __init__(
        self,
        *,
        quantum_tokens: int,
        tenants_max: int,
        weight: float = 1.0,
        weights: Mapping[str, float] = _NO_WEIGHTS,
    ) -> None:
        if quantum_tokens < 1 or tenants_max < 1:
            raise ValueError(f"quantum_tokens ({quantum_tokens}) and tenants_max ({tenants_max}) must be at least 1")
        for each in (weight, *weights.values()):
            if not 0 < each < float("inf"):
                raise ValueError(f"a weight is {each}; it must be above 0")
        self._quantum, self._tenants_max = quantum_tokens, tenants_max
        self._weight, self._weights = weight, dict(weights)
        self._tenants: dict[str, Tenant] = {}
        self.round = 0

    def change(self, *, quantum_tokens: int, tenants_max: int, weights: Mapping[str, float]) -> None:
        """Take other shares, for those who are known too; what they were served stays counted."""
        self._quantum, self._tenants_max, self._weights = quantum_tokens, tenants_max, dict(weights)
        for name, tenant in self._tenants.items():
            tenant.weight = self._weights.get(name, self._weight)

    def __len__(self) -> int:
        """Tenants that are known."""
        return len(self._tenants)

    def __iter__(self) -> Iterator[Tenant]:
        return iter(self._tenants.values())

    def tenant(self, name: str) -> Tenant:
        """The tenant of that name; a new one may be served a quantum in this round, like everybody.

        While as many wait as can be told apart, new ones are `OTHERS`, together.
        """
        found = self._tenants.pop(name, None)
        if found is None:
            if len(self._tenants) >= self._tenants_max and not self._forget_idle() and name != OTHERS:
                return self.tenant(OTHERS)
            weight = self._weights.get(name, self._weight)
            found = Tenant(name, weight, counter=self._quantum * weight, round_number=self.round)
        self._tenants[name] = found  # the last one is the one that was asked for last
        return found

    def counter(self, tenant: Tenant) -> float:
        """Tokens that a tenant may still be served in this round; above zero: it may be served."""
        if tenant.round != self.round:
            grant = self._quantum * tenant.weight
            tenant.counter = min(tenant.counter + (self.round - tenant.round) * grant, grant)
            tenant.round = self.round
        return tenant.counter

    def charge(self, tenant: Tenant, tokens: int) -> None:
        """Take what was served; less than nothing gives back."""
        tenant.counter = self.counter(tenant) - tokens
        tenant.served_tokens += tokens

    def end_round(self, waiting: Iterable[Tenant]) -> None:
        """Begin as many rounds as it takes until one of those who wait, all at or below zero, is above it."""
        self.round += min(floor(-self.counter(each) / (self._quantum * each.weight)) + 1 for each in waiting)

    def largest(self, measure: str, *, favourite: Tenant) -> Tenant:
        """Who has most waiting by weight, in `requests` or `bytes`; of equals, the favourite."""
        return max(
            self._tenants.values(),
            key=lambda each: (getattr(each, measure) / each.weight, each is favourite),
        )

    def is_over_share(self, tenant: Tenant) -> bool:
        """Whether a tenant has more waiting than its weight gives it, among several who wait."""
        waiting = [each for each in self._tenants.values() if each.requests]
        if len(waiting) < 2:
            return False
        weights = sum(each.weight for each in waiting)
        return tenant.requests * weights > tenant.weight * sum(each.requests for each in waiting)

    def _forget_idle(self) -> bool:
        """Forget the one who asked longest ago of those who do not wait."""
        idle = next((name for name, each in self._tenants.items() if not each.requests), None)
        if idle is None:
            return False
        del self._tenants[idle]
        return True
