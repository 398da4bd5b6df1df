"""Bodies of requests: whole, not too large, and not for ever."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.types import Receive

from kvrouter.errors import GatewayError

__all__ = ["BodyReader", "ClientGoneError"]


class ClientGoneError(Exception):
    """The client closed its connection within a body: nobody is there to answer."""


class BodyReader:
    """Reads bodies up to a bound."""

    def __init__(self, *, bytes_max: int, seconds: float) -> None:
        self._bytes_max, self._seconds = bytes_max, seconds

    async def read(self, headers: Sequence[tuple[bytes, bytes]], receive: Receive) -> bytes:
        """Return the body of a request.

        Raises:
            GatewayError: 413, it is too large; 408, it did not come in time.
            ClientGoneError: nobody waits for an answer any more.
        """
        for name, value in headers:
            if name == b"content-length" and value.isdigit() and int(value) > self._bytes_max:
                raise self._too_large()
        message = await self._first(receive)
        if message["type"] == "http.request" and not message.get("more_body"):
            body: bytes = message.get("body", b"")
            if len(body) > self._bytes_max:
                raise self._too_large()
            return body
        try:
            async with asyncio.timeout(self._seconds):
                return await self._rest(message, receive)
        except TimeoutError:
            raise self._too_slow() from None

    async def _rest(self, message: Mapping[str, Any], receive: Receive) -> bytes:
        pieces = bytearray()
        while True:
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            pieces += message.get("body", b"")
            if len(pieces) > self._bytes_max:
                raise self._too_large()
            if not message.get("more_body"):
                return bytes(pieces)
            message = await receive()

    async def _first(self, receive: Receive) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(self._seconds):
                return await receive()
        except TimeoutError:
            raise self._too_slow() from None

    def _too_slow(self) -> GatewayError:
        return GatewayError(f"the body did not come within {self._seconds:g} s", status=408, code="DEADLINE_EXCEEDED")

    def _too_large(self) -> GatewayError:
        return GatewayError(f"the body exceeds {self._bytes_max} bytes", status=413, code="PAYLOAD_TOO_LARGE")
