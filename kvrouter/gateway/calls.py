"""One request of a client, read and checked, before it is known who answers it. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec

from kvrouter.errors import GatewayError
from kvrouter.gateway.metadata import KEY_CHARACTERS_MAX, Caller, read_headers
from kvrouter.gateway.route_table import Route

__all__ = ["Call", "pack_call", "read_call", "unpack_call"]

_decode = msgspec.json.Decoder().decode


@dataclass(slots=True)
class Call:
    """What a client wants. `values` is its JSON body with the path's variables, without what is about the request."""

    route: Route
    method: str
    path: str
    raw_path: bytes
    query: bytes
    headers: Sequence[tuple[bytes, bytes]]
    variables: Mapping[str, str]
    caller: Caller
    request_id: str
    body: bytes
    values: dict[str, Any]
    key: str
    wants_stream: bool

    @property
    def trace_id(self) -> str:
        """The trace that it is part of."""
        return self.caller.trace_id or self.request_id.replace("-", "")


def read_call(
    route: Route,
    variables: Mapping[str, str],
    scope: Mapping[str, Any],
    *,
    caller: Caller,
    request_id: str,
    body: bytes,
) -> Call:
    """Read a request; `scope` is ASGI's.

    Raises:
        GatewayError: 400, the body is no JSON object, or its key is none.
    """
    values = _values(body)
    key = _key(values.pop("idempotency_key", None), caller.idempotency_key)
    values.pop("meta", None)
    if variables:
        values.update(variables)
    path: str = scope["path"]
    return Call(
        route=route,
        method=scope["method"],
        path=path,
        raw_path=scope.get("raw_path") or quote(path).encode(),
        query=scope.get("query_string", b""),
        headers=scope["headers"],
        variables=variables,
        caller=caller,
        request_id=request_id,
        body=body,
        values=values,
        key=key,
        wants_stream=route.stream is not None and _asks_for_stream(values, caller),
    )


def pack_call(call: Call) -> list[Any]:
    """Return what another process needs to read the same call."""
    scope = {"method": call.method, "path": call.path, "raw_path": call.raw_path, "query_string": call.query}
    return [scope, list(call.headers), dict(call.variables), call.request_id, call.body]


def unpack_call(route: Route, packed: Any) -> Call:
    """Read a call of another process, which has read it before."""
    scope, headers, variables, request_id, body = packed
    scope["headers"] = [(name, value) for name, value in headers]
    caller = read_headers(scope["headers"])
    return read_call(route, variables, scope, caller=caller, request_id=request_id, body=body)


def _asks_for_stream(values: dict[str, Any], caller: Caller) -> bool:
    """Whether a stream is wanted; if only the header says so, the message is to say so too."""
    params = values.get("params")
    if isinstance(params, dict) and params.get("stream") is True:
        return True
    if "text/event-stream" not in caller.accept:
        return False
    if params is None or isinstance(params, dict):
        values["params"] = {**(params or {}), "stream": True}
    return True


def _values(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        values = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _invalid(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise _invalid("the body is nested too deeply") from None
    if type(values) is not dict:
        raise _invalid("the body must be a JSON object")
    return values


def _key(in_body: object, in_header: str) -> str:
    if in_body is None or in_body == "":
        key = in_header
    elif not isinstance(in_body, str):
        raise _invalid("idempotency_key must be text")
    elif in_header and in_header != in_body:
        raise _invalid("idempotency_key and the header Idempotency-Key differ")
    else:
        key = in_body
    if len(key) > KEY_CHARACTERS_MAX:
        raise _invalid(f"the idempotency key exceeds {KEY_CHARACTERS_MAX} characters")
    return key


def _invalid(message: str) -> GatewayError:
    return GatewayError(message, status=400, code="INVALID_ARGUMENT")
