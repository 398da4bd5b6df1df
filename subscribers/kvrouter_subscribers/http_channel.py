"""Questions to one publisher over a connection that is kept, and opened anew where it was closed meanwhile.

What is asked and what answers mean is `http_link`'s; bytes are `http_client`'s.
"""

import json
import ssl
from collections.abc import Mapping
from urllib.parse import urlencode

from kvrouter_subscribers.http_client import (
    HttpAddress,
    HttpConnection,
    HttpError,
    HttpResponse,
    StaleConnectionError,
)
from kvrouter_subscribers.http_limits import HttpLimits

__all__ = ["HttpChannel", "InterruptedPollError", "explained", "json_of", "number_of"]


class InterruptedPollError(HttpError):
    """The poll that waited was given up, because something else is to be asked first."""


class HttpChannel:
    """Asks one thing at a time."""

    def __init__(self, address: HttpAddress, limits: HttpLimits, tls: ssl.SSLContext | None) -> None:
        self._address, self._limits, self._tls = address, limits, tls
        self._connection: HttpConnection | None = None
        self._waiting = self._interrupted = False

    async def ask(
        self, path: str, query: Mapping[str, object], *, wait: float, bytes_max: int, interruptible: bool = False
    ) -> HttpResponse:
        """Return the answer, which the publisher may hold back for `wait` seconds.

        Raises:
            InterruptedPollError: `interrupt` was called; only where it may be.
            HttpError: there is no connection, or no whole, well-formed answer in time.
        """
        request = self._address.request(f"{path}?{urlencode(query)}")
        self._waiting, self._interrupted = interruptible, False
        try:
            return await self._ask(request, begin_seconds=wait + self._limits.grace_seconds, bytes_max=bytes_max)
        except HttpError:
            if self._interrupted:
                raise InterruptedPollError("something else is to be asked first") from None
            raise
        finally:
            self._waiting = False

    def interrupt(self) -> None:
        """End an interruptible question that is under way; its connection is lost."""
        if self._waiting and self._connection is not None:
            self._interrupted = True
            self._connection.close()

    def drop(self) -> None:
        """Close the connection at once."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def close(self) -> None:
        """Close the connection and wait until it is gone."""
        connection = self._connection
        self.drop()
        if connection is not None:
            await connection.closed()

    async def _ask(self, request: bytes, *, begin_seconds: float, bytes_max: int) -> HttpResponse:
        while True:
            connection, is_fresh = self._connection, self._connection is None
            if connection is None:
                connection = self._connection = await HttpConnection.open(self._address, self._limits, self._tls)
            try:
                answer = await connection.get(request, begin_seconds=begin_seconds, bytes_max=bytes_max)
            except StaleConnectionError:
                self.drop()
                if is_fresh or self._interrupted:
                    raise
                continue
            except HttpError:
                self.drop()
                raise
            if answer.last:
                self.drop()
            return answer


def explained(answer: HttpResponse) -> str:
    """Say in one line what an unexpected answer said."""
    error = json_of(answer).get("error")
    message = error.get("message") if isinstance(error, dict) else None
    if isinstance(message, str):
        return f"{answer.status}: {message[:512]}"
    return f"{answer.status} without a reason; is it a kvrouter publisher?"


def json_of(answer: HttpResponse) -> dict[str, object]:
    """Return the JSON object that an answer is, an empty one if it is none."""
    try:
        value = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def number_of(answer: HttpResponse, header: str) -> int | None:
    """Return the number that a header is, None if it is none."""
    text = answer.headers.get(header, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 20 else None
