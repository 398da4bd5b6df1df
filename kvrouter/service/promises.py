"""Compares what events promised with what engines then said was cached, where engines say it at all.

It finds sources whose events went wrong without anybody noticing: a removal that was lost, a cache that was reset
behind our back. A digest says the same sooner, but only our own publishers send one. A source that breaks its promises
is doubted and asked for its whole state, and believed again when it keeps them.
"""

import logging
from collections.abc import Callable
from typing import Literal, Protocol

from kvrouter.events import Source
from kvrouter.service.logs import log_event

__all__ = ["Believer", "PromiseAudit", "PromiseKeeper", "Verdict"]

RESYNC_SECONDS = 60.0
"""A source is asked for its whole state at most so often; an engine that counts differently must not be flooded."""

_log = logging.getLogger("kvrouter.events")

Verdict = Literal["broken", "kept"]


class PromiseAudit:
    """Judges each source by its last answers, `answers` of them at a time.

    A promise counts by its tokens, and only as far as it was confirmed by events. Engines may hold less than a moment
    ago, because they evict, so a source is `broken` only if less than `broken_below` of what was promised was there,
    and `kept` again if at least `kept_from` of it was. Between the two nothing changes.
    """

    def __init__(self, *, answers: int = 16, broken_below: float = 0.5, kept_from: float = 0.9) -> None:
        if answers < 1 or not 0 < broken_below <= kept_from <= 1:
            raise ValueError(f"answers {answers}, broken_below {broken_below}, kept_from {kept_from}")
        self._answers, self._broken_below, self._kept_from = answers, broken_below, kept_from
        self._windows: dict[Source, _Window] = {}
        self.broken_total = 0

    def note(self, source: Source, *, promised: int, cached: int) -> Verdict | None:
        """Take one answer: `promised` tokens by events, `cached` by the engine.

        Returns `broken` whenever the last answers were, and `kept` once after that.
        """
        if promised <= 0:
            return None
        window = self._windows.get(source)
        if window is None:
            window = self._windows[source] = _Window()
        window.answers += 1
        window.promised += promised
        window.cached += min(cached, promised)
        if window.answers < self._answers:
            return None
        share = window.cached / window.promised
        window.answers = window.promised = window.cached = 0
        if share < self._broken_below:
            self.broken_total += not window.broken
            window.broken = True
            return "broken"
        if share >= self._kept_from and window.broken:
            window.broken = False
            return "kept"
        return None

    def forget(self, source: Source) -> None:
        """Judge the source afresh: its state was replaced, or it is gone."""
        self._windows.pop(source, None)


class _Window:
    __slots__ = ("answers", "broken", "cached", "promised")

    def __init__(self) -> None:
        self.answers = self.promised = self.cached = 0
        self.broken = False


class Believer(Protocol):
    """What follows the sources; `kvrouter.ingest.Ingest` does."""

    def doubt(self, source: Source, *, reason: str, now: float) -> None:
        """Mark what is believed of a source as maybe wrong."""
        ...

    def trust(self, source: Source, *, now: float) -> None:
        """End a doubt."""
        ...


class PromiseKeeper:
    """Does what verdicts ask for."""

    def __init__(self, audit: PromiseAudit, believer: Believer, *, resync: Callable[[Source], bool]) -> None:
        self.audit = audit
        self._believer, self._resync = believer, resync
        self._asked_at: dict[Source, float] = {}

    def answered(self, source: Source, *, promised: int, cached: int, now: float) -> None:
        """Take one answer that told what was cached."""
        verdict = self.audit.note(source, promised=promised, cached=cached)
        if verdict == "kept":
            self._asked_at.pop(source, None)
            self._believer.trust(source, now=now)
            log_event(_log, logging.INFO, "promises_kept", worker=source.worker_id, rank=source.rank)
        elif verdict == "broken" and now - self._asked_at.get(source, float("-inf")) >= RESYNC_SECONDS:
            self._asked_at[source] = now
            self._believer.doubt(source, reason="answers had less cached than events promised", now=now)
            log_event(
                _log,
                logging.WARNING,
                "promises_broken",
                worker=source.worker_id,
                rank=source.rank,
                resync=self._resync(source),
                hint="what the engine says was cached is less than half of what its events promised",
            )

    def forget(self, source: Source) -> None:
        """The source is gone."""
        self.audit.forget(source)
        self._asked_at.pop(source, None)
