"""What a client may ask over HTTP: the head of a GET and its parameters, read strictly. No sockets here.

Requests have no body. Whatever is not understood is refused with a status and one sentence that names the parameter;
nothing is guessed, because a misspelt `after` would silently be another question.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl

__all__ = ["HEAD_BYTES_MAX", "Answer", "Refusal", "Request", "json_answer", "parse_head"]

HEAD_BYTES_MAX: Final = 8192
_PARAMETERS_MAX: Final = 16
_HEADERS_MAX: Final = 64
_REQUEST_LINE: Final = re.compile(rb"([A-Z]{1,16}) ([\x21-\x7e]+) HTTP/1\.([01])")
_HEADER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\x80-\xff\t]*?)[ \t]*")
_REASONS: Final = {
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    410: "Gone",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


class Refusal(Exception):  # noqa: N818 - an answer to the client, not a fault of ours
    """The request gets this status and sentence; `fields` are further members of the JSON answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        fields: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers, self.fields = headers or {}, fields or {}

    def answer(self) -> "Answer":
        """Return the answer that says so."""
        error = {"message": self.message, "code": self.code, "param": self.param}
        return json_answer({"error": error, **self.fields}, status=self.status, headers=self.headers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A GET that was understood as such; header names are in lower case, parameters decoded."""

    path: str
    parameters: Mapping[str, str]
    headers: Mapping[str, str]
    keep_alive: bool = True

    def only(self, *known: str) -> None:
        """Refuse parameters that are not among `known`.

        Raises:
            Refusal: 400, it names the first unknown one.
        """
        for name in self.parameters:
            if name not in known:
                listing = ", ".join(known) or "none"
                raise Refusal(
                    400,
                    f"{self.path} has no parameter {name[:64]!r}; known: {listing}",
                    code="unknown_parameter",
                    param=name[:64],
                )

    def integer(self, name: str, *, least: int, most: int) -> int | None:
        """Return an integer parameter, None where it is absent.

        Raises:
            Refusal: 400, it is not an integer, or out of its bounds.
        """
        text = self.parameters.get(name)
        if text is None:
            return None
        if re.fullmatch(r"-?[0-9]{1,20}", text) and least <= int(text) <= most:
            return int(text)
        raise Refusal(400, f"{name} must be an integer from {least} to {most}", code="bad_parameter", param=name)

    def seconds(self, name: str, *, most: float) -> float:
        """Return a time parameter, 0 where it is absent, at most `most`.

        Raises:
            Refusal: 400, it is not a number of seconds.
        """
        text = self.parameters.get(name, "0")
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
            return min(float(text), most)
        raise Refusal(400, f"{name} must be a number of seconds, such as 20", code="bad_parameter", param=name)

    def life(self, name: str) -> int | None:
        """Return an incarnation, which is written in hexadecimal; None where it is absent.

        Raises:
            Refusal: 400, it is not up to 16 hexadecimal digits.
        """
        text = self.parameters.get(name)
        if text is None:
            return None
        if re.fullmatch(r"[0-9a-fA-F]{1,16}", text):
            return int(text, 16)
        raise Refusal(400, f"{name} must be up to 16 hexadecimal digits", code="bad_parameter", param=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A status, headers, and a body that is sent piece by piece."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Sequence[bytes] = ()

    def head(self, *, keep_alive: bool) -> bytes:
        """Return the status line and all headers, up to and with the empty line."""
        lines = [f"HTTP/1.1 {self.status} {_REASONS.get(self.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if self.status != 204:
            lines.append(f"Content-Length: {sum(map(len, self.body))}")
        lines += ["Cache-Control: no-store", f"Connection: {'keep-alive' if keep_alive else 'close'}", "", ""]
        return "\r\n".join(lines).encode("latin-1")


def json_answer(value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Return an answer whose body is `value` as JSON."""
    body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    return Answer(status=status, headers={"Content-Type": "application/json", **(headers or {})}, body=(body,))


def parse_head(head: bytes) -> Request:
    """Parse a request up to its empty line.

    Raises:
        Refusal: it is not an HTTP/1 request, not a GET, or has a body.
    """
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise Refusal(400, "the first line is not METHOD TARGET HTTP/1.1", code="bad_request")
    method, target, minor = match.groups()
    headers = _headers(lines)
    if method != b"GET":
        raise Refusal(405, "only GET is served here", code="method_not_allowed", headers={"Allow": "GET"})
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        raise Refusal(400, "a GET has no body here", code="bad_request", param="content-length")
    if minor == b"1" and "host" not in headers:
        raise Refusal(400, "the Host header is missing", code="bad_request", param="host")
    path, parameters = parse_target(target.decode("ascii"))
    options = {option.strip().lower() for option in headers.get("connection", "").split(",")}
    return Request(
        path=path, parameters=parameters, headers=headers, keep_alive=minor == b"1" and "close" not in options
    )


def parse_target(target: str) -> tuple[str, dict[str, str]]:
    """Split a request's target into its path and its parameters.

    Raises:
        Refusal: 400, it is not a path, or its query cannot be read or names something twice.
    """
    path, _, query = target.partition("?")
    if not path.startswith("/"):
        raise Refusal(400, "the target must be a path", code="bad_request")
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=_PARAMETERS_MAX, errors="strict"
        )
    except ValueError:
        raise Refusal(400, "the query must be NAME=VALUE, joined by &", code="bad_query") from None
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        name = next(name for number, (name, _) in enumerate(pairs) if name in dict(pairs[:number]))
        raise Refusal(400, f"{name[:64]!r} is given twice", code="bad_query", param=name[:64])
    return path, parameters


def _headers(lines: Sequence[bytes]) -> dict[str, str]:
    if len(lines) > _HEADERS_MAX:
        raise Refusal(431, f"more than {_HEADERS_MAX} headers", code="too_many_headers")
    headers: dict[str, str] = {}
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise Refusal(400, "a header is malformed", code="bad_request")
        name, value = match.group(1).decode("ascii").lower(), match.group(2).decode("latin-1")
        if name in headers and name in {"authorization", "content-length", "host", "transfer-encoding"}:
            raise Refusal(400, f"{name} is given twice", code="bad_request", param=name)
        headers[name] = value
    return headers
