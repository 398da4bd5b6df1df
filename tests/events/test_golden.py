"""Every captured message of every engine version decodes to the events that the engine stated."""

import json
from pathlib import Path
from typing import Any

import pytest

from kvrouter.events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    Event,
    EventBatch,
    ReplayEnd,
    decode_batch,
    encode_batch,
    parse_live,
    parse_replay,
)
from tests.events.frames_on_disk import FILES, GOLDEN, as_tuples, messages, stated_fields

_TYPES = {"BlockStored": BlockStored, "BlockRemoved": BlockRemoved, "AllBlocksCleared": AllBlocksCleared}
_DEFAULTS = {"token_ids": (), "block_size": 0}
_IDS = [f"{path.parent.name}-{path.stem}" for path in FILES]


def _batches(path: Path) -> list[tuple[EventBatch, Any]]:
    return [
        (decode_batch(parse_live(message.frames)[2]), message.decoded) for message in messages(path) if message.live
    ]


def _assert_states(event: Event, raw: Any) -> None:
    fields = stated_fields(raw)
    assert type(event) is _TYPES[fields.pop("type")]
    if isinstance(event, BlockStored) and fields["token_ids"] and isinstance(fields["token_ids"][0], list):
        pairs = fields.pop("token_ids")
        assert event.bigram
        assert event.lookahead_token_ids is not None
        assert [list(pair) for pair in zip(event.token_ids, (*event.token_ids[1:], pairs[-1][1]), strict=True)] == pairs
        assert event.lookahead_token_ids[-1] == (pairs[-1][1],)
    for name, value in fields.items():
        if hasattr(event, name):
            expected = _DEFAULTS.get(name) if value is None else as_tuples(value)
            assert getattr(event, name) == expected, name


@pytest.mark.parametrize("path", FILES, ids=_IDS)
def test_every_live_message_decodes_to_the_stated_events(path: Path) -> None:
    """Nothing is skipped, nothing is added, every stated field arrives."""
    batches = _batches(path)

    assert batches
    for batch, (timestamp, raw_events, *rank) in batches:
        assert batch.timestamp == pytest.approx(timestamp if isinstance(timestamp, float) else timestamp / 1000)
        assert batch.data_parallel_rank == (rank[0] if rank else None)
        assert not batch.skipped
        for event, raw in zip(batch.events, raw_events, strict=True):
            _assert_states(event, raw)


@pytest.mark.parametrize("path", FILES, ids=_IDS)
def test_what_we_encode_decodes_to_the_same_events(path: Path) -> None:
    """The map encoding keeps every field but a pool's own."""
    for batch, _ in _batches(path):
        again = decode_batch(encode_batch(batch, encoding="map"))

        assert again.timestamp == batch.timestamp
        assert again.data_parallel_rank == batch.data_parallel_rank
        if path.parent.name != "mooncake":
            assert again.events == batch.events


@pytest.mark.parametrize("path", FILES, ids=_IDS)
def test_what_old_engines_sent_survives_the_array_encoding(path: Path) -> None:
    """An old consumer finds the same values at the same places."""
    for batch, (_, raw_events, *_) in _batches(path):
        if not raw_events or isinstance(raw_events[0], dict):
            continue
        again = decode_batch(encode_batch(batch, encoding="array"))

        assert again.events == batch.events


@pytest.mark.parametrize("path", FILES, ids=_IDS)
def test_replayed_messages_carry_the_live_batches_and_end(path: Path) -> None:
    """Three and four frames read the same, and the last reply is the end."""
    live = {parse_live(message.frames)[1:] for message in messages(path) if message.live}
    replies = [parse_replay(message.frames) for message in messages(path) if not message.live]

    if replies:
        *data, end = replies
        assert isinstance(end, ReplayEnd)
        assert {tuple(reply) for reply in data} <= live


def test_lmcache_batches_read_as_host_blocks() -> None:
    """LMCache inside vLLM speaks vLLM's words, in lower case and without groups."""
    golden = json.loads((GOLDEN / "lmcache" / "lmcache-0.5.6.json").read_text())["v1_connector_batch"]

    batch = decode_batch(bytes.fromhex(golden["msgpack"]))

    assert [event.medium for event in batch.events if isinstance(event, BlockStored)] == ["cpu", "cpu"]
    for event, raw in zip(batch.events, golden["decoded"][1], strict=True):
        _assert_states(event, raw)
