"""Every error that kvrouter raises on purpose, one class per situation a caller can act on.

KvrouterError
├── SettingsError            a flag, variable or file is wrong; the process exits with 2
├── MissingExtraError        an optional dependency is not installed
├── WireError                a frame or batch from a peer cannot be understood
├── SnapshotError            a saved index is damaged or of another version
├── MappingError             an index cannot be shared between processes, or not be mapped; the text says why
│   ├── BusyIndexError       its writer changed it all the time; ask again, or ask the writer
│   └── StaleIndexError      its writer is gone: what it knew is not kept true any more
├── StoreError               an object or key cannot be stored or had back; `reason` says why
├── TransportError           a request or a stream between peers failed: `code` says how
│   ├── NoInstancesError     nobody serves the endpoint
│   ├── UnreachableError     no connection to the peer could be made
│   ├── DisconnectedError    the connection was lost before the stream had ended
│   ├── DeadlineError        it took longer than the caller would wait
│   ├── RefusedError         the peer will not take this request: unknown endpoint, too busy, draining, no right to
│   │   ├── UnauthenticatedError   the token is missing, unknown or over
│   │   ├── PermissionDeniedError  who asks is known, and may not
│   │   └── RateLimitedError       this client asks too often; `retry_after_seconds` says when it may again
│   ├── HandlerError         the peer's handler failed
│   └── ProtocolError        the peer broke the protocol
├── RoutingError             no worker can be chosen
│   ├── UnknownModelError    no worker serves the model
│   ├── NoWorkerError        workers exist, none may take the request now
│   │   └── UnmetConstraintError  none of them is what the request asks for, available or not
│   └── OverloadedError      a bound on queued work is reached
│       └── ShedError        a request is turned away before it costs anything; `status` and `code` say why
├── GatewayError             a request at the HTTP gateway has no result; carries the HTTP answer
└── RequestError             the client sent something that we refuse; carries the HTTP answer
"""

from collections.abc import Iterable

__all__ = [
    "BusyIndexError",
    "DeadlineError",
    "DisconnectedError",
    "GatewayError",
    "HandlerError",
    "KvrouterError",
    "MappingError",
    "MissingExtraError",
    "NoInstancesError",
    "NoWorkerError",
    "OverloadedError",
    "PermissionDeniedError",
    "ProtocolError",
    "RateLimitedError",
    "RefusedError",
    "RequestError",
    "RoutingError",
    "SettingsError",
    "ShedError",
    "SnapshotError",
    "StaleIndexError",
    "StoreError",
    "TransportError",
    "UnauthenticatedError",
    "UnknownModelError",
    "UnmetConstraintError",
    "WireError",
]

# Clients choose names and fleets have many: an error that repeats them all would be as long as they like.
_NAME_CHARACTERS_MAX = 256
_NAMES_LISTED_MAX = 64


class KvrouterError(Exception):
    """The root of the tree."""


class SettingsError(KvrouterError):
    """A setting is unknown, malformed or missing; the text is one line that names it."""


class MissingExtraError(KvrouterError):
    """An optional dependency is needed and not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional part; install it with: pip install 'kvrouter[{extra}]'")
        self.feature, self.extra = feature, extra


class WireError(KvrouterError):
    """Bytes from a peer cannot be understood; `reason` is a short label for a counter."""

    def __init__(self, message: str, *, reason: str = "malformed") -> None:
        super().__init__(message)
        self.reason = reason


class SnapshotError(KvrouterError):
    """A snapshot is damaged, truncated or of a version that we do not read."""


class MappingError(KvrouterError):
    """An index cannot be shared with other processes, or cannot be mapped."""


class BusyIndexError(MappingError):
    """The writer of a mapped index changed what was asked for all the time that the caller would wait."""


class StaleIndexError(MappingError):
    """The writer of a mapped index is gone, or has closed it. There may be a new one at the same path."""


class StoreError(KvrouterError):
    """An object or key cannot be stored or had back; `reason` is a short label for a counter.

    `missing` and `corrupt` tell what was found; `bad_name`, `too_large` and `unsupported` are the caller's to change;
    after `unavailable` the same call may succeed later.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class TransportError(KvrouterError):
    """A request or a stream between two peers failed.

    `code` is one of gRPC's canonical names (https://grpc.io/docs/guides/status-codes/). `retryable` tells that the same
    request may succeed elsewhere or later; it is true only while nothing of an answer was seen.
    """

    code = "UNKNOWN"
    retryable = False

    def __init__(self, message: str, *, code: str | None = None, retryable: bool | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable


class NoInstancesError(TransportError):
    """Nobody serves the endpoint now."""

    code, retryable = "UNAVAILABLE", True


class UnreachableError(TransportError):
    """No connection to the peer could be made: refused, no route, handshake failed."""

    code, retryable = "UNAVAILABLE", True


class DisconnectedError(TransportError):
    """The connection was lost before the stream had ended; what had arrived is whole."""

    code, retryable = "UNAVAILABLE", True


class DeadlineError(TransportError):
    """It took longer than the caller would wait."""

    code = "DEADLINE_EXCEEDED"


class RefusedError(TransportError):
    """The peer did not take the request, so nothing was done; `code` says why.

    `NOT_FOUND` (unknown endpoint), `RESOURCE_EXHAUSTED` (too busy), `UNAVAILABLE` (draining), `UNAUTHENTICATED`,
    `PERMISSION_DENIED`, `INVALID_ARGUMENT`.
    """

    code = "UNAVAILABLE"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retryable: bool | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message, code=code, retryable=retryable)
        if retryable is None:
            self.retryable = self.code in ("RESOURCE_EXHAUSTED", "UNAVAILABLE")
        self.retry_after_seconds = retry_after_seconds


class UnauthenticatedError(RefusedError):
    """The peer does not know who asks: the token, or the certificate, is missing, unknown or over."""

    code = "UNAUTHENTICATED"


class PermissionDeniedError(RefusedError):
    """The peer knows who asks, and they may not."""

    code = "PERMISSION_DENIED"


class RateLimitedError(RefusedError):
    """This client asks too often; not to be tried elsewhere, but again after `retry_after_seconds`."""

    code = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message, retryable=False, retry_after_seconds=retry_after_seconds)


class HandlerError(TransportError):
    """The peer's handler failed; `code` and text are what it said."""

    code = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retryable: bool | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message, code=code, retryable=retryable)
        self.retry_after_seconds = retry_after_seconds


class ProtocolError(TransportError):
    """The peer broke the protocol; the stream, or where framing is lost the connection, is closed."""

    code = "INTERNAL"


class RoutingError(KvrouterError):
    """No worker can be chosen for a request."""


class UnknownModelError(RoutingError):
    """No worker serves `model`; `known` lists what the fleet serves."""

    def __init__(self, model: str, known: Iterable[str]) -> None:
        self.model, self.known = model, tuple(sorted(known))
        named = model if len(model) <= _NAME_CHARACTERS_MAX else model[:_NAME_CHARACTERS_MAX] + "..."
        listing = ", ".join(self.known[:_NAMES_LISTED_MAX]) or "none yet"
        if len(self.known) > _NAMES_LISTED_MAX:
            listing += f" and {len(self.known) - _NAMES_LISTED_MAX} more"
        super().__init__(f"model {named!r} is not served here; known models: {listing}")


class NoWorkerError(RoutingError):
    """Workers may exist, but none can take this request now."""

    def __init__(self, reason: str, *, retry_after_seconds: int = 1) -> None:
        super().__init__(reason)
        self.reason, self.retry_after_seconds = reason, retry_after_seconds


class UnmetConstraintError(NoWorkerError):
    """No worker, available or not, is what the request asks for; the text names the condition and what there is."""


class OverloadedError(RoutingError):
    """A bound on waiting work is reached; trying again later may succeed."""

    def __init__(self, reason: str, *, retry_after_seconds: int = 1) -> None:
        super().__init__(reason)
        self.reason, self.retry_after_seconds = reason, retry_after_seconds


class ShedError(OverloadedError):
    """A request is turned away before it costs anything.

    `status` is 429 where its tenant has more waiting than its share, 503 where the fleet is too busy, and 504 where its
    own deadline cannot be met; `code` is what clients and counters know the reason by.
    """

    def __init__(self, reason: str, *, status: int, code: str, retry_after_seconds: int = 1) -> None:
        super().__init__(reason, retry_after_seconds=retry_after_seconds)
        self.status, self.code = status, code


class GatewayError(KvrouterError):
    """A request at the gateway has no result: `status` and `code` are what the client is told, with the text."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str,
        details: object = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.details = message, status, code, details
        self.retry_after_seconds = retry_after_seconds


class RequestError(KvrouterError):
    """A client's request is refused; carries what an OpenAI client expects to read."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        allow: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.kind, self.code, self.param = message, status, kind, code, param
        self.allow = allow

    @classmethod
    def wrong_method(cls, path: str, allow: str) -> "RequestError":
        """Return the 405 of a path that takes the methods of `allow` only; RFC 9110 wants them in a header too."""
        message = f"{path} takes {allow.replace(', ', ' and ')}"
        return cls(message, status=405, code="method_not_allowed", allow=allow)
