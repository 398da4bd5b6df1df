"""Decoding never trusts: one bad event costs itself, a bad envelope costs the batch, nothing else is raised."""

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrouter.errors import WireError
from kvrouter.events import AllBlocksCleared, BlockRemoved, BlockStored, EventBatch, decode, decode_batch

STORED: dict[str, Any] = {
    "type": "BlockStored",
    "block_hashes": [1, 2],
    "parent_block_hash": None,
    "token_ids": [1, 2, 3, 4],
    "block_size": 2,
    "lora_id": None,
    "medium": "GPU",
    "lora_name": None,
}


def _decode(*events: object) -> EventBatch:
    return decode_batch(msgpack.packb([1.5, list(events), 0]))


def _stored(**fields: object) -> BlockStored:
    (event,) = _decode(STORED | fields).events
    assert isinstance(event, BlockStored)
    return event


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not_msgpack"),
        (b"\xc1", "not_msgpack"),
        (msgpack.packb([1.0, []]) + b"\x00", "not_msgpack"),
        (b"\x93\xcb", "not_msgpack"),
        (b"\x91" * 5000, "not_msgpack"),
        (b"\x81\x80\x00", "not_msgpack"),
        (msgpack.packb({"ts": 1.0}), "bad_envelope"),
        (msgpack.packb([1.0]), "bad_envelope"),
        (msgpack.packb([1.0, {"a": 1}]), "bad_envelope"),
        (msgpack.packb(17), "bad_envelope"),
    ],
)
def test_an_unusable_envelope_says_why(payload: bytes, reason: str) -> None:
    """The reason is a short label for a counter."""
    with pytest.raises(WireError) as caught:
        decode_batch(payload)

    assert caught.value.reason == reason


def test_a_payload_beyond_the_bound_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Size is checked before anything is built from the bytes."""
    monkeypatch.setattr(decode, "PAYLOAD_BYTES_MAX", 10)

    with pytest.raises(WireError, match="exceeds") as caught:
        decode_batch(b"\xff" * 11)

    assert caught.value.reason == "too_large"


def test_more_events_than_the_bound_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking only some would lose removals silently."""
    monkeypatch.setattr(decode, "EVENTS_PER_BATCH_MAX", 2)

    with pytest.raises(WireError) as caught:
        _decode(*[["AllBlocksCleared"]] * 3)

    assert caught.value.reason == "too_many_events"


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (17, "not_an_event"),
        ([], "not_an_event"),
        (["BlockMoved", [1]], "unknown_event"),
        ({"type": "BlockMoved"}, "unknown_event"),
        ({"block_hashes": [1]}, "unknown_event"),
        ({"type": ["BlockStored"]}, "unknown_event"),
        ([["BlockStored"], [1]], "unknown_event"),
        (["BlockRemoved"], "bad_hashes"),
        (STORED | {"block_hashes": "12"}, "bad_hashes"),
        (STORED | {"block_hashes": [1, "2"]}, "bad_hashes"),
        (STORED | {"block_hashes": [1, b""]}, "bad_hashes"),
        (STORED | {"block_hashes": [1.0, 2.0]}, "bad_hashes"),
        (STORED | {"parent_block_hash": "x"}, "bad_parent"),
        (STORED | {"token_ids": [1, -2]}, "bad_tokens"),
        (STORED | {"token_ids": [1, 2**32]}, "bad_tokens"),
        (STORED | {"token_ids": [1, "2"]}, "bad_tokens"),
        (STORED | {"token_ids": 5}, "bad_tokens"),
        (STORED | {"token_ids": [[1, 2], [3, 4]]}, "bad_tokens"),
        (STORED | {"token_ids": [[1, 2, 3]]}, "bad_tokens"),
        (STORED | {"token_ids": [[1, 2], 5]}, "bad_tokens"),
        (STORED | {"token_ids": [[1, 2], [2, 3], [3, 4]]}, "bad_tokens"),
        (STORED | {"block_size": -1}, "bad_block_size"),
        (STORED | {"block_size": 2**40}, "bad_block_size"),
        (STORED | {"lora_id": "seven"}, "bad_field"),
        (STORED | {"medium": 1}, "bad_field"),
        (STORED | {"group_idx": []}, "bad_field"),
        (STORED | {"extra_keys": [None]}, "bad_extra_keys"),
        (STORED | {"extra_keys": "salt"}, "bad_extra_keys"),
        (STORED | {"lookahead_token_ids": [[1]]}, "bad_lookahead"),
        (STORED | {"lookahead_token_ids": [1, 2]}, "bad_lookahead"),
    ],
)
def test_a_bad_event_is_skipped_and_counted_and_its_neighbours_stay(event: object, reason: str) -> None:
    """The batch goes on before and after it."""
    batch = _decode(["AllBlocksCleared"], event, ["BlockRemoved", [7], "CPU"])

    assert batch.events == (AllBlocksCleared(), BlockRemoved(block_hashes=(7,), medium="CPU"))
    assert dict(batch.skipped) == {reason: 1}


def test_bounds_hold_per_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event beyond them is skipped like any bad one."""
    monkeypatch.setattr(decode, "HASHES_PER_EVENT_MAX", 1)
    monkeypatch.setattr(decode, "TOKENS_PER_EVENT_MAX", 2)

    batch = _decode(STORED, STORED | {"block_hashes": [1]})

    assert dict(batch.skipped) == {"too_many_hashes": 1, "too_many_tokens": 1}


def test_hashes_of_any_kind_become_64_bits() -> None:
    """Signed numbers wrap; of a digest the last eight bytes count, as in vLLM's own integers."""
    event = _stored(block_hashes=[-1, b"\x01" * 24 + (258).to_bytes(8, "big")], parent_block_hash=b"\x05")

    assert event.block_hashes == (2**64 - 1, 258)
    assert event.parent_block_hash == 5


def test_parent_zero_is_a_parent() -> None:
    """Only None means the root."""
    assert _stored(parent_block_hash=0).parent_block_hash == 0


def test_unknown_fields_are_ignored_and_counted() -> None:
    """Tomorrow's engine sends more than today's."""
    batch = _decode(STORED | {"temperature": 3, "humidity": 4}, ["BlockRemoved", [7], "GPU", 0, "later"])

    assert len(batch.events) == 2
    assert dict(batch.skipped) == {"unknown_field": 3}


def test_a_remark_of_another_type_does_not_cost_the_event() -> None:
    """Session and ownership change nothing here."""
    batch = _decode(STORED | {"session_id": 5, "ownership": ["x"]})

    assert len(batch.events) == 1
    assert dict(batch.skipped) == {"unknown_field": 2}


def test_encodings_may_be_mixed_in_one_batch() -> None:
    """The msgpack type of each event decides."""
    as_array = ["BlockStored", [1, 2], None, [1, 2, 3, 4], 2, None, "GPU"]

    batch = _decode(STORED, as_array)

    assert batch.events[0] == batch.events[1]


@pytest.mark.parametrize(
    ("envelope", "timestamp", "rank"),
    [
        ([1.5, []], 1.5, None),
        ([1.5, [], None], 1.5, None),
        ([1.5, [], 3], 1.5, 3),
        ([1_795_263_819_491, [], 0], 1_795_263_819.491, 0),
        ([17, [], -1], 17.0, None),
        (["now", [], "zero"], 0.0, None),
        ([1.5, [], 0, "more"], 1.5, 0),
    ],
)
def test_the_envelope_of_every_version(envelope: list[object], timestamp: float, rank: int | None) -> None:
    """The rank may be missing, the time may be in milliseconds; neither is worth a batch."""
    batch = decode_batch(msgpack.packb(envelope))

    assert (batch.timestamp, batch.data_parallel_rank) == (timestamp, rank)


def test_token_pairs_become_tokens_and_what_follows_each_block() -> None:
    """Two blocks of two pairs: each hash also covers the first token after its block."""
    event = _stored(token_ids=[[1, 2], [2, 3], [3, 4], [4, 5]])

    assert event.bigram
    assert event.token_ids == (1, 2, 3, 4)
    assert event.lookahead_token_ids == ((3,), (5,))


def test_bytes_that_are_not_utf8_do_not_cost_the_batch() -> None:
    """A broken name is replaced, not fatal."""
    payload = msgpack.packb([1.0, [STORED | {"session_id": "@@@@"}], 0]).replace(b"@@@@", b"\xff\xfe\xff\xfe")

    (event,) = decode_batch(payload).events

    assert isinstance(event, BlockStored)


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_names = st.sampled_from(
    [*STORED, "extra_keys", "group_idx", "lookahead_token_ids", "event_type", "seq_hashes", "mm_keys"]
)
_tags = st.sampled_from(["BlockStored", "BlockRemoved", "AllBlocksCleared", "stored", "removed"])
_events = (
    _values
    | st.builds(lambda fields: STORED | fields, st.dictionaries(_names, _values, max_size=4))
    | st.builds(lambda tag, rest: [tag, *rest], _tags, st.lists(_values, max_size=13))
)


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_wire_error(payload: bytes) -> None:
    """Whatever arrives, either a batch comes out or a WireError."""
    try:
        batch = decode_batch(payload)
    except WireError:
        return
    assert isinstance(batch, EventBatch)


@settings(max_examples=400, deadline=None)
@given(st.lists(_events, max_size=4))
def test_no_event_fails_its_batch(events: list[object]) -> None:
    """Each event is decoded or counted, never both, never neither."""
    batch = _decode(*events)

    skipped = sum(count for reason, count in batch.skipped.items() if reason != "unknown_field")
    assert len(batch.events) + skipped == len(events)
