"""The settings in force: those that the process was started with, and over them those that were changed since.

All changes go through `RunningSettings`, which checks them as the start does and then puts all of them in force, or
none. Not here: where changes come from, and what they do to the parts of the process.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeAlias

from kvrouter.errors import SettingsError
from kvrouter.service.logs import log_event
from kvrouter.settings import Settings, sections_of
from kvrouter.settings_sources import LoadedSettings, Setting, all_settings, checked_value, nearest, with_values

__all__ = ["LIVE", "ChangeSource", "Prepare", "RunningSettings", "value_of"]

ChangeSource: TypeAlias = Literal["store", "api", "file"]
"""The key of the store; the admin API of a router without one; the settings file, read again."""
Prepare: TypeAlias = Callable[[Settings], Callable[[], None]]
"""Makes what new settings need, or raises SettingsError; what it returns puts them in force, and cannot fail."""

SETTINGS: Final[Mapping[str, Setting]] = {
    setting.key: setting for setting in all_settings() if setting.section in sections_of("serve")
}
"""Every setting of the router."""
LIVE: Final[Mapping[str, Setting]] = {key: setting for key, setting in SETTINGS.items() if setting.live}
"""Those that may be changed."""

_log = logging.getLogger("kvrouter.config")


class RunningSettings:
    """What is in force. Lives on one event loop; every method is synchronous."""

    def __init__(
        self, started: LoadedSettings, prepare: Prepare, *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self.started, self.current = started, started.settings
        self.overrides: Mapping[str, object] = {}
        """What was changed since, by key; it goes before what the process was started with."""
        self.overridden_by: ChangeSource = "api"
        self.revision: int | None = None
        """Of the store's key; None where nothing came from a store."""
        self.applied: Counter[ChangeSource] = Counter()
        """Settings that got another value, by where it came from."""
        self.refused: Counter[ChangeSource] = Counter()
        """Changes that were not valid, of which nothing was put in force."""
        self.changed_at: float | None = None
        """When a setting got another value last, in seconds since the epoch."""
        self.store_up = False
        """Whether the store answered when it was asked last."""
        self.store_failures = 0
        self._prepare, self._wall_clock = prepare, wall_clock

    def check(self, values: object) -> dict[str, object]:
        """Read what shall go before the start's settings: an object of names and values; changes nothing.

        Raises:
            SettingsError: a name is none, or takes a restart; a value is none, or does not go with the others.
        """
        overrides = _checked(values)
        self._prepare(with_values(self.started.settings, overrides))
        return overrides

    def override(self, values: object, *, source: ChangeSource, revision: int | None = None) -> None:
        """Let these values, and no others, go before the start's; raises as `check`, and then nothing has changed."""
        overrides = _checked(values)
        self._take(self.started, overrides, source, revision)
        self.overrides, self.overridden_by, self.revision = overrides, source, revision

    def refuse(self, error: SettingsError, *, source: ChangeSource, revision: int | None = None) -> None:
        """Count and log what was not valid; what is in force stays."""
        self.refused[source] += 1
        log_event(_log, logging.WARNING, "settings_refused", source=source, revision=revision, error=str(error))

    def start_anew(self, loaded: LoadedSettings) -> tuple[str, ...]:
        """Take the live ones of the settings that the process would start with now.

        Returns:
            What else is another one now, and needs a restart: keys, and `workers`.

        Raises:
            SettingsError: with what goes before them they are not valid; nothing has changed.
        """
        before = self.started
        live = {key: value_of(loaded.settings, key) for key in LIVE}
        origins = {key: origin for key, origin in before.origins.items() if key not in LIVE}
        origins |= {key: origin for key, origin in loaded.origins.items() if key in LIVE}
        started = LoadedSettings(with_values(before.settings, live), origins, loaded.file)
        self._take(started, self.overrides, "file", self.revision)
        self.started = started
        waiting = [key for key in SETTINGS if value_of(started.settings, key) != value_of(loaded.settings, key)]
        return (*waiting, *(["workers"] if started.settings.workers != loaded.settings.workers else []))

    def origin(self, key: str) -> str:
        """Where the value in force comes from."""
        return self.overridden_by if key in self.overrides else self.started.origins.get(key, "default")

    def _take(
        self, started: LoadedSettings, overrides: Mapping[str, object], source: ChangeSource, revision: int | None
    ) -> None:
        settings = with_values(started.settings, overrides)
        put_in_force = self._prepare(settings)
        put_in_force()
        before, self.current = self.current, settings
        for key in LIVE:
            old, new = value_of(before, key), value_of(settings, key)
            if old == new:
                continue
            self.applied[source] += 1
            self.changed_at = self._wall_clock()
            event: dict[str, Any] = {"setting": key, "before": old, "after": new, "source": source}
            log_event(_log, logging.INFO, "setting_changed", **event, revision=revision)


def value_of(settings: Settings, key: str) -> object:
    """The value of a key."""
    section, _, name = key.partition(".")
    return getattr(getattr(settings, section), name)


def _checked(values: object) -> dict[str, object]:
    if not isinstance(values, dict):
        raise SettingsError('settings are an object of names and values, such as {"routing.policy": "least-loaded"}')
    checked = {}
    for key, value in values.items():
        if key not in SETTINGS:
            raise SettingsError(f"{key}: there is no such setting{nearest(key, LIVE)}")
        if key not in LIVE:
            raise SettingsError(f"{key}: it takes a restart; the settings that do not are listed by GET /config")
        checked[key] = checked_value(LIVE[key], value, key)
    return checked
