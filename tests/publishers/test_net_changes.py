"""A sum of many steps leaves every consumer where the steps themselves would have left it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kvrouter.events import Event
from kvrouter_publishers.net_changes import NetChanges
from kvrouter_publishers.resident_set import ResidentSet
from tests.publishers.histories import Consumer, histories


@settings(max_examples=600, deadline=None)
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
