"""Compares what events promised with what engines then said was cached, where engines say it at all.

It finds sources whose events went wrong without anybody noticing: a removal that was lost, a cache that was reset
behind our back. A digest says the same sooner, but only our own publishers send one. What follows from a verdict, a
source that is doubted and asked for its whole state, is the service's.
"""

from typing import Literal

from kvrouter.events import Source

__all__ = ["PromiseAudit", "Verdict"]

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
        """Take one answer: `promised` tokens by events, `cached` by the engine. Returns a verdict when it changes."""
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
        if share < self._broken_below and not window.broken:
            window.broken = True
            self.broken_total += 1
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
