"""What a router asks a worker over a plane: HTTP's requests and answers, without HTTP. Pure.

A call is a request whose body is that of the HTTP request, whose metadata are method and target, and whose headers are
those that mean something to an engine. The answer's first item is its head, JSON: status and headers; the further
items are the body in pieces, as the client shall get them: events of a stream as they are made, or a whole JSON text.
So an engine that speaks HTTP is put behind a plane without anything being translated (`kvrouter worker`), and a handler
of one's own says with `answer_head` what it answers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil

import msgspec

from kvrouter.errors import TransportError, WireError
from kvrouter.transport.context import Context
from kvrouter.transport.http_errors import status_of
from kvrouter.transport.messages import Request, encode_error

__all__ = ["AnswerHead", "Call", "answer_head", "call_request", "error_answer", "read_answer_head", "read_call"]

EVENT_STREAM = "text/event-stream"
JSON = "application/json"
_METHOD, _TARGET = "method", "target"
_AUTHORIZATION, _CALLERS = "authorization", "call-authorization"
"""The first is between router and worker, on every plane; that of the call is the engine's, and goes as the second."""
_TARGET_CHARACTERS_MAX = 8192
# Between two neighbours, or about a connection that is none here.
_NOT_CARRIED = frozenset({"connection", "content-length", "host", "keep-alive", "te", "transfer-encoding", "upgrade"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One HTTP request as a worker sees it; names of headers are in lower case."""

    method: str
    target: str
    body: bytes | memoryview = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]


class AnswerHead(msgspec.Struct, frozen=True):
    """How an answer begins."""

    status: int = 200
    headers: dict[str, str] = {}


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(AnswerHead).decode


def call_request(endpoint: str, method: str, target: str, body: bytes) -> Request:
    """The request of a call; its headers go into the context (`carried`)."""
    return Request(endpoint=endpoint, body=body, metadata={_METHOD: method, _TARGET: target})


def carried(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers as a context has them: names in lower case, several of one name in one, without those of a connection."""
    found: dict[str, str] = {}
    for given, value in headers:
        name = given.lower()
        if name not in _NOT_CARRIED:
            name = _CALLERS if name == _AUTHORIZATION else name
            found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def read_call(request: Request, context: Context) -> Call:
    """The call that a request is.

    Raises:
        TransportError: it is none; `INVALID_ARGUMENT`.
    """
    method, target = request.metadata.get(_METHOD, ""), request.metadata.get(_TARGET, "")
    if not method.isalpha() or not target.startswith("/") or len(target) > _TARGET_CHARACTERS_MAX:
        raise TransportError("the request names no method and target of HTTP", code="INVALID_ARGUMENT")
    headers = {name.lower(): value for name, value in context.headers.items() if name.lower() not in _NOT_CARRIED}
    headers.pop(_AUTHORIZATION, None)
    if _CALLERS in headers:
        headers[_AUTHORIZATION] = headers.pop(_CALLERS)
    return Call(method=method, target=target, body=request.body, headers=headers)


def answer_head(content_type: str, *, status: int = 200, length: int | None = None, **headers: str) -> bytes:
    """The first item of an answer; with `length` the body is of that many bytes, else it ends with the answer."""
    told = {"content-type": content_type, **headers}
    if length is not None:
        told["content-length"] = str(length)
    return _encode(AnswerHead(status, told))


def encode_answer_head(head: AnswerHead) -> bytes:
    """The first item of an answer."""
    return _encode(head)


def read_answer_head(item: bytes) -> AnswerHead:
    """Read the first item of an answer.

    Raises:
        WireError: it is no head, or its status is none of 200 to 599.
    """
    try:
        head = _decode(item)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(f"the first item of an answer is no head: {error}") from None
    if not 200 <= head.status <= 599:
        raise WireError(f"the head of an answer has the status {head.status}")
    return AnswerHead(head.status, {name.lower(): value for name, value in head.headers.items()})


def error_answer(error: TransportError) -> tuple[AnswerHead, bytes]:
    """What a worker's failure is in HTTP: a head, and the body that OpenAI clients understand."""
    status = status_of(encode_error(error))
    kind = "invalid_request_error" if 400 <= status < 500 else "server_error"
    told = {"message": str(error), "type": kind, "param": None, "code": error.code.lower()}
    body = _encode({"error": told})
    headers = {"content-type": JSON, "content-length": str(len(body))}
    again = getattr(error, "retry_after_seconds", None)
    if again is not None:
        headers["retry-after"] = str(ceil(again))
    return AnswerHead(status, headers), body
