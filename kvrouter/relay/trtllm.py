"""Reads a TensorRT-LLM server's events: `POST /kv_cache_events`, again and again.

Reading drains the engine's buffer, so there can be only one reader, and nothing is kept here that was not passed on.
An answer that was lost on its way shows as a jump of event numbers, which `TrtllmEvents` turns into a fresh start.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from http.client import HTTPException
from typing import Final
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from kvrouter.errors import SettingsError, WireError
from kvrouter.events import Event
from kvrouter.events.trtllm import TrtllmEvents

__all__ = ["TrtllmPoller"]

_log = logging.getLogger("kvrouter.relay")

_ANSWER_BYTES_MAX: Final = 256 << 20
_BACKOFF_SECONDS_MAX: Final = 5.0
_DOUBLINGS_MAX: Final = 30
"""Servers may be away for days, and 2.0**1024 is no number."""


class TrtllmPoller:
    """Polls one server and delivers each rank's events, in order, on the event loop.

    Args:
        url: the server, `http://host:port`.
        deliver: takes a rank and its new events.
        events: the translation; keeps what it needs between answers.
        interval_seconds: time between two answers; the engine's buffer must not overflow meanwhile.
        timeout_seconds: time that an answer may take.

    Raises:
        SettingsError: the URL is not that of an HTTP server.
    """

    def __init__(
        self,
        url: str,
        *,
        deliver: Callable[[int, Sequence[Event]], None],
        events: TrtllmEvents,
        interval_seconds: float = 0.05,
        timeout_seconds: float = 5.0,
    ) -> None:
        if not _is_server(url):
            raise SettingsError(f"{url!r} must look like http://host:port or https://host:port")
        self._address = url.rstrip("/") + "/kv_cache_events"
        self._deliver, self._events = deliver, events
        self._interval_seconds, self._timeout_seconds = interval_seconds, timeout_seconds
        self.answers = self.failures = self.refused = 0
        self.last_error: str | None = None

    async def run(self) -> None:
        """Poll for ever; cancel it to stop."""
        failures_in_row = 0
        while True:
            if await self._poll():
                failures_in_row = 0
                await asyncio.sleep(self._interval_seconds)
            else:
                failures_in_row += 1
                if failures_in_row & (failures_in_row - 1) == 0:  # The 1st, 2nd, 4th, 8th, ...
                    _log.warning("%s: %s (%d in a row)", self._address, self.last_error, failures_in_row)
                doublings = min(failures_in_row, _DOUBLINGS_MAX)
                await asyncio.sleep(min(self._interval_seconds * 2.0**doublings, _BACKOFF_SECONDS_MAX))

    async def _poll(self) -> bool:
        try:
            document = await asyncio.to_thread(self._ask)
        except (URLError, OSError, HTTPException) as error:
            self.failures += 1
            self.last_error = str(getattr(error, "reason", None) or error) or type(error).__name__
            return False
        try:
            found = self._events.decode(document)
        except WireError as error:
            self.refused += 1
            self.last_error = str(error)
            return False
        self.answers += 1
        for rank, events in found.items():
            self._deliver(rank, events)
        return True

    def _ask(self) -> bytes:
        request = Request(self._address, data=b"", method="POST", headers={"Accept": "application/json"})  # noqa: S310 - checked above
        with urlopen(request, timeout=self._timeout_seconds) as answer:  # noqa: S310 - as above
            document: bytes = answer.read(_ANSWER_BYTES_MAX + 1)
        return document


def _is_server(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, half an IPv6 address
        return False
