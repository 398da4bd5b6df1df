"""Reads again what a stream has, for sources whose sink lacks something of it."""

import asyncio
import time
from collections.abc import Callable, Mapping

from kvrouter.errors import WireError
from kvrouter.events import Envelope, Source
from kvrouter.events.redis_names import EntryId
from kvrouter.redis_client import RedisClient
from kvrouter_subscribers.redis_entry import Entry, decode_entry
from kvrouter_subscribers.redis_limits import RedisLimits
from kvrouter_subscribers.redis_source import FollowedSource
from kvrouter_subscribers.subscriber import Receipt

__all__ = ["Answer", "Reading", "read_history"]

Answer = Callable[[FollowedSource, Receipt | None], None]
"""Is told each answer of the sink."""


class Reading:
    """What one source wants of the next reading, and what was found.

    From number `start` on, or nothing: what begins above it would make the sink forget what it has, for a part of
    the truth. With `partial` also that, because nothing better can be had. A source of which nothing was seen yet
    gets all of its lives that are there; the sink goes from one to the next.
    """

    def __init__(self, followed: FollowedSource, start: int, *, partial: bool) -> None:
        self.followed, self.start = followed, start
        self.began = False
        self._any_start = partial or start == 0
        self._life = None if followed.last is None else followed.last.incarnation
        self._refused = False

    def offer(self, envelope: Envelope) -> Receipt | None:
        """Hand over a batch, if it is wanted."""
        if self._refused or envelope.sequence < self.start:
            return None
        if self._life is not None and envelope.incarnation != self._life:
            return None
        if not self.began and envelope.sequence > self.start and not self._any_start:
            self._refused = True
            return None
        self.began = True
        return self.followed.replayed(envelope)


async def read_history(
    client: RedisClient,
    stream: str,
    readings: Mapping[Source, Reading],
    *,
    end: EntryId,
    limits: RedisLimits,
    answer: Answer,
) -> None:
    """Read the stream from its beginning up to `end`, once for all `readings`."""
    begin, left = b"-", limits.history_entries_max
    turn_began = time.perf_counter()
    for reading in readings.values():
        reading.followed.reading_history = True
    try:
        while left > 0:
            count = min(limits.read_entries, left)
            raw = await client.command("XRANGE", stream, begin, str(end), "COUNT", count)
            for pair in raw:
                entry = Entry(*pair)
                _offer(entry, readings, answer)
                if time.perf_counter() - turn_began >= limits.turn_seconds:
                    await asyncio.sleep(0)
                    turn_began = time.perf_counter()
            if len(raw) < count:
                break
            begin, left = b"(" + raw[-1][0], left - len(raw)
    finally:
        for reading in readings.values():
            reading.followed.reading_history = False


def _offer(entry: Entry, readings: Mapping[Source, Reading], answer: Answer) -> None:
    try:
        envelope = decode_entry(entry)
    except WireError:
        return  # It is counted where it is read live; here it would be counted once for each reading.
    reading = readings.get(envelope.source)
    if reading is not None and envelope.snapshot is None:
        answer(reading.followed, reading.offer(envelope))
