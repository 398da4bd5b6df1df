"""The way of cache events from one simulated worker to one router: delay, loss, replay. No time passes here.

Batches are the engine's own payloads and reach the router's own ingest, which notices what is missing by the
sequence numbers. What it asks to be replayed it gets from the worker's ring, as vLLM's replay socket gives it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Final

from kvrouter.events import Event, EventBatch, Source
from kvrouter.events.encode import encode_batch
from kvrouter.ingest import Ingest, Receipt

__all__ = ["EventFeed", "EventLog"]

_RING_BATCHES: Final = 10_000


class EventLog:
    """Numbers what one worker publishes and keeps the last batches of its present life."""

    __slots__ = ("kept", "published")

    def __init__(self) -> None:
        self.published = 0
        self.kept: deque[bytes] = deque(maxlen=_RING_BATCHES)

    def publish(self, events: list[Event], now: float) -> tuple[int, bytes]:
        """Return the number and the payload of a new batch."""
        payload = encode_batch(EventBatch(timestamp=now, events=tuple(events)))
        self.kept.append(payload)
        self.published += 1
        return self.published - 1, payload

    def since(self, first: int) -> tuple[int, list[bytes]]:
        """Return the batches from number `first` on, as far as they are kept, after the number of their first."""
        oldest = self.published - len(self.kept)
        start = max(first, oldest)
        return start, list(self.kept)[start - oldest :]

    def restart(self) -> None:
        """Begin another life: numbers count from 0 again."""
        self.published = 0
        self.kept.clear()


class EventFeed:
    """Carries one worker's batches to one router. `later(seconds, call)` makes calls in the simulation's future."""

    __slots__ = ("_asking", "_delay", "_ingest", "_later", "_log", "_loss", "_random", "_replays", "_source", "lost")

    def __init__(
        self,
        log: EventLog,
        ingest: Ingest,
        source: Source,
        *,
        delay_seconds: float,
        loss: float,
        replays: bool,
        random: Random,
        later: Callable[[float, Callable[[float], None]], None],
    ) -> None:
        self._log, self._ingest, self._source = log, ingest, source
        self._delay, self._loss, self._replays = delay_seconds, loss, replays
        self._random, self._later = random, later
        self._asking = False
        self.lost = 0

    def send(self, number: int, payload: bytes, now: float) -> None:
        """Take a batch on its way; it may get lost."""
        if self._loss and self._random.random() < self._loss:
            self.lost += 1
            return
        if self._delay:
            self._later(now + self._delay, lambda then: self._receive(number, payload, then))
        else:
            self._receive(number, payload, now)

    def _receive(self, number: int, payload: bytes, now: float) -> None:
        self._heed(self._ingest.receive(self._source, number, payload, now=now), now)

    def _heed(self, receipt: Receipt, now: float) -> None:
        """Do what a subscriber does about a receipt."""
        if receipt.replay_from is not None and not self._asking:
            self._asking = True
            first = receipt.replay_from
            # There and back again.
            self._later(now + 2 * self._delay, lambda then: self._replay(first, then))
        elif receipt.snapshot_wanted:
            self._ingest.snapshot_failed(self._source, now=now)

    def _replay(self, first: int, now: float) -> None:
        self._asking = False
        ingest, source = self._ingest, self._source
        complete = False
        if self._replays:
            start, payloads = self._log.since(first)
            complete = start == first
            for number, payload in enumerate(payloads, start):
                ingest.receive(source, number, payload, now=now, replayed=True)
        self._heed(ingest.replay_finished(source, now=now, complete=complete), now)
