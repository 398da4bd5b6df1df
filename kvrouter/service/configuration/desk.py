"""Where settings are shown and changed: through the store for all routers of a namespace, or for this process alone."""

import re
from collections.abc import Mapping
from typing import Any, Final

from kvrouter.errors import RequestError, SettingsError
from kvrouter.events.endpoints import without_password
from kvrouter.service.configuration.following import ConfigKey
from kvrouter.service.configuration.running import LIVE, SETTINGS, RunningSettings, value_of

__all__ = ["ConfigDesk"]

_SECRET: Final = re.compile(r"(.*_)?(keys|tokens?|passwords?|secrets?)")
"""Names of settings whose values are never shown; those of files that hold such a thing are."""


class ConfigDesk:
    """Shows and changes settings; without a store (`key` is None) every change is of this process, and ends with it."""

    def __init__(self, running: RunningSettings, key: ConfigKey | None) -> None:
        self._running, self._key = running, key

    def record(self) -> dict[str, Any]:
        """Return every setting: what is in force, where it comes from, and what a change needs."""
        running = self._running
        return {
            **self._told(),
            "settings": {
                key: {
                    "value": _shown(key, value_of(running.current, key)),
                    "from": running.origin(key),
                    "change": "live" if key in LIVE else "restart",
                    "start": _shown(key, value_of(running.started.settings, key)),
                }
                for key in SETTINGS
            },
        }

    async def merge(self, values: object) -> dict[str, Any]:
        """Set some settings; one that is given as null gets back what the process was started with.

        Raises:
            RequestError: 400, a value is not valid, and nothing has changed; 409, what the store has cannot be read, or
                others change it all the time; 503, the store does not answer.
        """

        def change(before: Mapping[str, object] | None) -> Mapping[str, object]:
            if before is None:
                text = "what the store has cannot be read; replace it with PUT, or remove it with DELETE"
                raise RequestError(text, status=409, code="unreadable_settings")
            merged = dict(before)
            for name, value in _object(values).items():
                if value is not None:
                    merged[name] = value
                elif merged.pop(name, None) is None and name not in LIVE:
                    self._running.check({name: None})  # says what is wrong with the name
            return merged

        return await self._change(change)

    async def replace(self, values: object) -> dict[str, Any]:
        """Set these settings, and give all others back what the process was started with; raises as `merge`."""
        return await self._change(lambda _: _object(values))

    async def _change(self, change: Any) -> dict[str, Any]:
        running = self._running
        try:
            if self._key is not None:
                await self._key.change(change)
            else:
                running.override(change(running.overrides), source="api")
        except SettingsError as error:
            running.refuse(error, source="api")
            name = str(error).partition(":")[0]
            raise RequestError(str(error), code="invalid_setting", param=name if name in SETTINGS else None) from None
        return {**self._told(), "overrides": dict(running.overrides)}

    def _told(self) -> dict[str, Any]:
        running, key = self._running, self._key
        return {
            "applies_to": "this process, until it ends" if key is None else "every router that follows the store's key",
            "store": None if key is None else {"key": key.key, "up": running.store_up, "revision": running.revision},
            "changed_at": running.changed_at,
        }


def _object(values: object) -> dict[str, object]:
    if not isinstance(values, dict):
        raise SettingsError('the body must be a JSON object, such as {"routing.policy": "least-loaded"}')
    return values


def _shown(key: str, value: object) -> object:
    """A value as anybody may see it."""
    if _SECRET.fullmatch(key.partition(".")[2]):
        return "hidden" if value else None
    if isinstance(value, str):
        return without_password(value)
    return value if isinstance(value, int | float | tuple | None) else str(value)
