"""Answers to who wants a publisher's whole state, whatever they send. No network."""

import msgpack
import pytest

from kvrouter.events import decode_envelope
from kvrouter_publishers.core import PublisherCore
from kvrouter_publishers.jetstream_state import StateDesk
from tests.subscribers.scene import stored


def core(blocks: int) -> PublisherCore:
    """A core whose frames were all taken."""
    made = PublisherCore(worker_id="worker", rank=0, digest_seconds=None)
    made.put([stored(number) for number in range(blocks)])
    while made.take(0.0) is not None:
        pass
    return made


def answer(desk: StateDesk, *requests: bytes) -> list[bytes]:
    """The answers to requests that come together."""
    for number, request in enumerate(requests):
        desk.ask(str(number), request)
    answers: dict[str, bytes] = {}
    while desk.busy:
        answers.update(desk.advance(0.0))
    return [answers[str(number)] for number in range(len(requests))]


def ask(desk: StateDesk, part: int, **of: int) -> bytes:
    """The answer to one request."""
    return answer(desk, msgpack.packb({"part": part, "of": of} if of else {"part": part}))[0]


def test_a_snapshot_is_kept_while_its_parts_are_fetched() -> None:
    """New batches do not mix with it."""
    source = core(1000)
    desk = StateDesk(source, part_bytes_max=8192, offered=True)
    first = decode_envelope(ask(desk, 0))
    assert first.snapshot is not None
    source.put([stored(5000)])
    source.take(0.0)

    second = decode_envelope(ask(desk, 1, incarnation=first.incarnation, sequence=first.sequence))

    assert second.snapshot == (1, first.snapshot[1])
    assert (second.incarnation, second.sequence) == (first.incarnation, first.sequence)


def test_who_asks_at_the_same_time_shares_a_snapshot_and_who_asks_later_does_not() -> None:
    """Whoever asks may have missed anything up to that moment."""
    source = core(10)
    desk = StateDesk(source, part_bytes_max=8192, offered=True)
    first, second = answer(desk, msgpack.packb({"part": 0}), msgpack.packb({"part": 0}))
    assert first == second == ask(desk, 0)
    assert source.counters.snapshots_taken == 1
    source.put([stored(5000)])
    source.take(0.0)

    assert decode_envelope(ask(desk, 0)).sequence == 2
    assert source.counters.snapshots_taken == 2


def test_a_snapshot_that_is_gone_is_asked_for_anew() -> None:
    """Two are kept; parts of an older one, or of another life, cannot be had."""
    source = core(10)
    desk = StateDesk(source, part_bytes_max=8192, offered=True)
    for number in range(3):
        ask(desk, 0)
        source.put([stored(5000 + number)])
        source.take(0.0)

    assert ask(desk, 1, incarnation=source.incarnation, sequence=1) == b"gone"
    assert ask(desk, 1, incarnation=source.incarnation ^ 1, sequence=3) == b"gone"
    assert ask(desk, 1) == b"gone"


def test_a_publisher_that_published_nothing_says_so() -> None:
    """There is no number after which its state could be."""
    desk = StateDesk(PublisherCore(worker_id="worker", rank=0), part_bytes_max=8192, offered=True)

    assert ask(desk, 0) == b"empty"


def test_a_publisher_without_snapshots_says_so() -> None:
    """The asker need not wait for what never comes."""
    assert ask(StateDesk(core(1), part_bytes_max=8192, offered=False), 0) == b"none"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"\x91" * 600,
        b"x" * 2000,
        msgpack.packb({"part": -1}),
        msgpack.packb({"part": True}),
        msgpack.packb({"part": "0"}),
        msgpack.packb({"part": 1000}),
        msgpack.packb([0]),
    ],
)
def test_what_is_no_request_is_refused_and_counted(request_bytes: bytes) -> None:
    """Anybody on the server may send to us."""
    desk = StateDesk(core(1), part_bytes_max=8192, offered=True)

    assert answer(desk, request_bytes)[0] in (b"refused", b"gone")
    assert desk.parts_served == 0


def test_a_large_snapshot_is_made_in_many_turns() -> None:
    """Live batches have theirs between; who asks meanwhile waits for the next one."""
    source = core(2000)
    desk = StateDesk(source, part_bytes_max=4096, offered=True)
    desk.ask("first", msgpack.packb({"part": 0}))
    assert desk.advance(0.0) == []
    source.put([stored(5000)])
    source.take(0.0)
    desk.ask("second", msgpack.packb({"part": 0}))

    answers: dict[str, bytes] = {}
    turns = 0
    while desk.busy:
        answers.update(desk.advance(0.0))
        turns += 1

    assert turns > 20
    assert decode_envelope(answers["first"]).sequence == 1
    assert decode_envelope(answers["second"]).sequence == 2


def test_more_requests_than_can_wait_are_forgotten() -> None:
    """They come again; the memory of a guest is bounded."""
    desk = StateDesk(core(1), part_bytes_max=8192, offered=True)
    for number in range(2000):
        desk.ask(str(number), msgpack.packb({"part": 0}))

    answers = desk.advance(0.0) + desk.advance(0.0)

    assert len(answers) == 1024
