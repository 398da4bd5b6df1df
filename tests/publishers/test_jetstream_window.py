"""Which frames a server has: order, bounds, and what is sent again. No network."""

from kvrouter_publishers.core import PublisherCore
from kvrouter_publishers.jetstream_window import Window
from tests.subscribers.scene import stored


def window(steps: int, *, frames_max: int = 4, bytes_max: int = 1 << 20, buffer_steps: int = 100) -> Window:
    """A window over a core to which so many steps were put; its first frame announces the life."""
    core = PublisherCore(worker_id="worker", rank=0, buffer_steps=buffer_steps, digest_seconds=None)
    for number in range(steps):
        core.put([stored(number)])
    return Window(core, frames_max=frames_max, bytes_max=bytes_max, stored_max=100)


def sent(window: Window) -> list[int]:
    """The numbers of all frames that may be sent now."""
    numbers = []
    while (frame := window.next(0.0)) is not None:
        numbers.append(frame.sequence)
    return numbers


def test_no_more_is_under_way_than_the_bound_allows() -> None:
    """What is not taken stays in the core, whose queue is bounded too."""
    frames = window(10)

    assert sent(frames) == [0, 1, 2, 3]
    assert frames.full
    assert frames.acknowledge(1, 1)
    assert sent(frames) == [4]


def test_bytes_are_bounded_as_well_but_one_frame_always_fits() -> None:
    """A frame above the bound alone must not stop the stream."""
    frames = window(10, bytes_max=1)

    assert sent(frames) == [0]
    frames.acknowledge(0, 1)
    assert sent(frames) == [1]


def test_what_was_not_acknowledged_is_sent_again_first_and_in_order() -> None:
    """Also when an acknowledgement in the middle had come."""
    frames = window(10)
    sent(frames)
    frames.acknowledge(1, 1)

    assert frames.send_again() == 3
    assert sent(frames) == [0, 2, 3, 4]


def test_an_acknowledgement_counts_once() -> None:
    """The server answers each copy of a frame."""
    frames = window(10)
    sent(frames)

    assert frames.acknowledge(2, 7)
    assert not frames.acknowledge(2, 7)
    assert not frames.acknowledge(99, 8)
    assert frames.highest_place == 7


def test_what_a_server_lost_is_sent_again_before_anything_newer() -> None:
    """It came back with message 2 as its last: the frames behind that are gone, and those under way unknown."""
    frames = window(10)
    for place, number in enumerate(sent(frames), 1):
        frames.acknowledge(number, place)
    assert sent(frames) == [4, 5, 6, 7]

    assert frames.lost_behind(2) == 2
    assert sent(frames) == [2, 3, 4, 5]
    for number in (2, 3, 4, 5):
        frames.acknowledge(number, number)
    assert sent(frames) == [6, 7, 8, 9]


def test_what_a_server_lost_beyond_our_memory_is_a_gap() -> None:
    """The newest frames are there; consumers see that the others are missing."""
    frames = window(10, frames_max=11, buffer_steps=3)
    for place, number in enumerate(sent(frames), 1):
        frames.acknowledge(number, place)

    assert frames.lost_behind(0) == 3
    assert sent(frames) == [8, 9, 10]


def test_a_server_that_lost_nothing_of_ours_gets_nothing_again() -> None:
    """Its newest messages may be of others."""
    frames = window(3)
    for place, number in enumerate(sent(frames), 1):
        frames.acknowledge(number, place)

    assert frames.lost_behind(4) == 0
    assert len(frames) == 0
