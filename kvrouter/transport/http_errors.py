"""What HTTP's statuses mean for requests between workers, both ways. Pure.

An error before the answer has begun is a status with a JSON body, `{"error": {code, message, retryable}}`; the codes
are gRPC's canonical names, the statuses those of their mapping to HTTP.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from kvrouter.errors import RefusedError
from kvrouter.transport.messages import encode_error

__all__ = ["STATUSES", "HttpRefusedError", "error_body", "refusal_of", "status_of"]

STATUSES: Final[Mapping[str, int]] = {
    "INVALID_ARGUMENT": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "CONFLICT": 409,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "FAILED_PRECONDITION": 412,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "DATA_LOSS": 500,
    "UNKNOWN": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
    "PAYLOAD_TOO_LARGE": 413,
}
"""By the names of gRPC (https://grpc.io/docs/guides/status-codes/) and two of HTTP's own. What is not here is 500."""

_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    410: "FAILED_PRECONDITION",
    412: "FAILED_PRECONDITION",
    413: "RESOURCE_EXHAUSTED",
    415: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    529: "RESOURCE_EXHAUSTED",
}
_RETRYABLE_STATUSES = frozenset({429, 502, 503, 529})
_TEXT_CHARACTERS_MAX = 256


class HttpRefusedError(RefusedError):
    """A request is refused with a status of its own and further headers."""

    def __init__(self, status: int, message: str, *, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(message, code=_CODES.get(status, "UNKNOWN"), retryable=status in _RETRYABLE_STATUSES)
        self.status, self.headers = status, headers


class _Code(msgspec.Struct):
    code: str = "UNKNOWN"


class _Body(msgspec.Struct):
    error: msgspec.Raw


def status_of(told: bytes) -> int:
    """The status for an error as `encode_error` writes it."""
    return STATUSES.get(msgspec.json.decode(told, type=_Code).code, 500)


def error_body(told: bytes) -> bytes:
    """The body for such an error."""
    return b'{"error":' + told + b"}"


def refusal_of(status: int, body: bytes) -> bytes:
    """The error of an answer that is no success, as `encode_error` writes it; whoever wrote it, a proxy too."""
    try:
        told = bytes(msgspec.json.decode(body, type=_Body).error)
        msgspec.json.decode(told, type=_Code)
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = body[:_TEXT_CHARACTERS_MAX].decode(errors="replace")
        return encode_error(HttpRefusedError(status, f"HTTP status {status}: {text}"))
    return told
