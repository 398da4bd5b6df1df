"""Headers of a request become the meta data of its message, and headers of the NATS message beside it. Pure.

`X-Trace-ID` and W3C's `traceparent` (https://www.w3.org/TR/trace-context/) are both taken and both sent on, so that
neither side has to change for the other.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from kvrouter.errors import GatewayError

__all__ = ["CLIENT_ID", "KEY_CHARACTERS_MAX", "Caller", "meta_fields", "nats_headers", "read_headers"]

CLIENT_ID: Final = "http-gateway"
KEY_CHARACTERS_MAX = 255
LABELS_MAX = 64
VALUE_CHARACTERS_MAX = 4096

_NAMES: Final = {
    b"x-trace-id": "trace_id",
    b"x-client-id": "client_id",
    b"x-user-id": "user_id",
    b"x-tenant-id": "tenant_id",
    b"traceparent": "traceparent",
    b"tracestate": "tracestate",
    b"idempotency-key": "idempotency_key",
    b"accept": "accept",
}
_LABEL: Final = b"x-custom-"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_NOTHING = "0" * 32


class Caller(NamedTuple):
    """What headers say of who asks. Empty where they say nothing."""

    labels: Mapping[str, str]
    trace_id: str = ""
    client_id: str = ""
    user_id: str = ""
    tenant_id: str = ""
    traceparent: str = ""
    tracestate: str = ""
    idempotency_key: str = ""
    accept: str = ""


def read_headers(headers: Iterable[tuple[bytes, bytes]]) -> Caller:
    """Read the headers of a request: pairs of a name, in whatever case, and a value.

    Raises:
        GatewayError: one is longer than anybody needs, or there are too many labels.
    """
    found: dict[str, str] = {}
    labels: dict[str, str] = {}
    for raw_name, value in headers:
        name = raw_name.lower()
        field = _NAMES.get(name)
        if field is not None:
            found.setdefault(field, value.decode("latin-1"))
        elif name.startswith(_LABEL) and len(name) > len(_LABEL):
            labels[name[len(_LABEL) :].decode("latin-1")] = value.decode("latin-1")
    if len(labels) > LABELS_MAX:
        raise _too_large(f"more than {LABELS_MAX} X-Custom-* headers")
    for field, text in (*found.items(), *labels.items()):
        if len(text) > VALUE_CHARACTERS_MAX:
            raise _too_large(f"the header of {field} exceeds {VALUE_CHARACTERS_MAX} characters")
    trace = _TRACEPARENT.fullmatch(found.get("traceparent", ""))
    if trace is None or trace[1] == _NOTHING:
        found.pop("traceparent", None)
        found.pop("tracestate", None)
        trace = None
    if not found.get("trace_id") and trace is not None:
        found["trace_id"] = trace[1]
    return Caller(labels=labels, **found)


def meta_fields(caller: Caller, *, request_id: str, idempotency_key: str, seconds: float) -> dict[str, Any]:
    """Return the fields of a message's meta data, as keywords of its class; `seconds` is the time since 1970.

    A request without a trace begins one, which has the name of the request.
    """
    whole = int(seconds)
    fields: dict[str, Any] = {
        "request_id": request_id,
        "trace_id": caller.trace_id or request_id.replace("-", ""),
        "client_id": caller.client_id or CLIENT_ID,
        "timestamp": {"seconds": whole, "nanos": int((seconds - whole) * 1e9)},
    }
    if caller.user_id:
        fields["user_id"] = caller.user_id
    if caller.tenant_id:
        fields["tenant_id"] = caller.tenant_id
    if idempotency_key:
        fields["idempotency_key"] = idempotency_key
    if caller.labels:
        fields["labels"] = dict(caller.labels)
    return fields


def nats_headers(caller: Caller, *, span_id: str, idempotency_key: str, message_id: str) -> dict[str, str] | None:
    """Return the headers of the NATS message: a trace that the client follows, and its key. None if it has neither.

    `span_id` names the gateway's part of the trace, 16 hexadecimal digits. `message_id` is what JetStream tells
    duplicates by, where a stream takes the subject.
    """
    headers: dict[str, str] = {}
    if caller.trace_id:
        headers["X-Trace-ID"] = _printable(caller.trace_id)
        parent = _TRACEPARENT.fullmatch(caller.traceparent)
        if parent is not None:
            headers["traceparent"] = f"00-{parent[1]}-{span_id}-{parent[3]}"
        elif _TRACE_ID.fullmatch(caller.trace_id) and caller.trace_id != _NOTHING:
            headers["traceparent"] = f"00-{caller.trace_id}-{span_id}-01"
        if caller.tracestate:
            headers["tracestate"] = _printable(caller.tracestate)
    if idempotency_key:
        headers["Idempotency-Key"] = _printable(idempotency_key)
        headers["Nats-Msg-Id"] = message_id
    return headers or None


def _printable(text: str) -> str:
    """A NATS header takes no control characters."""
    return "".join(character for character in text if character.isprintable())


def _too_large(message: str) -> GatewayError:
    return GatewayError(message, status=431, code="INVALID_ARGUMENT")
