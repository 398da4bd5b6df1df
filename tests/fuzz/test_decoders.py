"""Every decoder takes whatever comes: it answers or refuses, and neither crashes, hangs nor grows.

50 000 frames each; `FUZZ_FRAMES=1000000 pytest tests/fuzz` takes more, `FUZZ_SEED` others.
"""

import gc
import os
from collections.abc import Callable, Sequence

import pytest

from kvrouter.errors import WireError
from kvrouter.events import (
    Source,
    decode_batch,
    decode_envelope,
    encode_batch,
    parse_live,
    parse_replay,
    peek_timestamp,
)
from kvrouter.events.model import EventBatch
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest, IngestLimits
from tests.events.frames_on_disk import FILES, messages
from tests.events.native_vectors import ACCEPTED
from tests.fuzz.mutations import frames

FRAMES = int(os.environ.get("FUZZ_FRAMES") or 50_000)
SEED = int(os.environ.get("FUZZ_SEED") or 0)
OBJECTS_MAX = 5_000
"""What may stay behind of a whole run: memories of a fixed size, and the test's own."""

LIMITS = IngestLimits(
    idle_hashes_max=50,
    orphan_blocks_max=50,
    unresolved_hashes_max=50,
    buffered_batches_max=20,
    snapshot_seconds_max=5.0,
)
SOURCE = Source("w", 0)
FRAMES_IN_A_LIFE = 500


@pytest.fixture(scope="module")
def batches() -> list[bytes]:
    """Batches as vLLM, SGLang, TensorRT-LLM and Mooncake sent them; of the longest there are enough."""
    seen = {message.frames[-1] for path in FILES for message in messages(path)}
    return sorted(payload for payload in seen if 0 < len(payload) < 4000)


@pytest.fixture(scope="module")
def envelopes() -> list[bytes]:
    """Frames of the native wire."""
    return [frame for frame, *_ in ACCEPTED.values() if len(frame) < 4000]


def feed(decoder: Callable[[bytes], object], corpus: Sequence[bytes]) -> tuple[int, int]:
    """Give every frame to a decoder; returns how many it took, and how many objects were left behind."""
    for frame in frames(corpus, 200, seed=-1):
        _take(decoder, frame)
    gc.collect()
    before = len(gc.get_objects())
    taken = sum(_take(decoder, frame) for frame in frames(corpus, FRAMES, seed=SEED))
    gc.collect()
    return taken, len(gc.get_objects()) - before


def _take(decoder: Callable[[bytes], object], frame: bytes) -> bool:
    try:
        decoder(frame)
    except WireError:
        return False
    return True


def test_batches_are_taken_or_refused(batches: list[bytes]) -> None:
    """And what was taken can be written, and is the same again."""

    def decode(frame: bytes) -> None:
        batch = decode_batch(frame)
        peek_timestamp(frame)
        assert isinstance(batch.timestamp, float)
        if not any(getattr(event, "pool", None) for event in batch.events):
            written = encode_batch(EventBatch(timestamp=0.0, events=batch.events))
            assert repr(decode_batch(written).events) == repr(batch.events)  # NaN is not equal to itself

    taken, grown = feed(decode, batches)

    assert FRAMES / 10 < taken < FRAMES
    assert grown < OBJECTS_MAX


def test_envelopes_are_taken_or_refused(envelopes: list[bytes]) -> None:
    """With everything that is in them."""

    def decode(frame: bytes) -> None:
        envelope = decode_envelope(frame)
        assert 0 <= envelope.sequence < 2**64 - 1
        assert len(envelope.payload) <= len(frame)

    taken, grown = feed(decode, envelopes)

    assert FRAMES / 10 < taken < FRAMES
    assert grown < OBJECTS_MAX


def test_messages_are_taken_or_refused(batches: list[bytes]) -> None:
    """However many frames they have; a frame is divided where its first byte says."""

    def parse(frame: bytes) -> None:
        parts = (
            [frame[start : start + 1 + frame[0] % 9] for start in range(0, len(frame), 1 + frame[0] % 9)][:6]
            if frame
            else []
        )
        for parser in (parse_live, parse_replay):
            _take(lambda _, parser=parser: parser(parts), frame)  # type: ignore[misc]

    _, grown = feed(parse, batches)

    assert grown < OBJECTS_MAX


@pytest.mark.parametrize("named", [False, True], ids=["engine's wire", "native wire"])
@pytest.mark.usefixtures("implementation")
def test_ingest_takes_whatever_comes(batches: list[bytes], envelopes: list[bytes], *, named: bool) -> None:
    """As batches, digests and snapshots, through the native core and without it; everything stays within its bounds."""
    ingest = Ingest(PrefixIndex(), limits=LIMITS)
    ingest.open(SOURCE, 0, block_size=4, now=0.0)
    count = 0

    def take(frame: bytes) -> None:
        nonlocal count
        count += 1
        life = count // FRAMES_IN_A_LIFE
        if not count % FRAMES_IN_A_LIFE:
            ingest.reset(SOURCE, now=0.0, reason="a new life, so that blocks do not gather")
        now, sequence = float(count), count % FRAMES_IN_A_LIFE
        if named and count % 50 == 0:
            ingest.snapshot(SOURCE, [frame], sequence=sequence, incarnation=life, now=now)
            return
        incarnation = digest = None
        if named:
            incarnation = life
            if count % 3 == 0:
                envelope = decode_envelope(frame)
                frame, digest = envelope.payload, envelope.digest
        receipt = ingest.receive(SOURCE, sequence, frame, now=now, incarnation=incarnation, digest=digest)
        if receipt.replay_from is not None:
            ingest.replay_finished(SOURCE, now=now, complete=False)

    _, grown = feed(take, [*batches, *envelopes] if named else batches)

    (status,) = ingest.status(now=0.0)
    assert status.orphans <= LIMITS.orphan_blocks_max
    assert status.unresolved <= LIMITS.unresolved_hashes_max
    assert status.buffered_batches <= LIMITS.buffered_batches_max
    assert grown < 4 * OBJECTS_MAX
    ingest.close(SOURCE)
    assert not ingest.status(now=0.0)
