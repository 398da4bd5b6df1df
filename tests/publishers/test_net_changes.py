"""A sum of many steps leaves every consumer where the steps themselves would have left it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kvrouter.events import AllBlocksCleared, BlockRemoved, BlockStored, Event
from kvrouter_publishers.net_changes import NetChanges
from kvrouter_publishers.places import Layout, Places
from kvrouter_publishers.resident_set import ResidentSet
from tests.publishers.histories import Consumer, block_hash, block_tokens, histories


def _store(block: int, medium: str = "GPU", parent: int | None = None) -> BlockStored:
    return BlockStored(
        block_hashes=(block_hash(block),),
        parent_block_hash=None if parent is None else block_hash(parent),
        token_ids=block_tokens(block % 30 + 1),
        block_size=4,
        medium=medium,
    )


def _removal(block: int, medium: str = "GPU") -> BlockRemoved:
    return BlockRemoved(block_hashes=(block_hash(block),), medium=medium)


def _sum() -> NetChanges:
    return NetChanges(Places(), Layout(), None)


@settings(max_examples=300, deadline=None)
@given(histories(), st.data())
def test_a_sum_is_worth_its_steps(batches: list[tuple[Event, ...]], data: st.DataObject) -> None:
    """Right after it, and after whatever follows."""
    start = data.draw(st.integers(0, len(batches)))
    end = data.draw(st.integers(start, len(batches)))
    resident = ResidentSet()
    for events in batches[:start]:
        resident.apply(events)
    changes = NetChanges(resident.places, resident.layout, resident)
    for events in batches[start:end]:
        changes.add(events)

    one, other = Consumer().hear(batches[:end]), Consumer().hear([*batches[:start], tuple(changes.events())])

    assert other.copies() == one.copies()
    assert other.usable() == one.usable()
    one.hear(batches[end:])
    other.hear(batches[end:])
    assert other.copies() == one.copies()
    assert other.usable() == one.usable()


def test_a_parent_that_came_and_went_is_stated_for_its_child() -> None:
    """Stored, and removed again at the end; whoever hears it knows what the child is."""
    changes = _sum()
    changes.add([_store(1), _store(2, parent=1), _store(4, parent=2)])
    changes.add([_removal(1), _removal(2)])

    events = list(changes.events())

    assert [type(event) for event in events] == [BlockStored, BlockRemoved]
    consumer = Consumer().hear([events])
    assert consumer.copies() == {("gpu", 0): {block_hash(4): 1}}
    assert consumer.ingest.status(now=0.0)[0].orphans == 0


def test_what_came_and_went_leaves_nothing() -> None:
    """Not in the sum, and not in memory: however long nobody takes, it is as large as the cache."""
    changes = _sum()
    for number in range(100, 20_000):
        changes.add([_store(number), _store(number + 100_000, parent=number)])
        if number >= 110:
            changes.add([_removal(number + 100_000 - 10), _removal(number - 10)])

    assert len(changes._meanings) == 20
    assert sum(len(event.block_hashes) for event in changes.events() if isinstance(event, BlockStored)) == 20
    changes.add([AllBlocksCleared()])
    assert list(changes.events()) == [AllBlocksCleared()]
    assert len(changes._meanings) == 0


def test_with_offloading_memory_is_bounded_too() -> None:
    """What came and went is remembered a while, because a copy elsewhere may name it."""
    changes = _sum()
    changes.add([_store(1, "CPU")])
    for number in range(100, 60_000):
        changes.add([_store(number)])
        changes.add([_removal(number)])

    assert 30_000 < len(changes._meanings) < 40_000
    assert Consumer().hear([tuple(changes.events())]).copies() == {("cpu", 0): {block_hash(1): 1}}
