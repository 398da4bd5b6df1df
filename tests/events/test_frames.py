"""Messages around a batch: both replay forms read alike, and whatever is not one says so."""

import pytest

from kvrouter.errors import WireError
from kvrouter.events import ReplayData, ReplayEnd, parse_live, parse_replay
from kvrouter.events.frames import live_frames, replay_request

_SEVEN = (7).to_bytes(8, "big")
_ALL_ONES = b"\xff" * 8


def test_a_live_message_is_topic_sequence_payload() -> None:
    """What a publisher writes is what a subscriber reads."""
    assert parse_live(live_frames(b"kv@pod@model", 7, b"batch")) == (b"kv@pod@model", 7, b"batch")


@pytest.mark.parametrize("frames", [[], [b""], [_SEVEN, b"x"], [b"", _SEVEN, b"x", b"y"], [b"", b"7", b"x"]])
def test_other_live_messages_are_wire_errors(frames: list[bytes]) -> None:
    """A wrong count of frames or a sequence of another length."""
    with pytest.raises(WireError):
        parse_live(frames)


@pytest.mark.parametrize("before", [[], [b""], [b"", b"topic"], [b"", b""]])
def test_replayed_data_reads_from_the_right(before: list[bytes]) -> None:
    """Old engines send no topic, later ones do."""
    assert parse_replay([*before, _SEVEN, b"batch"]) == ReplayData(7, b"batch")


@pytest.mark.parametrize(
    "frames", [[b"", _ALL_ONES, b""], [b"", b"", _ALL_ONES, b""], [b"", _SEVEN, b""], [_ALL_ONES, b"x"]]
)
def test_an_empty_payload_or_a_sequence_of_ones_ends_a_replay(frames: list[bytes]) -> None:
    """Both marks are honoured."""
    assert parse_replay(frames) == ReplayEnd()


@pytest.mark.parametrize("frames", [[], [b"x"], [b""] * 6, [b"", b"short", b"x"]])
def test_other_replies_are_wire_errors(frames: list[bytes]) -> None:
    """Too few frames, too many, or no sequence."""
    with pytest.raises(WireError):
        parse_replay(frames)


def test_a_replay_request_is_an_empty_frame_and_the_first_sequence_wanted() -> None:
    """A ROUTER sees exactly three frames then; others it ignores."""
    assert replay_request(7) == [b"", _SEVEN]
