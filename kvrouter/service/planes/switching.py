"""The preferred request plane, changed while the process runs: a key of the store says it, and every router follows.

The key is `request_planes/NAMESPACE/COMPONENT/ENDPOINT` in the bucket of the records, its value JSON:
`{"request_plane": "http"}`. What begins after a change is sent over the new plane, what runs ends on the old one.
Without the key, the plane of the settings is preferred.
"""

import asyncio
import logging
from typing import Final

import msgspec

from kvrouter.discovery.records import BUCKET
from kvrouter.errors import StoreError
from kvrouter.service.logs import log_event
from kvrouter.service.planes.figures import PlaneFigures
from kvrouter.service.planes.ways import Ways
from kvrouter.store.key_values import KeyValueStore, Synced
from kvrouter.transport.plane_settings import RequestPlane

__all__ = ["PlaneSwitch", "encode_preference", "preference_key"]

_RETRY_SECONDS: Final = 5.0

_log = logging.getLogger("kvrouter.planes")


class _Preference(msgspec.Struct, frozen=True):
    request_plane: RequestPlane


_decode = msgspec.json.Decoder(_Preference).decode


def preference_key(names: tuple[str, str, str]) -> str:
    """The key for an endpoint, given its namespace, component and name."""
    return "/".join(("request_planes", *names))


def encode_preference(plane: RequestPlane) -> bytes:
    """The value that prefers a plane."""
    return msgspec.json.encode(_Preference(plane))


class PlaneSwitch:
    """Follows the key; also the one to write it."""

    def __init__(self, store: KeyValueStore, names: tuple[str, str, str], ways: Ways, figures: PlaneFigures) -> None:
        self._figures = figures
        self._bucket, self.key, self._ways = store.bucket(BUCKET), preference_key(names), ways
        self.configured = ways.preferred

    async def run(self) -> None:
        """Follow for ever; a store that says no is asked again, loudly."""
        while True:
            try:
                async for news in self._bucket.watch(self.key):
                    if not isinstance(news, Synced) and news.key == self.key:
                        self._told(None if news.entry is None else news.entry.value)
            except StoreError as error:
                log_event(_log, logging.ERROR, "request_plane_not_followed", error=str(error))
            await asyncio.sleep(_RETRY_SECONDS)

    async def prefer(self, plane: RequestPlane | None) -> None:
        """Tell every router of the endpoint to prefer a plane; None gives each one its own again. Raises StoreError."""
        if plane is None:
            await self._bucket.delete(self.key)
        else:
            await self._bucket.put(self.key, encode_preference(plane))

    def _told(self, value: bytes | None) -> None:
        plane = self.configured
        if value is not None:
            try:
                plane = _decode(value).request_plane
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                self._figures.refused_changes.inc()
                log_event(_log, logging.WARNING, "request_plane_refused", key=self.key, error=str(error))
                return
        if plane != self._ways.preferred:
            self._figures.changes.inc()
            log_event(_log, logging.INFO, "request_plane", plane=plane, before=self._ways.preferred)
            self._ways.prefer(plane)
