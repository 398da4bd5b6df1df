"""Refusals as text, for acknowledgements that are empty or say in words why not. Pure.

The words are those of Dynamo's TCP request plane, so that its clients understand them: what begins with `Server
overloaded:` or `Server unavailable:` may be tried elsewhere.
"""

import re

from kvrouter.errors import RateLimitedError, RefusedError
from kvrouter.transport.messages import refusal

__all__ = ["refusal_from_text", "refusal_text"]

_BEGINNINGS = {
    "RESOURCE_EXHAUSTED": "Server overloaded: ",
    "UNAVAILABLE": "Server unavailable: ",
    "NOT_FOUND": "Unknown endpoint: ",
    "INVALID_ARGUMENT": "Invalid message: ",
    "ALREADY_EXISTS": "Repeated request: ",
    "UNAUTHENTICATED": "Unauthenticated: ",
    "PERMISSION_DENIED": "Permission denied: ",
}
_TOO_OFTEN = re.compile(r"Too many requests, again in ([0-9]{1,9}(?:\.[0-9]{1,6})?) s: ")
_TEXT_BYTES_MAX = 4096


def refusal_text(error: RefusedError) -> bytes:
    """What is said instead of an acknowledgement; never empty."""
    if isinstance(error, RateLimitedError):
        return f"Too many requests, again in {error.retry_after_seconds:.3f} s: {error}".encode()[:_TEXT_BYTES_MAX]
    return f"{_BEGINNINGS.get(error.code, 'Refused: ')}{error}".encode()[:_TEXT_BYTES_MAX]


def refusal_from_text(text: bytes) -> RefusedError:
    """What a text means; an unknown one is a refusal that is not retried."""
    told = text[:_TEXT_BYTES_MAX].decode(errors="replace")
    for code, beginning in _BEGINNINGS.items():
        if told.startswith(beginning.rstrip()):
            return refusal(told, code=code)
    if (often := _TOO_OFTEN.match(told)) is not None:
        return RateLimitedError(told, retry_after_seconds=float(often[1]))
    if told.startswith("Request too large"):
        return RefusedError(told, code="INVALID_ARGUMENT")
    return RefusedError(told, code="INTERNAL", retryable=False)
