"""Answers of our own that are not errors; errors have their one shape in `proxy.error_reply`."""

from collections.abc import Sequence
from typing import Any

import msgspec

from kvrouter.service.proxy import Reply

__all__ = ["JSON_HEADERS", "json_reply"]

JSON_HEADERS = ((b"content-type", b"application/json"),)
_encode = msgspec.json.Encoder().encode


def json_reply(status: int, payload: Any, headers: Sequence[tuple[bytes, bytes]] = JSON_HEADERS) -> Reply:
    """Return `payload` as a JSON answer."""
    return Reply(status, _encode(payload), headers)
