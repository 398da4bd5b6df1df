"""What the publisher believes its cache to hold is what every consumer that heard it all believes."""

from hypothesis import given, settings

from kvrouter.events import Event
from kvrouter.events.digest import mix64
from kvrouter_publishers.resident_set import ResidentSet
from tests.publishers.histories import Consumer, histories


def _resident(batches: list[tuple[Event, ...]]) -> ResidentSet:
    resident = ResidentSet()
    for events in batches:
        assert resident.apply(events) == []
    return resident


@settings(max_examples=250, deadline=None)
@given(histories())
def test_a_snapshot_tells_what_the_whole_history_told(batches: list[tuple[Event, ...]]) -> None:
    """To somebody who heard nothing else: the same copies everywhere, the same prompts can use them."""
    everything = Consumer().hear(batches)

    snapshot = Consumer().hear([tuple(_resident(batches).snapshot())])

    assert snapshot.copies() == everything.copies()
    assert snapshot.usable() == everything.usable()


@settings(max_examples=120, deadline=None)
@given(histories(orphans=True))
def test_a_snapshot_may_tell_more(batches: list[tuple[Event, ...]]) -> None:
    """Who hears of a block before the block that it continues may never learn what it is; a snapshot says it."""
    everything = Consumer().hear(batches)

    snapshot = Consumer().hear([tuple(_resident(batches).snapshot())])

    assert snapshot.copies() == everything.copies()
    for told, known in zip(snapshot.usable(), everything.usable(), strict=True):
        assert told.get(0, 0) >= known.get(0, 0)


@settings(max_examples=120, deadline=None)
@given(histories(orphans=True))
def test_a_digest_describes_what_consumers_hold(batches: list[tuple[Event, ...]]) -> None:
    """A row for each place that is not empty."""
    everything = Consumer().hear(batches)

    rows = _resident(batches).digest()

    expected: set[tuple[int, int, int]] = set()
    for (_, group), pool in everything.copies().items():
        xor = 0
        for block in pool:
            xor ^= mix64(block)
        expected.add((len(pool), xor, group))
    assert {(row.count, row.xor, row.group) for row in rows} == expected
