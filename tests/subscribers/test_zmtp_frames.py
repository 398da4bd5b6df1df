"""Messages come out of a connection whole and in order, however the network cuts the bytes, whatever is among them."""

import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter import native_core
from kvrouter_subscribers import zmtp_frames
from kvrouter_subscribers.zmtp_frames import FRAMES_MAX, Item, frame, parse_ready, ping_answer, ready, take_command
from tests.subscribers.zmtp_peer import batch, message

BOUND = 1000
PING = frame(b"\x04PING\x00\x0aabc", command=True)


def _cut_natively(*arguments: Any) -> tuple[list[Any], int, int]:
    """What the core cuts, its runs as lists."""
    items, used, fault = native_core.native.cut_messages(*arguments)
    return [(*item[:2], list(item[2])) if isinstance(item, tuple) else item for item in items], used, fault


CUTTERS: list[Any] = [zmtp_frames.cut_messages]
if native_core.present:
    CUTTERS.append(_cut_natively)
RAW_CUTTERS = [zmtp_frames.cut_messages, *([native_core.native.cut_messages] if native_core.present else [])]
"""Whose runs are whatever they are."""

topics = st.sampled_from([b"", b"kv", b"kv@a", b"kv_metrics"])
payloads = st.binary(max_size=300)
batches = st.builds(
    lambda number, payload, topic: batch(number, payload, topic=topic), st.integers(0, 3), payloads, topics
)
others = st.lists(payloads, min_size=1, max_size=6).map(lambda frames: message(*frames))
commands = st.binary(max_size=300).map(lambda body: frame(body, command=True))
streams = st.lists(st.one_of(batches, others, commands), max_size=12).map(b"".join)


def spread(items: list[Item]) -> list[object]:
    """Items with runs as single batches: where a run ends is nobody's business."""
    flat: list[object] = []
    for item in items:
        if isinstance(item, tuple):
            first, _, payloads = item
            flat += enumerate(payloads, first)
        else:
            flat.append(item)
    return flat


@pytest.mark.parametrize("cut", CUTTERS)
@given(data=streams, cuts=st.lists(st.integers(0, 4000), max_size=30), topic=st.sampled_from([b"", b"kv"]))
def test_every_way_of_cutting_the_bytes_gives_the_same_messages(
    cut: Any, data: bytes, cuts: list[int], topic: bytes
) -> None:
    """TCP knows no messages: a read may end anywhere."""
    whole, used, fault = zmtp_frames.cut_messages(data, len(data), topic, b"kv_metrics", BOUND, 64)
    assert (used, fault) == (len(data), 0)

    found: list[Item] = []
    rest = b""
    for start, end in pairwise([0, *sorted(min(at, len(data)) for at in cuts), len(data)]):
        rest += data[start:end]
        items, used, fault = cut(rest, len(rest), topic, b"kv_metrics", BOUND, 64)
        assert fault == 0
        found += items
        rest = rest[used:]

    assert rest == b""
    assert spread(found) == spread(whole)


@pytest.mark.parametrize("seed", range(20))
def test_the_core_cuts_damaged_bytes_as_the_reference_does(seed: int) -> None:
    """The same items, the same end and the same fault, whatever the bytes and bounds are."""
    choose = random.Random(seed)
    sound = [batch(number, bytes(choose.randrange(300))) for number in range(6)]
    sound += [PING, message(b"a", b"b"), message(*[b"x"] * 15), message(b"kv_metrics", bytes(8), b"{}")]
    for _ in range(500):
        data = bytearray(b"".join(choose.choices(sound, k=choose.randrange(8))))
        for _ in range(choose.randrange(4)):
            at = choose.randrange(len(data) + 1)
            data[at : at + choose.randrange(3)] = choose.randbytes(choose.randrange(3))
        end, bound, runs = choose.randrange(len(data) + 1), choose.choice([5, 100, BOUND]), choose.choice([1, 3, 64])
        topic, apart = choose.choice([b"", b"kv"]), choose.choice([b"", b"kv_metrics"])

        answers = [cut(bytes(data), end, topic, apart, bound, runs) for cut in CUTTERS]

        assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize("cut", CUTTERS)
def test_batches_in_a_row_are_a_run(cut: Any) -> None:
    """Runs end where numbers jump, where there are enough, and at whatever is no batch."""
    data = b"".join(batch(number, b"\x93x") for number in (0, 1, 2, 3, 7, 8)) + PING + batch(9, b"\x93x")

    items, _, _ = cut(data, len(data), b"", b"kv_metrics", BOUND, 3)

    two = [b"\x93x", b"\x93x"]
    assert items == [(0, 30, [*two, b"\x93x"]), (3, 10, two[:1]), (7, 20, two), PING[2:], (9, 10, two[:1])]


@pytest.mark.parametrize("cut", CUTTERS)
def test_a_run_ends_when_it_is_long_enough(cut: Any) -> None:
    """Large batches take their time, and time is looked at between runs."""
    data = b"".join(batch(number, bytes(20_000)) for number in range(5))

    items, _, _ = cut(data, len(data), b"", b"", 100_000, 64)

    assert [len(payloads) for _, _, payloads in items] == [2, 2, 1]


@pytest.mark.parametrize("cut", CUTTERS)
@pytest.mark.parametrize(
    "other",
    [
        message(b"kv_metrics", bytes(8), b"\x93x"),
        message(b"other", bytes(8), b"\x93x"),
        message(b"kv", bytes(7), b"\x93x"),
        message(b"kv", bytes(8), b"\x83envelope"),
        message(b"kv", bytes(8), b"\xdeenvelope"),
        message(b"kv", bytes(8)),
        message(b"kv", bytes(8), b"\x93x", b"more"),
    ],
)
def test_what_is_no_bare_batch_comes_frame_by_frame(cut: Any, other: bytes) -> None:
    """Load reports, other topics, envelopes and what is malformed are for Python to judge."""
    items, used, fault = cut(other, len(other), b"kv", b"kv_metrics", BOUND, 64)

    assert (used, fault) == (len(other), 0)
    assert isinstance(items[0], list)
    assert message(*items[0]) == other


@pytest.mark.parametrize("cut", CUTTERS)
def test_a_command_among_the_frames_of_a_message_comes_before_it(cut: Any) -> None:
    """A heartbeat waits for nobody; the message is whole nevertheless, and is no run."""
    whole = batch(4, b"\x93x")
    data = whole[:2] + PING + whole[2:]

    assert cut(data, len(data), b"", b"", BOUND, 64) == ([PING[2:], [b"", (4).to_bytes(8), b"\x93x"]], len(data), 0)
    assert cut(data, len(data) - 1, b"", b"", BOUND, 64) == ([], 0, 0)


@pytest.mark.parametrize("cut", CUTTERS)
@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (b"\x02" + (BOUND + 1).to_bytes(8), 1),
        (b"\x02" + b"\xff" * 8, 1),
        (b"\x08\x00", 2),
        (b"\x80", 2),
        (b"\x05\x00", 2),
        (b"\x01\x00" * FRAMES_MAX, 3),
        (b"\x04\x00" + b"\x01\x00" * FRAMES_MAX, 3),
        (b"\x01\x00" + b"\x04\x00" * FRAMES_MAX, 3),
    ],
)
def test_a_fault_is_told_after_what_came_before_it(cut: Any, bad: bytes, fault: int) -> None:
    """As soon as it can be seen: nobody waits for the rest of a frame that is too long."""
    good = batch(0, b"\x93x")

    items, used, found = cut(good + bad, len(good + bad), b"", b"", BOUND, 64)

    assert items[0] == (0, 10, [b"\x93x"])
    assert found == fault
    assert used >= len(good)


@pytest.mark.parametrize("cut", CUTTERS)
def test_many_frames_are_not_larger_than_one(cut: Any) -> None:
    """What must be kept of a message that is not whole has one bound, however many frames it is in."""
    data = b"".join(b"\x03" + (60_000).to_bytes(8) + bytes(60_000) for _ in range(3))

    assert cut(data, len(data), b"", b"", 60_000, 64) == ([], 0, 1)


def test_the_properties_of_a_ready_command_are_read() -> None:
    """Names are read in any letters, and a damaged list is none."""
    body = ready(b"PUB")[2:] + b"\x08Identity" + (2).to_bytes(4) + b"me"

    assert parse_ready(body) == {b"socket-type": b"PUB", b"identity": b"me"}
    assert all(parse_ready(body[:size]) in (None, {}, {b"socket-type": b"PUB"}) for size in range(len(body)))
    assert parse_ready(b"\x05ERROR\x03why") is None


def test_only_a_ping_is_answered() -> None:
    """With the context that it came with, which has a bound."""
    assert ping_answer(b"\x04PING\x00\x0aabc") == frame(b"\x04PONGabc", command=True)
    assert ping_answer(b"\x04PING\x00") is None
    assert ping_answer(b"\x04PING\x00\x0a" + bytes(17)) is None
    assert ping_answer(b"\x07UNKNOWN") is None


def test_a_command_is_taken_from_the_front() -> None:
    """In both forms; what is no command, or too large for one, is refused at its first bytes."""
    short, long = frame(b"abc", command=True), frame(bytes(300), command=True)

    assert take_command(short + b"rest", 10) == (b"abc", b"rest")
    assert take_command(long, 300) == (bytes(300), b"")
    assert all(take_command(long[:size], 300) is None for size in range(len(long)))
    for wrong in (b"\x00\x03abc", long[:9], b"\xff"):
        with pytest.raises(ValueError, match="flags"):
            take_command(wrong, 299)


@pytest.mark.parametrize("cut", RAW_CUTTERS)
def test_the_batches_of_a_run_are_a_sequence(cut: Any) -> None:
    """Whatever they are kept in, they can be looked at as those of any list."""
    said = [b"\x93" + bytes([number]) * number for number in range(40)]
    data = b"".join(batch(number, each) for number, each in enumerate(said))

    [(_, _, payloads)], _, _ = cut(data, len(data), b"", b"", BOUND, 64)

    assert (len(payloads), list(payloads)) == (40, said)
    assert [payloads[at] for at in (0, 39, -1, -40)] == [said[0], said[39], said[39], said[0]]
    for part in (slice(None), slice(3, 7), slice(-3, None), slice(30, 2, -5), slice(50, 60)):
        assert payloads[part] == said[part]
    for beyond in (40, -41):
        with pytest.raises(IndexError):
            payloads[beyond]
    with pytest.raises(TypeError):
        payloads["1"]


@pytest.mark.parametrize("cut", RAW_CUTTERS)
def test_runs_outlive_the_bytes_that_they_were_cut_from(cut: Any) -> None:
    """The buffer is used again at once."""
    data = bytearray(batch(0, b"\x93first") + batch(1, b"\x93second"))

    [(_, _, payloads)], _, _ = cut(data, len(data), b"", b"", BOUND, 64)
    data[:] = bytes(len(data))

    assert list(payloads) == [b"\x93first", b"\x93second"]
