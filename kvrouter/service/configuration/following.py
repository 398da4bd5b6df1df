"""The key of the store whose value goes before what the routers of a namespace were started with.

The key is `config/NAMESPACE` in the bucket of discovery's records, its value a JSON object of settings and values:
`{"routing.policy": "least-loaded"}`. Without the key, or with a setting missing in it, the start's values hold.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Final, TypeVar

import msgspec

from kvrouter.discovery.records import BUCKET
from kvrouter.errors import RequestError, SettingsError, StoreError
from kvrouter.service.configuration.running import RunningSettings
from kvrouter.service.event_transports import nats_options
from kvrouter.service.logs import log_event
from kvrouter.settings import Settings
from kvrouter.store.key_values import Conflict, Entry, Exists, KeyValueStore, open_key_value_store

__all__ = ["ConfigKey", "config_key", "open_config_key"]

_AGAIN_SECONDS: Final = 5.0
_CONFIRM_SECONDS: Final = 5.0
"""The key is looked at so often, beside being followed: it tells whether the store answers."""
_ANSWER_SECONDS: Final = 5.0
_TRIES: Final = 16

Answer = TypeVar("Answer")

_log = logging.getLogger("kvrouter.config")


def config_key(namespace: str) -> str:
    """The key of a namespace's routers."""
    return f"config/{namespace}"


def open_config_key(
    settings: Settings, shared: KeyValueStore | None, running: RunningSettings
) -> tuple[KeyValueStore | None, "ConfigKey | None"]:
    """Return the key that the settings ask to follow, if any, after its store where that is not the `shared` one.

    Raises:
        SettingsError: the address is malformed, or keeps no small values.
        MissingExtraError: the store's client is not installed.
    """
    address, own = settings.config.store, None
    if address == "off":
        return None, None
    if address:
        own = open_key_value_store(address, nats_options=nats_options(settings.events))
    store = own or shared
    return own, None if store is None else ConfigKey(store, settings.planes.namespace, running)


class ConfigKey:
    """Follows the key; also the one to write it."""

    def __init__(self, store: KeyValueStore, namespace: str, running: RunningSettings) -> None:
        self._bucket, self.key, self._running = store.bucket(BUCKET), config_key(namespace), running
        self._looked = asyncio.Event()
        self._seen: Entry | None = None
        """What was there when it was looked at last."""
        self._looking = asyncio.Lock()

    async def run(self) -> None:
        """Follow for ever; while the store does not answer, what it said last holds."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(), name="config-watch")
            tasks.create_task(self._confirm(), name="config-confirm")

    async def known(self, *, seconds: float) -> None:
        """Wait until the key was looked at once, or so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._looked.wait()
        except TimeoutError:
            log_event(_log, logging.WARNING, "config_store_late", key=self.key, seconds=seconds)

    async def change(self, change: Callable[[Mapping[str, object] | None], Mapping[str, object]]) -> None:
        """Replace what is there by what `change` makes of it, for all routers; it is in force here when this returns.

        `change` gets None where what is there cannot be read. Nothing left means that the key goes.

        Raises:
            SettingsError: what it would be is not valid; nothing has changed.
            RequestError: 409, others change it all the time; 503, the store does not answer.
        """
        for _ in range(_TRIES):
            entry = await self._asked(self._bucket.get(self.key))
            values = self._running.check(change(_read(entry)))
            if await self._asked(self._written(entry, values)):
                await self._look()
                return
        raise RequestError(f"{self.key} is changed by others all the time", status=409, code="conflict")

    async def _written(self, entry: Entry | None, values: Mapping[str, object]) -> bool:
        data = msgspec.json.encode(values)
        if entry is None:
            return not values or not isinstance(await self._bucket.create(self.key, data), Exists)
        if values:
            return not isinstance(await self._bucket.update(self.key, data, expected=entry.revision), Conflict)
        return await self._bucket.delete(self.key, expected=entry.revision) is None

    async def _asked(self, work: Awaitable[Answer]) -> Answer:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await work
        except (StoreError, TimeoutError) as error:
            self._failed(error)
            text = f"the store of settings: {_told(error)}"
            raise RequestError(text, status=503, code="store_unavailable") from None

    async def _follow(self) -> None:
        while True:
            try:
                async with aclosing(self._bucket.watch(self.key)) as news:  # type: ignore[type-var]
                    async for _ in news:
                        await self._look()
            except StoreError as error:
                self._failed(error)
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _confirm(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(_CONFIRM_SECONDS)

    async def _look(self) -> None:
        """Look at what is there: news may be older than it."""
        async with self._looking:
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    entry = await self._bucket.get(self.key)
            except (StoreError, TimeoutError) as error:
                self._failed(error)
                return
            if not self._running.store_up:
                self._running.store_up = True
                log_event(_log, logging.INFO, "config_store_up", key=self.key)
            self._saw(entry)
            self._looked.set()

    def _saw(self, entry: Entry | None) -> None:
        if self._looked.is_set() and entry == self._seen:
            return
        self._seen = entry
        revision = None if entry is None else entry.revision
        try:
            values = {} if entry is None else msgspec.json.decode(entry.value)
            self._running.override(values, source="store", revision=revision)
        except SettingsError as error:
            self._running.refuse(error, source="store", revision=revision)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._running.refuse(SettingsError(f"{self.key}: {error}"), source="store", revision=revision)

    def _failed(self, error: Exception) -> None:
        self._running.store_failures += 1
        if self._running.store_up:
            self._running.store_up = False
            log_event(_log, logging.WARNING, "config_store_down", key=self.key, error=_told(error))


def _told(error: Exception) -> str:
    return str(error) or f"no answer within {_ANSWER_SECONDS:g} s"


def _read(entry: Entry | None) -> Mapping[str, object] | None:
    if entry is None:
        return {}
    try:
        values = msgspec.json.decode(entry.value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return values if isinstance(values, dict) else None
