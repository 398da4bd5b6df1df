"""One request of a client, read and checked, before it is known who answers it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from kvrouter.errors import GatewayError
from kvrouter.gateway.metadata import KEY_CHARACTERS_MAX, Caller
from kvrouter.gateway.route_table import Route

__all__ = ["Call", "read_call"]

_decode = msgspec.json.Decoder().decode


@dataclass(slots=True)
class Call:
    """What a client wants. `values` is its JSON body with the path's variables, without what is about the request."""

    route: Route
    method: str
    path: str
    query: bytes
    caller: Caller
    request_id: str
    body: bytes
    values: dict[str, Any]
    key: str
    wants_stream: bool
    fills_stream: bool
    """Whether streaming is asked for by the header alone."""

    @property
    def trace_id(self) -> str:
        """The trace that it is part of."""
        return self.caller.trace_id or self.request_id.replace("-", "")


def read_call(
    route: Route,
    variables: Mapping[str, str],
    *,
    method: str,
    path: str,
    query: bytes,
    caller: Caller,
    request_id: str,
    body: bytes,
) -> Call:
    """Read a request.

    Raises:
        GatewayError: 400, the body is no JSON object, or its key is none.
    """
    values = _values(body) if method != "GET" else {}
    key = _key(values.pop("idempotency_key", None), caller.idempotency_key)
    values.pop("meta", None)
    if variables:
        values.update(variables)
    params = values.get("params")
    asked = isinstance(params, dict) and params.get("stream") is True
    accepts = "text/event-stream" in caller.accept
    wants_stream = route.stream is not None and (asked or accepts)
    fills_stream = wants_stream and not asked
    if fills_stream and (params is None or isinstance(params, dict)):
        values["params"] = {**(params or {}), "stream": True}
    return Call(route, method, path, query, caller, request_id, body, values, key, wants_stream, fills_stream)


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
