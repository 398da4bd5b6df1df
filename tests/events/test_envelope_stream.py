"""The quick writer and reader of a stream say what the careful ones say, byte for byte and field for field."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrouter.errors import WireError
from kvrouter.events import Source
from kvrouter.events.envelope import Envelope, decode_envelope, encode_envelope
from kvrouter.events.envelope_stream import EnvelopeReader, EnvelopeWriter, Opened
from tests.events.native_vectors import ACCEPTED, REFUSED
from tests.events.test_envelope import envelopes

_numbers = st.sampled_from([0, 1, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**64 - 2]) | st.integers(
    0, 2**64 - 2
)


def _careful(frame: bytes) -> Opened | str:
    try:
        read = decode_envelope(frame)
    except WireError as error:
        return error.reason
    return Opened(read.source, read.incarnation, read.sequence, read.payload, read.snapshot, read.digest)


def _quick(reader: EnvelopeReader, frame: bytes) -> Opened | str:
    try:
        return reader.read(frame)
    except WireError as error:
        return error.reason


@given(st.sampled_from(["worker", "èsequence", "w" * 256]), st.lists(st.tuples(_numbers, st.integers(1, 70_000))))
def test_the_writer_writes_the_same_bytes(worker: str, batches: list[tuple[int, int]]) -> None:
    """Whatever the width of its numbers."""
    writer = EnvelopeWriter(Source(worker, 3), 2**63)

    for sequence, size in batches:
        expected = Envelope(
            source=Source(worker, 3), incarnation=2**63, sequence=sequence, timestamp=1.5, payload=bytes(size)
        )
        assert writer.write(sequence, 1.5, bytes(size)) == encode_envelope(expected)


@pytest.mark.parametrize(
    ("sequence", "time", "payload", "reason"),
    [(2**64 - 1, 1.0, b"x", "bad_sequence"), (0, -1.0, b"x", "bad_time"), (0, 1.0, b"", "bad_bytes")],
)
def test_the_writer_has_the_same_bounds(sequence: int, time: float, payload: bytes, reason: str) -> None:
    """What no reader takes is not written."""
    with pytest.raises(WireError) as refusal:
        EnvelopeWriter(Source("w", 0), 1).write(sequence, time, payload)

    assert refusal.value.reason == reason


@given(st.lists(envelopes, max_size=5), _numbers)
def test_the_reader_reads_the_same(written: list[Envelope], sequence: int) -> None:
    """Streams that follow each other, digests between batches, one life after another."""
    reader = EnvelopeReader()

    for envelope in written:
        for frame in (encode_envelope(envelope), EnvelopeWriter(envelope.source, 7).write(sequence, 1.0, b"batch")):
            for _ in range(2):
                assert _quick(reader, frame) == _careful(frame)


@settings(max_examples=1000)
@given(st.data())
def test_a_damaged_frame_is_refused_for_the_same_reason(data: st.DataObject) -> None:
    """Also by a reader that knows how the stream begins."""
    sound, _ = ACCEPTED[data.draw(st.sampled_from(["stored", "1.0 stored", "digest"]))]
    reader, frame = EnvelopeReader(), bytearray(sound)
    reader.read(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(frame)))
        end = min(len(frame), start + data.draw(st.integers(0, 4)))
        frame[start:end] = data.draw(st.binary(max_size=4))

    assert _quick(reader, bytes(frame)) == _careful(bytes(frame))


def test_all_vectors_are_read_the_same() -> None:
    """One reader for all of them, forth and back."""
    reader = EnvelopeReader()

    for frame, _ in [*ACCEPTED.values(), *REFUSED.values(), *reversed(list(ACCEPTED.values()))]:
        assert _quick(reader, frame) == _careful(frame)
