"""The native envelope: what is written is read, old bytes for ever, and bad bytes are refused with a reason."""

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgpack import fallback

from kvrouter.errors import WireError
from kvrouter.events import AllBlocksCleared, EventBatch, Source, decode_batch, encode_batch
from kvrouter.events.digest import DigestRow, mix64
from kvrouter.events.envelope import (
    DIGEST_ROWS_MAX,
    ENVELOPE_BYTES_MAX,
    ENVELOPE_VERSION,
    HEADER_BYTES_MAX,
    INCARNATION_MAX,
    MEDIUM_BYTES_MAX,
    RANK_MAX,
    SEQUENCE_MAX,
    SNAPSHOT_PARTS_MAX,
    TIME_SECONDS_MAX,
    WORKER_ID_BYTES_MAX,
    Envelope,
    decode_envelope,
    encode_envelope,
    is_envelope,
)
from tests.events.native_vectors import ACCEPTED, REFUSED, WRITTEN, envelope_of

BATCH = encode_batch(EventBatch(timestamp=1.0, events=(AllBlocksCleared(),)))
_worker_ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=WORKER_ID_BYTES_MAX // 4)
_rows = st.builds(
    DigestRow,
    st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=MEDIUM_BYTES_MAX // 4),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**63),
    st.integers(0, 2**64 - 1),
)
_snapshots = st.integers(1, SNAPSHOT_PARTS_MAX).flatmap(
    lambda parts: st.tuples(st.integers(0, parts - 1), st.just(parts))
)
envelopes = st.builds(
    Envelope,
    source=st.builds(Source, _worker_ids, st.integers(0, RANK_MAX)),
    incarnation=st.integers(0, INCARNATION_MAX),
    sequence=st.integers(0, SEQUENCE_MAX),
    timestamp=st.floats(0, TIME_SECONDS_MAX),
    payload=st.binary(min_size=1, max_size=300),
    snapshot=st.none() | _snapshots,
    digest=st.none() | st.lists(_rows, max_size=8, unique_by=lambda row: row[:2]).map(tuple),
)
_unknown_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.binary(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=3),
    max_leaves=8,
)


@pytest.fixture(params=["compiled", "python"])
def _unpacker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms of msgpack, because an engine's environment may have either."""
    if request.param == "python":
        monkeypatch.setattr(msgpack, "Unpacker", fallback.Unpacker)


def _envelope(
    worker: str = "worker",
    rank: int = 0,
    incarnation: int = 7,
    sequence: int = 3,
    time: float = 1.5,
    snapshot: tuple[int, int] | None = None,
    digest: tuple[DigestRow, ...] | None = None,
) -> Envelope:
    return Envelope(
        source=Source(worker, rank),
        incarnation=incarnation,
        sequence=sequence,
        timestamp=time,
        payload=BATCH,
        snapshot=snapshot,
        digest=digest,
    )


def _wide_rows(count: int) -> tuple[DigestRow, ...]:
    """Rows as wide as they may be, each of another group."""
    return tuple(DigestRow("M" * MEDIUM_BYTES_MAX, 2**32 - 1 - n, 2**63, 2**64 - 1) for n in range(count))


def _outcome(frame: bytes) -> Envelope | None:
    """What a reader makes of a frame; anything but an envelope or a `WireError` ends the test."""
    try:
        return decode_envelope(frame)
    except WireError:
        return None


@pytest.mark.usefixtures("_unpacker")
@pytest.mark.parametrize("name", ACCEPTED)
def test_old_frames_mean_what_they_meant(name: str) -> None:
    """Whatever is written one day is read on every later one."""
    frame, stated = ACCEPTED[name]

    assert is_envelope(frame)
    assert decode_envelope(frame) == envelope_of(stated)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_we_write_is_what_we_wrote(name: str) -> None:
    """Byte for byte, so that other writers have something to compare with."""
    frame, stated = ACCEPTED[name]

    assert encode_envelope(envelope_of(stated)) == frame


@pytest.mark.usefixtures("_unpacker")
@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_frame_is_refused_with_its_reason(name: str) -> None:
    """The reason is a label for a counter, the text is for people."""
    frame, reason = REFUSED[name]

    with pytest.raises(WireError) as refusal:
        decode_envelope(frame)

    assert refusal.value.reason == reason


def test_batches_inside_the_vectors_are_readable() -> None:
    """The envelope carries what `decode_batch` takes, an old engine's own bytes among them."""
    batches = [decode_batch(envelope_of(stated).payload) for _, stated in ACCEPTED.values()]

    assert sum(len(batch.events) for batch in batches) >= 6
    assert not any(batch.skipped for batch in batches)


@given(envelopes)
def test_what_is_written_is_read(envelope: Envelope) -> None:
    """All of it, and the header keeps its bound."""
    frame = encode_envelope(envelope)

    assert decode_envelope(frame) == envelope
    assert len(frame) - len(envelope.payload) <= HEADER_BYTES_MAX


@given(
    envelopes,
    st.dictionaries(st.text(max_size=8) | st.integers(0, 9), _unknown_values, max_size=5),
    st.integers(0, 65535),
)
def test_fields_and_minor_versions_of_tomorrow_are_read_past(
    envelope: Envelope, unknown: dict[object, object], minor: int
) -> None:
    """Known fields mean the same in every minor version; others are counted."""
    header = msgpack.unpackb(encode_envelope(envelope)[: -len(envelope.payload)])
    unknown = {key: value for key, value in unknown.items() if key not in header}
    frame = msgpack.packb(header | {"kvrouter": [ENVELOPE_VERSION[0], minor]} | unknown) + envelope.payload

    read = decode_envelope(frame)

    assert (read.source, read.incarnation, read.sequence) == (envelope.source, envelope.incarnation, envelope.sequence)
    assert (read.timestamp, read.payload) == (envelope.timestamp, envelope.payload)
    assert (read.version, read.unknown_fields) == ((ENVELOPE_VERSION[0], minor), len(unknown))


@given(st.integers(0, 65535).filter(lambda major: major != ENVELOPE_VERSION[0]), _unknown_values)
def test_another_major_version_is_refused_before_anything_else_is_looked_at(major: int, worker: object) -> None:
    """Its fields may mean anything."""
    frame = msgpack.packb({"kvrouter": [major, 0], "worker": worker})

    with pytest.raises(WireError, match=rf"version {major}\.0; this build reads 1\.x") as refusal:
        decode_envelope(frame)

    assert refusal.value.reason == "unsupported_version"


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_any_bytes_are_an_envelope_or_a_wire_error(frame: bytes) -> None:
    """With and without the beginning of one."""
    _outcome(frame)
    _outcome(b"\x87\xa8kvrouter\x92\x01\x00" + frame)


@settings(max_examples=1000)
@given(st.data())
def test_a_damaged_frame_is_an_envelope_or_a_wire_error(data: st.DataObject) -> None:
    """Bytes changed, cut out, doubled or added, anywhere."""
    frame = bytearray(data.draw(st.sampled_from([frame for frame, _ in ACCEPTED.values()])))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(frame)))
        end = min(len(frame), start + data.draw(st.integers(0, 8)))
        frame[start:end] = data.draw(st.binary(max_size=8) | st.just(bytes(frame[start:end] * 2)))

    _outcome(bytes(frame))


@pytest.mark.parametrize("name", ACCEPTED)
def test_no_part_of_a_frame_is_taken_for_a_whole_one(name: str) -> None:
    """A connection that breaks in the middle loses the batch, and ingest sees the gap."""
    frame, _ = ACCEPTED[name]

    assert [size for size in range(len(frame)) if _outcome(frame[:size]) is not None] == []


@pytest.mark.parametrize(
    ("envelope", "reason"),
    [
        (_envelope(worker=""), "bad_worker"),
        (_envelope(worker="é" * 129), "bad_worker"),
        (_envelope(worker="\ud800"), "bad_worker"),
        (_envelope(rank=RANK_MAX + 1), "bad_rank"),
        (_envelope(incarnation=-1), "bad_incarnation"),
        (_envelope(sequence=SEQUENCE_MAX + 1), "bad_sequence"),
        (_envelope(time=float("inf")), "bad_time"),
        (_envelope(time=10**400), "bad_time"),
        (_envelope(snapshot=(2, 2)), "bad_snapshot"),
        (_envelope(snapshot=(0, SNAPSHOT_PARTS_MAX + 1)), "bad_snapshot"),
        (_envelope(digest=(DigestRow("GPU", 0, 1, 2**64),)), "bad_digest"),
        (_envelope(digest=(DigestRow("GPU", 0, 1, 1),) * 2), "bad_digest"),
        (_envelope(digest=(DigestRow("\ud800", 0, 1, 1),)), "bad_digest"),
        (_envelope(digest=_wide_rows(DIGEST_ROWS_MAX + 1)), "bad_digest"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_reader_takes_is_not_written(envelope: Envelope, reason: str) -> None:
    """The same bounds on both sides."""
    with pytest.raises(WireError) as refusal:
        encode_envelope(envelope)

    assert refusal.value.reason == reason


def test_the_largest_header_that_can_be_written_can_be_read() -> None:
    """The bounds of its fields leave it below its own."""
    parts = (SNAPSHOT_PARTS_MAX - 1, SNAPSHOT_PARTS_MAX)
    envelope = _envelope("w" * 256, RANK_MAX, INCARNATION_MAX, SEQUENCE_MAX, 1.5, parts, _wide_rows(DIGEST_ROWS_MAX))

    assert decode_envelope(encode_envelope(envelope)) == envelope


def test_a_frame_beyond_the_bound_is_refused_unread() -> None:
    """Whatever it says."""
    with pytest.raises(WireError) as refusal:
        decode_envelope(bytes(ENVELOPE_BYTES_MAX + 1))

    assert refusal.value.reason == "too_large"


def test_a_version_is_not_read_from_elsewhere_in_the_header() -> None:
    """Writers put it first, so that a frame can be told by its first bytes."""
    frame = msgpack.packb({"worker": "a", "kvrouter": [1, 0]})

    assert not is_envelope(frame)
    assert _outcome(frame) is None


@pytest.mark.parametrize("payload", [b"\x92\x00\x90", b"\x93\xcb" + bytes(8) + b"\x90\x00", b"", b"\x80"])
def test_an_engines_batch_is_not_an_envelope(payload: bytes) -> None:
    """So both may arrive on one topic."""
    assert not is_envelope(payload)


def test_a_header_of_many_fields_is_known_by_its_first_bytes_too() -> None:
    """Sixteen fields and more are counted in two bytes."""
    header = msgpack.unpackb(encode_envelope(_envelope())[: -len(BATCH)])
    frame = msgpack.packb(header | {f"field-{number}": number for number in range(20)}) + BATCH

    assert is_envelope(frame)
    assert decode_envelope(frame).unknown_fields == 20


def test_the_mixing_function_is_splitmix64s() -> None:
    """Other writers need something to compare with: the first numbers of the generator that is seeded with 0."""
    golden = 0x9E3779B97F4A7C15

    numbers = [mix64(golden * n % 2**64) for n in (1, 2, 3)]

    assert numbers == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert mix64(0) == 0


def test_a_snapshot_and_a_digest_are_news_to_a_reader_of_1_0_only() -> None:
    """It counts them as unknown; for us they are not."""
    frame = encode_envelope(_envelope(snapshot=(0, 1), digest=()))

    read = decode_envelope(frame)

    assert (read.snapshot, read.digest, read.unknown_fields) == ((0, 1), (), 0)
    assert decode_envelope(encode_envelope(_envelope())).digest is None
