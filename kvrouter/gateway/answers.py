"""One whole HTTP answer, before it is sent. Pure."""

from typing import Any, NamedTuple, TypeAlias

from kvrouter.errors import GatewayError
from kvrouter.gateway.error_table import error_body

__all__ = ["JSON", "Answer", "RawHeaders", "error_answer", "unpack_answer"]

RawHeaders: TypeAlias = tuple[tuple[bytes, bytes], ...]

JSON = (b"content-type", b"application/json")
_REPLAYED = (b"idempotent-replayed", b"true")
_OVERHEAD_BYTES = 300


class Answer(NamedTuple):
    """A status, headers and a body."""

    status: int
    body: bytes
    headers: RawHeaders = (JSON,)

    @property
    def bytes(self) -> int:
        """What it costs to keep it, about."""
        return len(self.body) + _OVERHEAD_BYTES

    @property
    def is_decision(self) -> bool:
        """Whether the same request would have the same answer later: not after failures, and not when told to wait."""
        return self.status < 500 and self.status not in (408, 429)

    def replayed(self) -> "Answer":
        """The same, for somebody who asks again."""
        return self if _REPLAYED in self.headers else self._replace(headers=(*self.headers, _REPLAYED))


def error_answer(error: GatewayError) -> Answer:
    """Return the answer that tells of an error."""
    headers: RawHeaders = (JSON,)
    if error.retry_after_seconds is not None:
        headers += ((b"retry-after", str(error.retry_after_seconds).encode()),)
    return Answer(error.status, error_body(error), headers)


def unpack_answer(packed: Any) -> Answer:
    """Return an answer that came from another process as a list."""
    status, body, headers = packed
    return Answer(status, body, tuple((name, value) for name, value in headers))
