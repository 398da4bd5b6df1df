"""Log lines about what may happen ten thousand times a second: one per kind and second, with how many there were."""

import logging
from collections.abc import Callable
from time import monotonic

from kvrouter.service.logs import log_event

__all__ = ["QuietLog"]


class QuietLog:
    """Tells the first of a kind at once. Kinds are words of our own and names of routes, so they are bounded."""

    def __init__(self, logger: logging.Logger, *, seconds: float = 1.0, clock: Callable[[], float] = monotonic) -> None:
        self._logger, self._seconds, self._clock = logger, seconds, clock
        self._told: dict[tuple[str, str], float] = {}
        self._silent: dict[tuple[str, str], int] = {}

    def tell(self, level: int, event: str, route: str, **fields: object) -> None:
        """Log an event of a route, unless one like it was logged just now; then it is counted into the next line."""
        key, now = (event, route), self._clock()
        if now - self._told.get(key, -self._seconds) < self._seconds:
            self._silent[key] = self._silent.get(key, 0) + 1
            return
        self._told[key] = now
        log_event(self._logger, level, event, route=route, **fields, unlogged=self._silent.pop(key, 0))

    def tell_bug(self, event: str, route: str, bug: Exception, **fields: object) -> None:
        """Log an exception with its traceback; every one of them: it is a bug of ours."""
        self._logger.error(event, exc_info=bug, extra={"fields": {"route": route, **fields}})
