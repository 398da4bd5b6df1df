"""Answers of our own: OpenAI-shaped errors, and how a reply becomes bytes."""

import json
from http import HTTPStatus
from typing import Final

from kvrouter.errors import (
    KvrouterError,
    NoWorkerError,
    OverloadedError,
    RequestError,
    ShedError,
    UnknownModelError,
    UnmetConstraintError,
)

from .messages import Outcome, Reply

__all__ = ["CONTINUE", "UpstreamError", "error_object", "error_reply", "render_reply"]

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_MESSAGE_CHARACTERS_MAX: Final = 4096
"""Errors may quote what clients sent; nobody gets megabytes of it back."""
_PARAM_CHARACTERS_MAX: Final = 256
_JSON: Final = (b"content-type", b"application/json")
_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in HTTPStatus if status.value >= 200
}


class UpstreamError(KvrouterError):
    """A worker did not give a whole, well-formed answer; `outcome` says how it failed."""

    def __init__(
        self, message: str, *, outcome: Outcome, status: int | None = None, retry_after_seconds: int = 1
    ) -> None:
        super().__init__(message)
        self.outcome: Outcome = outcome
        self.status, self.retry_after_seconds = status, retry_after_seconds
        """Status of the reply, None for that of the outcome."""

    def about(self, who: str) -> "UpstreamError":
        """Return the same, with who it is about."""
        return UpstreamError(
            f"{who}: {self}", outcome=self.outcome, status=self.status, retry_after_seconds=self.retry_after_seconds
        )


_UPSTREAM: Final[dict[str, tuple[int, str]]] = {
    "connect_failed": (503, "worker_unreachable"),
    "saturated": (503, "worker_saturated"),
    "upstream_lost": (502, "worker_lost"),
    "bad_response": (502, "worker_bad_response"),
    "timeout": (504, "worker_timeout"),
    "error_status": (502, "worker_failed"),
}
_COME_AGAIN: Final = frozenset({429, 502, 503, 529})
"""Statuses that say to try again later; 529 is what some front ends answer for 503."""


def error_reply(error: KvrouterError) -> Reply:
    """Return the reply for an error: its status, and the body that OpenAI clients understand."""
    status, described = _describe(error)
    headers = [_JSON]
    if status in _COME_AGAIN or isinstance(error, ShedError):
        headers.append((b"retry-after", b"%d" % getattr(error, "retry_after_seconds", 1)))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, RequestError) and error.allow:
        headers.append((b"allow", error.allow.encode()))
    return Reply(status, json.dumps({"error": described}, separators=(",", ":")).encode(), headers)


def error_object(error: KvrouterError) -> bytes:
    """Return `{"error": ...}` as it is sent within a stream of events."""
    return json.dumps({"error": _describe(error)[1]}, separators=(",", ":")).encode()


def render_reply(
    reply: Reply, *, request_id: str, date: bytes, keep_alive: bool, http10: bool, head_only: bool
) -> bytes:
    """Return the bytes of a reply; `head_only` for answers to HEAD."""
    status_line = _STATUS_LINES.get(reply.status) or b"HTTP/1.1 %d " % reply.status
    lines = [status_line, *[b"%b: %b" % header for header in reply.headers]]
    if reply.status not in (204, 304):
        lines.append(b"content-length: %d" % len(reply.body))
    if request_id:
        lines.append(b"x-request-id: " + request_id.encode())
    lines.append(b"date: " + date)
    if not keep_alive:
        lines.append(b"connection: close")
    elif http10:
        lines.append(b"connection: keep-alive")
    return b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if head_only or reply.status in (204, 304) else reply.body)


def _describe(error: KvrouterError) -> tuple[int, dict[str, str | None]]:
    match error:
        case RequestError():
            return error.status, _shape(error.message, error.kind, error.code, error.param)
        case UpstreamError():
            status, code = _UPSTREAM[error.outcome]
            return error.status or status, _shape(str(error), "server_error", code)
        case UnknownModelError():
            return 404, _shape(str(error), "invalid_request_error", "model_not_found", "model")
        case UnmetConstraintError():
            return 422, _shape(str(error), "invalid_request_error", "unmet_constraint")
        case NoWorkerError():
            return 503, _shape(str(error), "server_error", "no_worker")
        case ShedError():
            kind = "rate_limit_error" if error.status == 429 else "server_error"
            return error.status, _shape(str(error), kind, error.code)
        case OverloadedError():
            return 503, _shape(str(error), "server_error", "overloaded")
        case _:
            return 500, _shape("the router failed to handle this request", "server_error", "internal_error")


def _shape(message: str, kind: str, code: str | None, param: str | None = None) -> dict[str, str | None]:
    return {
        "message": _cut(message, _MESSAGE_CHARACTERS_MAX),
        "type": kind,
        "param": param and _cut(param, _PARAM_CHARACTERS_MAX),
        "code": code,
    }


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[:characters] + "..."
