"""The way of events from a simulated worker to a router."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from kvrouter.blocks import Prompt
from kvrouter.events import BlockStored, Source
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest
from kvrouter.replay.event_feed import EventFeed, EventLog

SOURCE = Source("worker-0", 0)


class Lossy(Random):
    """Loses what it is told to, in order."""

    def __init__(self, *lost: bool) -> None:
        super().__init__()
        self._lost = list(lost)

    def random(self) -> float:
        return 0.0 if self._lost and self._lost.pop(0) else 0.9


class Way:
    """One feed, and the future of its simulation."""

    def __init__(self, *, delay: float = 0.0, replays: bool = True, random: Random | None = None) -> None:
        self.ingest = Ingest(PrefixIndex())
        self.ingest.open(SOURCE, 0, block_size=16, now=0.0)
        self.log = EventLog()
        self.future: list[tuple[float, Callable[[float], None]]] = []
        self.feed = EventFeed(
            self.log,
            self.ingest,
            SOURCE,
            delay_seconds=delay,
            loss=0.5 if random is not None else 0.0,
            replays=replays,
            random=random or Random(1),
            later=lambda when, call: self.future.append((when, call)),
        )

    def publish(self, *keys: int, now: float) -> None:
        """Store blocks."""
        events = [BlockStored(block_hashes=keys, block_size=16, medium="GPU", sequence_hashes=keys)]
        self.feed.send(*self.log.publish(list(events), now), now)

    def live(self, until: float) -> None:
        """Let time pass."""
        while due := [each for each in self.future if each[0] <= until]:
            first = min(due, key=lambda each: each[0])
            self.future.remove(first)
            first[1](first[0])

    def known(self, *keys: int) -> int:
        """Tokens of a prompt that the router believes to be cached."""
        prompt = Prompt.from_hashes(list(keys), block_size=16, tokens=16 * len(keys) + 1)
        return self.ingest.usable_tokens(prompt).get(0, 0)


def test_without_delay_a_router_knows_at_once() -> None:
    """In the same instant."""
    way = Way()
    way.publish(1, 2, now=1.0)

    assert way.known(1, 2) == 32


def test_a_delay_is_a_delay() -> None:
    """Not before, and then all of it."""
    way = Way(delay=5.0)
    way.publish(1, 2, now=1.0)

    way.live(5.9)
    assert way.known(1, 2) == 0
    way.live(6.0)
    assert way.known(1, 2) == 32


def test_what_is_lost_comes_with_a_replay() -> None:
    """The next batch shows the gap, and there and back takes twice the delay."""
    way = Way(delay=1.0, random=Lossy(False, True, False))
    way.publish(1, now=0.0)
    way.publish(2, now=1.0)
    way.publish(3, now=2.0)

    way.live(4.9)
    assert way.known(1, 2, 3) < 48
    way.live(5.0)
    assert way.known(1, 2, 3) == 48
    assert way.feed.lost == 1


def test_without_replay_a_gap_is_given_up() -> None:
    """What came before it is not believed any more; what comes after is."""
    way = Way(random=Lossy(False, True, False, False), replays=False)
    for key in (1, 2, 3, 4):
        way.publish(key, now=float(key))
    way.live(10.0)

    assert way.known(4) == 16
    assert way.known(2) == 0


def test_a_new_life_counts_from_zero() -> None:
    """And keeps nothing of the old one."""
    log = EventLog()
    log.publish([], 0.0)
    log.restart()

    assert log.since(0) == (0, [])
    assert log.publish([], 1.0)[0] == 0
