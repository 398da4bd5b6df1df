"""Acts on verdicts about promises: doubts a source whose cached blocks are not there, and asks it for its whole state.

That finds sources whose events went wrong without anybody noticing: a removal that was lost, a cache that was reset
behind our back. A digest says the same sooner, but only our own publishers send one. How far such a rank is still
believed is the router's own business (`kvrouter.routing.audit`), which also tells the verdicts.
"""

import logging
from collections.abc import Callable, Container
from typing import Protocol

from kvrouter.events import Source
from kvrouter.routing.audit import Verdict
from kvrouter.service.logs import log_event
from kvrouter.service.proxy import Usage

__all__ = ["Believer", "CachedReports", "PromiseKeeper"]

RESYNC_SECONDS = 60.0
"""A source is asked for its whole state at most so often; an engine that counts differently must not be flooded."""
SILENT_MAX = 32
"""So many answers after the last one that told its cached tokens, saying nothing means that there were none."""

_log = logging.getLogger("kvrouter.events")


class CachedReports:
    """What one worker's answers say of cached tokens.

    vLLM leaves the field out where nothing was cached. A worker that tells mostly says zero by saying nothing; one that
    never tells, or tells no more since it was started with other flags, says nothing at all.
    """

    __slots__ = ("_silent",)

    def __init__(self) -> None:
        self._silent = SILENT_MAX

    def read(self, usage: Usage) -> int | None:
        """Return the cached tokens of an answer; None where nobody knows."""
        if usage.cached_tokens is not None:
            self._silent = 0
            return usage.cached_tokens
        self._silent = min(self._silent + 1, SILENT_MAX + 1)
        return 0 if self._silent <= SILENT_MAX and usage.prompt_tokens else None


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

    def __init__(self, believer: Believer, *, resync: Callable[[Source], bool]) -> None:
        self._believer, self._resync = believer, resync
        self._asked_at: dict[Source, float] = {}

    def judged(self, source: Source, verdict: Verdict, now: float) -> None:
        """Take one verdict."""
        if verdict == "kept":
            self._asked_at.pop(source, None)
            self._believer.trust(source, now=now)
            log_event(_log, logging.INFO, "promises_kept", worker=source.worker_id, rank=source.rank)
        elif now - self._asked_at.get(source, float("-inf")) >= RESYNC_SECONDS:
            self._asked_at[source] = now
            self._believer.doubt(source, reason="answers had less cached than was promised", now=now)
            log_event(
                _log,
                logging.WARNING,
                "promises_broken",
                worker=source.worker_id,
                rank=source.rank,
                resync=self._resync(source),
                hint="what the engine says was cached is less than half of what was expected of it",
            )

    def retain(self, workers: Container[str]) -> None:
        """Forget the sources of workers that are gone."""
        self._asked_at = {source: at for source, at in self._asked_at.items() if source.worker_id in workers}
