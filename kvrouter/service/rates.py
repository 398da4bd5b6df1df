"""How often one client of the data plane may ask: by its API key, or where none is asked for by its address."""

from collections.abc import Callable
from math import ceil

from kvrouter.errors import ShedError
from kvrouter.service.auth import bearer_token
from kvrouter.service.proxy import Request
from kvrouter.settings import Settings
from kvrouter.transport.rate_limit import TokenBuckets

__all__ = ["ClientRates", "client_rates"]


class ClientRates:
    """Looks at a request when its key was found good, before its body is read. Costs a few look-ups."""

    __slots__ = ("_buckets", "_by_key", "_clock", "asked")

    def __init__(
        self, buckets: TokenBuckets, *, asked: tuple[float, int], by_key: bool, clock: Callable[[], float]
    ) -> None:
        self._buckets, self._by_key, self._clock = buckets, by_key, clock
        self.asked = asked
        """Rate and burst, as they were set."""

    @property
    def refused(self) -> int:
        """Requests that came too early."""
        return self._buckets.refused

    def check(self, request: Request) -> None:
        """Let the request pass; what is no request of the data plane costs nothing.

        Raises:
            ShedError: 429, with the seconds after which its client may ask again.
        """
        if not request.path.startswith("/v1/"):
            return
        client = request.peer.rpartition(":")[0] or request.peer
        if self._by_key:
            client = bearer_token(request.header(b"authorization")).decode("latin-1")
        seconds = self._buckets.take(client, self._clock())
        if seconds:
            raise ShedError(
                "too many requests of this client",
                status=429,
                code="rate_limited",
                retry_after_seconds=ceil(seconds),
            )


def client_rates(
    settings: Settings, clock: Callable[[], float], before: ClientRates | None = None
) -> ClientRates | None:
    """Make what the settings ask for; None where everybody may ask at any rate.

    What there was `before` is kept where it asks for the same; otherwise everybody begins anew, and the count goes on.
    """
    rate, burst = settings.limits.client_rate, settings.limits.client_burst
    if not rate:
        return None
    if before is not None and before.asked == (rate, burst):
        return before
    buckets = TokenBuckets(per_second=rate, burst=burst or None)
    if before is not None:
        buckets.refused = before.refused
    return ClientRates(buckets, asked=(rate, burst), by_key=bool(settings.auth.api_keys), clock=clock)
