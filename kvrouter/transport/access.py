"""Who may ask a worker, for what and how often; and what clients show. Tokens are told to nobody: no log, no error.

A request's token travels as its header `authorization`, on every transport: in the request's own headers, or beside
them where the transport has a place for it (HTTP headers, gRPC metadata, the hello of a TCP connection). Handlers never
see it; they see who it was, as `context.identity`.
"""

import hmac
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from kvrouter.errors import PermissionDeniedError, RateLimitedError, SettingsError, UnauthenticatedError
from kvrouter.transport.rate_limit import TokenBuckets

__all__ = [
    "NOBODY",
    "AccessGuard",
    "ApiKey",
    "Authoriser",
    "Identity",
    "Peer",
    "StaticKeys",
    "Token",
    "token_of",
    "with_token",
    "without_token",
]

HEADER = "authorization"

Token: TypeAlias = str | Callable[[], str]
"""What a client shows: a token, or what returns the one that is good now; called for every request."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks. `endpoints` is what they may ask for; None is everything."""

    name: str
    endpoints: frozenset[str] | None = None


NOBODY = Identity("")


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end as its transport knows it: an address, and the `authorization` that came beside the requests."""

    address: str = ""
    authorization: str | None = field(default=None, repr=False)


class Authoriser(Protocol):
    """Tells by a token who asks. Called for every request, so it is quick; what it keeps has a bound."""

    def identify(self, token: str | None) -> Identity:
        """Return who shows `token`; None is nobody who shows one.

        Raises:
            UnauthenticatedError: the token is missing, unknown or over.
            PermissionDeniedError: it is good, but not for this service.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One key. `name` is how its owner is told of; `endpoints` is what it opens, None everything."""

    name: str
    key: str = field(repr=False)
    endpoints: frozenset[str] | None = None


class StaticKeys:
    """An `Authoriser` of keys that are known beforehand.

    Raises:
        SettingsError: there are none, or two have the same name.
    """

    def __init__(self, keys: Iterable[ApiKey] | Mapping[str, str]) -> None:
        if isinstance(keys, Mapping):
            keys = [ApiKey(name=name, key=key) for name, key in keys.items()]
        self._keys = [(each.key.encode(), Identity(each.name, each.endpoints)) for each in keys]
        if not self._keys or not all(key for key, _ in self._keys):
            raise SettingsError("API keys: there are none, or one is empty")
        if len({identity.name for _, identity in self._keys}) < len(self._keys):
            raise SettingsError("API keys: two have the same name")

    def identify(self, token: str | None) -> Identity:
        """Compare with every key, so that the time tells nothing about which one matched; see `Authoriser`."""
        if token is None:
            raise UnauthenticatedError("a token is needed")
        shown, found = token.encode(), None
        for key, identity in self._keys:
            if hmac.compare_digest(shown, key):
                found = identity
        if found is None:
            raise UnauthenticatedError("the token is not known here")
        return found


class AccessGuard:
    """Lets requests in: who asks by `authorise`, how often by `rate_limit`; without them everybody, at any rate.

    Rates are counted by name, or where nobody is asked for one by the address that the transport tells. One guard may
    serve several workers of a process. `clock` is any that does not jump, in seconds.
    """

    def __init__(
        self,
        *,
        authorise: Authoriser | None = None,
        rate_limit: TokenBuckets | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._authorise, self._rate_limit, self._clock = authorise, rate_limit, clock

    @property
    def wants_addresses(self) -> bool:
        """Whether it matters where a request comes from."""
        return self._authorise is None and self._rate_limit is not None

    def identify(self, peer: Peer, headers: Mapping[str, str] | None = None) -> Identity:
        """Tell who asks, by what a request says in its `headers` or its transport beside them.

        Raises:
            UnauthenticatedError, PermissionDeniedError: as `Authoriser.identify`.
        """
        if self._authorise is None:
            return NOBODY
        shown = peer.authorization if headers is None else headers.get(HEADER, peer.authorization)
        return self._authorise.identify(_bearer(shown))

    def admit(self, endpoint: str, headers: Mapping[str, str], peer: Peer) -> Identity:
        """Let one request in.

        Raises:
            UnauthenticatedError, PermissionDeniedError: as `Authoriser.identify`, and if they may not ask for this.
            RateLimitedError: they ask too often.
        """
        identity = self.identify(peer, headers)
        if self._rate_limit is not None:
            seconds = self._rate_limit.take(identity.name or f"@{peer.address}", self._clock())
            if seconds:
                raise RateLimitedError("too many requests of this client", retry_after_seconds=seconds)
        if identity.endpoints is not None and endpoint not in identity.endpoints:
            raise PermissionDeniedError(f"{identity.name} may not ask for endpoint {endpoint[:256]!r}")
        return identity


def token_of(token: Token | None) -> str | None:
    """What is to be shown now."""
    return token() if callable(token) else token


def with_token(headers: Mapping[str, str], token: Token | None) -> Mapping[str, str]:
    """The headers of a request, with what its client shows; those that name it already keep it."""
    if token is None or HEADER in headers:
        return headers
    return {**headers, HEADER: f"Bearer {token_of(token)}"}


def without_token(headers: Mapping[str, str]) -> Mapping[str, str]:
    """The headers as handlers see them."""
    return {name: value for name, value in headers.items() if name != HEADER} if HEADER in headers else headers


def _bearer(authorization: str | None) -> str | None:
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None
