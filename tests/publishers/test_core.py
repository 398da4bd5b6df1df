"""What every transport gets from the core: numbered frames within bounds, their memory, digests and snapshots."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pytest

from kvrouter.errors import SettingsError
from kvrouter.events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    Envelope,
    Event,
    decode_batch,
    decode_envelope,
)
from kvrouter.events.digest import DigestRow, mix64
from kvrouter_publishers.core import Frame, PublisherCore
from tests.publishers.histories import SOURCE, Consumer
from tests.publishers.wire import removed, stored


def _core(**options: object) -> PublisherCore:
    chosen: dict[str, object] = {"worker_id": "worker", "rank": 0, "digest_seconds": None}
    return PublisherCore(**(chosen | options))  # type: ignore[arg-type]


def _taken(core: PublisherCore, now: float = 0.0) -> list[Frame]:
    frames = []
    while (frame := core.take(now)) is not None:
        frames.append(frame)
    return frames


def _envelopes(frames: Sequence[Frame]) -> list[Envelope]:
    return [decode_envelope(frame.payload) for frame in frames]


def _events(frames: Sequence[Frame]) -> list[tuple[Event, ...]]:
    return [decode_batch(envelope.payload).events for envelope in _envelopes(frames)]


def _parts(core: PublisherCore, **options: int) -> list[tuple[Event, ...]]:
    return [decode_batch(decode_envelope(frame).payload).events for frame in core.snapshot(**options)]


def _row(*blocks: int) -> tuple[DigestRow, ...]:
    xor = 0
    for block in blocks:
        xor ^= mix64(block)
    return (DigestRow("GPU", 0, len(blocks), xor),) if blocks else ()


def test_a_native_stream_begins_with_its_life() -> None:
    """Its first frame says that the cache is empty, so that nobody goes on believing in another life's blocks."""
    core = _core(digest_seconds=30.0)
    assert core.pending(0.0)

    (first,) = _taken(core)

    envelope = decode_envelope(first.payload)
    assert (first.sequence, first.events) == (0, 0)
    assert (envelope.source, envelope.incarnation) == (SOURCE, core.incarnation)
    assert envelope.digest == ()
    assert not core.pending(0.0)
    assert _core().incarnation != core.incarnation


def test_an_engines_stream_begins_with_its_first_step() -> None:
    """Foreign consumers get nothing that an engine would not send."""
    core = _core(native=False)
    assert not core.pending(0.0)
    core.put([stored(1)])

    (frame,) = _taken(core)

    assert frame.sequence == 0
    assert decode_batch(frame.payload).events == (stored(1),)


def test_frames_are_numbered_and_remembered() -> None:
    """A-318: what was taken can be had again, as long as the ring holds it."""
    core = _core(buffer_steps=3)
    for number in range(5):
        core.put([stored(number)])

    frames = _taken(core)

    assert [frame.sequence for frame in frames] == list(range(6))
    assert core.since(0) == [(frame.sequence, frame.payload) for frame in frames[3:]]
    assert core.oldest_sequence() == 3
    assert (core.next_sequence, core.has_batches()) == (6, False)


def test_a_digest_comes_when_it_is_due() -> None:
    """With the next batch, or alone when there is none."""
    core = _core(digest_seconds=10.0)
    _taken(core, 100.0)
    core.put([stored(1), stored(2)])
    core.put([stored(3)])

    early = _taken(core, 109.0)
    core.put([removed(1)])
    core.put([stored(4)])
    due = _taken(core, 110.0)
    alone = _taken(core, 120.0)

    assert [envelope.digest for envelope in _envelopes(early)] == [None, None]
    assert [envelope.digest for envelope in _envelopes(due)] == [_row(2, 3), None]
    assert [envelope.digest for envelope in _envelopes(alone)] == [_row(2, 3, 4)]
    assert alone[0].events == 0
    assert core.counters.digests_published == 3


def test_a_core_says_how_long_it_is_idle() -> None:
    """So that its thread may sleep until the next digest."""
    core = _core(digest_seconds=10.0)
    _taken(core, 100.0)

    assert core.idle_seconds(103.0) == 7.0
    assert not core.pending(109.9)
    assert core.pending(110.0)
    assert _core(native=False).idle_seconds() == float("inf")


@pytest.mark.parametrize("bytes_max", [1024, 5000, 100_000])
def test_no_batch_is_larger_than_a_transport_carries(bytes_max: int) -> None:
    """Steps are divided, events too, and say the same."""
    blocks, chance = 3000, random.Random(7)
    hashes = tuple(chance.getrandbits(64) for _ in range(blocks))
    step: list[Event] = [
        BlockStored(
            block_hashes=hashes,
            token_ids=tuple(token % 150_000 for token in range(70_000, 70_000 + 4 * blocks)),
            block_size=4,
            medium="GPU",
            extra_keys=tuple(("item", number) for number in range(blocks)),
        ),
        *(BlockRemoved(block_hashes=(block,), medium="GPU") for block in hashes[::2]),
        BlockRemoved(block_hashes=hashes[1::4], medium="GPU"),
    ]
    core = _core(batch_bytes_max=bytes_max, digest_seconds=0.001)
    _taken(core)
    core.put(step)

    frames = _taken(core, 1.0)

    assert all(len(envelope.payload) <= bytes_max for envelope in _envelopes(frames))
    assert [envelope.digest is not None for envelope in _envelopes(frames)] == [False] * (len(frames) - 1) + [True]
    whole, divided = Consumer().hear([step]), Consumer().hear(_events(frames))
    assert divided.copies() == whole.copies()
    assert len(whole.copies()["gpu", 0]) == blocks // 4
    assert {block.ingest.status(now=0.0)[0].orphans for block in (whole, divided)} == {0}


def test_a_store_that_cannot_be_divided_is_dropped_and_not_claimed() -> None:
    """A masked store says what its blocks are by all of its tokens. The digest agrees with what consumers were told."""
    core = _core(batch_bytes_max=1024, digest_seconds=0.001)
    _taken(core)
    masked = replace(stored(1), token_ids=tuple(range(4000)))
    core.put([masked, stored(2)])

    frames = _taken(core, 1.0)

    assert _events(frames) == [(stored(2),)]
    assert decode_envelope(frames[-1].payload).digest == _row(2)
    assert core.counters.events_dropped_unencodable == 1


def test_a_digest_for_which_there_is_no_room_is_left_out() -> None:
    """More places than the wire has rows, and a medium of any length: the stream goes on."""
    core = _core(digest_seconds=0.001)
    _taken(core)
    core.put([replace(stored(1), medium="cuda:" + "0" * 99)])
    core.put([replace(stored(group), group_idx=group) for group in range(1, 65)])

    one, many = _envelopes(_taken(core, 1.0) + _taken(core, 2.0))[:2]

    assert one.digest == _row(1)
    assert many.digest is None
    core.put([replace(stored(64), group_idx=64), BlockRemoved(block_hashes=(64,), group_idx=64)])
    assert core.take(3.0) is not None


def test_a_snapshot_is_the_state_after_the_last_frame() -> None:
    """In numbered parts of bounded size, all of one moment."""
    core = _core()
    for number in range(500):
        core.put([stored(number)])
    core.put([removed(7), stored(8)])
    _taken(core)
    core.put([stored(9999)])

    envelopes = [decode_envelope(frame) for frame in core.snapshot(part_bytes_max=2000)]

    assert [envelope.snapshot for envelope in envelopes] == [(n, len(envelopes)) for n in range(len(envelopes))]
    assert {(envelope.sequence, envelope.incarnation) for envelope in envelopes} == {(501, core.incarnation)}
    assert all(len(envelope.payload) <= 2000 for envelope in envelopes)
    assert envelopes[-1].digest == _row(*(number for number in range(500) if number != 7))
    held = Consumer().hear(decode_batch(envelope.payload).events for envelope in envelopes).copies()["gpu", 0]
    assert held == {number: 1 + (number == 8) for number in range(500) if number != 7}


def test_a_snapshot_is_of_the_moment_in_which_it_was_begun() -> None:
    """The stream goes on while it is made."""
    core = _core()
    for number in range(100):
        core.put([stored(number)])
    _taken(core)
    steps = core.prepare_snapshot(part_bytes_max=1024)

    yielded: list[list[bytes]] = []
    for frames in steps:
        core.put([removed(len(yielded)), stored(1000 + len(yielded))])
        _taken(core)
        yielded.append(frames)

    envelopes = [decode_envelope(frame) for frame in yielded[-1]]
    assert len(envelopes) > 3
    assert not any(yielded[:-1])
    assert {envelope.sequence for envelope in envelopes} == {100}
    held = Consumer().hear(decode_batch(envelope.payload).events for envelope in envelopes).copies()["gpu", 0]
    assert held == dict.fromkeys(range(100), 1)
    assert envelopes[-1].digest == _row(*range(100))


def test_there_is_no_snapshot_of_nothing() -> None:
    """Before the first frame nobody can need one; without the native wire nobody could read one."""
    assert _core().snapshot() == []
    for core in (_core(native=False), _core(snapshots=False)):
        core.put([stored(1)])
        _taken(core)
        assert core.snapshot() == []


def test_an_empty_cache_has_a_snapshot() -> None:
    """One part that says so; it is how a consumer learns that all it knew is gone."""
    core = _core()
    _taken(core)

    (frame,) = core.snapshot()

    envelope = decode_envelope(frame)
    assert (envelope.snapshot, envelope.sequence, envelope.digest) == ((0, 1), 0, ())
    assert decode_batch(envelope.payload).events == ()


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("queue", [1, 100])
def test_a_removal_that_cannot_be_read_ends_all_belief(native: bool, queue: int) -> None:
    """A number is skipped and the cache said to be empty; what came later is told. Also when steps were summed up."""
    core = _core(native=native, max_queue_size=queue)
    core.put([stored(1)])
    _taken(core)
    expected = core.next_sequence
    core.put([stored(2), removed(cast("int", object()))])
    core.put([stored(3)])
    core.put([stored(4)])
    core.put([stored(5)])

    frames = _taken(core)

    assert frames[0].sequence == expected + 1
    payloads = [decode_envelope(frame.payload).payload if native else frame.payload for frame in frames]
    events = [event for payload in payloads for event in decode_batch(payload).events]
    assert events[0] == AllBlocksCleared()
    told = {block for event in events if isinstance(event, BlockStored) for block in event.block_hashes}
    assert told in ({3, 4, 5}, {2, 3, 4, 5})
    assert core.counters.losses_announced == 1
    assert core.counters.events_dropped_unencodable == 1
    if native:
        assert Consumer().hear(_parts(core)).copies() == {("gpu", 0): dict.fromkeys(told, 1)}


@pytest.mark.parametrize(
    "bad",
    [
        BlockStored(block_hashes=(object(),), token_ids=(1, 2, 3, 4), block_size=4),  # type: ignore[arg-type]
        BlockStored(block_hashes=(7,), token_ids=(1, 2, 3, object()), block_size=4),  # type: ignore[arg-type]
        replace(stored(7), session_id=cast("str", object())),
        replace(stored(7), extra_keys=((object(),),)),
        replace(stored(7), group_idx=cast("int", "text")),
    ],
    ids=["hash", "token", "session", "extra key", "group"],
)
def test_a_store_that_cannot_be_read_costs_only_itself(bad: BlockStored) -> None:
    """Consumers then believe in less than there is, and the digest agrees with them."""
    core = _core(digest_seconds=0.001)
    _taken(core)
    core.put([stored(1), bad, stored(2)])

    frames = _taken(core, 1.0)

    assert _events(frames) == [(stored(1), stored(2))]
    assert decode_envelope(frames[0].payload).digest == _row(1, 2)
    assert core.counters.events_dropped_unencodable == 1
    assert core.counters.losses_announced == 0


def test_hashes_count_as_consumers_read_them() -> None:
    """Signed numbers and byte strings are other names of 64-bit numbers."""
    core = _core(digest_seconds=0.001)
    _taken(core)
    digest = b"\xff" * 24 + (12).to_bytes(8)
    names = cast("tuple[int, ...]", (-1, digest))
    core.put([BlockStored(block_hashes=names, token_ids=tuple(range(8)), block_size=4, medium="GPU")])

    core.put([replace(stored(20), parent_block_hash=cast("int", digest))])
    core.put([replace(stored(21), parent_block_hash=-1)])

    frames = _taken(core, 1.0)

    assert decode_envelope(frames[0].payload).digest == _row(2**64 - 1, 12)
    assert Consumer().hear(_events(frames)).copies() == Consumer().hear(_parts(core)).copies()
    assert Consumer().hear(_parts(core)).ingest.status(now=0.0)[0].orphans == 0


def test_an_overflow_becomes_one_frame_and_the_digest_follows() -> None:
    """The engine went on while nobody took; consumers are told the sum."""
    core = _core(max_queue_size=5, digest_seconds=0.001)
    core.put([stored(0)])
    before = _taken(core)
    for number in range(1, 1000):
        core.put([stored(number)])
        core.put([removed(number - 1)])

    after = _taken(core, 1.0)

    assert len(after) == 6
    assert core.counters.batches_compacted == 2 * 999 - 5
    assert core.counters.compactions == 1
    assert Consumer().hear(_events([*before, *after])).copies() == {("gpu", 0): {999: 1}}
    assert decode_envelope(after[0].payload).digest == _row(996, 997) or after[0].events < 10


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"worker_id": ""}, "cannot publish as worker ''"),
        ({"worker_id": "w" * 257}, "exceeds 256"),
        ({"rank": -1}, "rank"),
        ({"batch_bytes_max": 100}, "batch_bytes_max is 100; it must be at least 1024"),
        ({"digest_seconds": 0.0}, "digest_seconds is 0.0; it must be above 0"),
        ({"max_queue_size": 0}, "max_queue_size is 0; it must be at least 1"),
    ],
)
def test_a_wrong_setting_is_named(options: dict[str, object], text: str) -> None:
    """One line, before anything is published."""
    with pytest.raises(SettingsError, match=text):
        _core(**options)
