"""How often a client may ask: one token bucket per client, and a bound on how many clients are remembered. Pure."""

from collections import OrderedDict

from kvrouter.errors import SettingsError

__all__ = ["TokenBuckets"]

CLIENTS_MAX = 10_000


class TokenBuckets:
    """A bucket of `burst` tokens per client that fills at `per_second`; a request costs one.

    Lives on one event loop; a call is a few look-ups. Of more than `clients_max` clients the one that has not asked for
    longest is forgotten, and has a full bucket when it comes back.

    Raises:
        SettingsError: a number is none that could be kept to.
    """

    __slots__ = ("_buckets", "_burst", "_clients_max", "_per_second", "refused")

    def __init__(self, *, per_second: float, burst: float | None = None, clients_max: int = CLIENTS_MAX) -> None:
        self._per_second = per_second
        self._burst = max(1.0, per_second) if burst is None else burst
        self._clients_max = clients_max
        if not 0 < per_second < float("inf") or not 1 <= self._burst < float("inf") or clients_max < 1:
            raise SettingsError(
                f"a rate limit of {per_second:g} per second with bursts of {self._burst:g} lets nobody in"
            )
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self.refused = 0

    def __len__(self) -> int:
        """Clients that are remembered."""
        return len(self._buckets)

    def take(self, client: str, now: float) -> float:
        """Take a token; returns 0, or after how many seconds there will be one. `now` must never jump."""
        bucket = self._buckets.pop(client, None)
        tokens = self._burst
        if bucket is not None:
            tokens = min(self._burst, bucket[0] + (now - bucket[1]) * self._per_second)
        elif len(self._buckets) >= self._clients_max:
            self._buckets.popitem(last=False)
        if tokens < 1:
            self.refused += 1
            self._buckets[client] = tokens, now
            return (1 - tokens) / self._per_second
        self._buckets[client] = tokens - 1, now
        return 0.0
