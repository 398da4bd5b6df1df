"""TensorRT-LLM's JSON events become ours: whole blocks only, tiers followed, gaps never over-claim."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter.blocks import Prompt
from kvrouter.errors import WireError
from kvrouter.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, EventBatch, Source, encode_batch
from kvrouter.events.trtllm import TrtllmEvents
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest

GOLDEN = Path(__file__).parents[1] / "golden" / "trtllm"
FIRST, SECOND, PARTIAL, THIRD = 17748172323322446497, 4422356112233445566, 998877665544332211, 1122334455667788990


def translate(name: str) -> dict[int, tuple[Event, ...]]:
    """The events of a recorded answer."""
    return TrtllmEvents().decode((GOLDEN / f"json-{name}.json").read_bytes())


def document(*events: dict[str, Any]) -> bytes:
    """An answer with numbered events."""
    return json.dumps([{"event_id": number, **event} for number, event in enumerate(events)]).encode()


def stored(*hashes: int, parent: int | None = None, size: int = 4, **block: Any) -> dict[str, Any]:
    """A chain of whole blocks."""
    tokens = [{"type": "unique_token", "token_id": each, "token_extra_id": 0} for each in range(size)]
    blocks = [{"block_hash": each, "tokens": tokens, "cache_level": 0, **block} for each in hashes]
    return {"data": {"type": "stored", "parent_hash": parent, "blocks": blocks}}


@pytest.mark.parametrize("version", ["0.20", "1.0", "1.2-attention-dp", "1.2-vswa-two-windows"])
def test_recorded_answers_of_every_version_say_the_same(version: str) -> None:
    """Whole blocks are stated, the partial one and its removal are not, a move is a store and a removal."""
    (events,) = translate(version).values()

    assert events == (
        BlockStored(block_hashes=(FIRST, SECOND), token_ids=(1, 2, 3, 4, 5, 6, 7, 8), block_size=4, medium="GPU"),
        BlockStored(
            block_hashes=(THIRD,), parent_block_hash=SECOND, token_ids=(9, 10, 11, 12), block_size=4, medium="GPU"
        ),
        BlockStored(block_hashes=(THIRD,), medium="CPU"),
        BlockRemoved(block_hashes=(THIRD,), medium="GPU"),
        BlockRemoved(block_hashes=(THIRD,), medium="CPU"),
    )


def test_each_rank_has_its_own_numbers() -> None:
    """One buffer carries all attention-data-parallel ranks."""
    events = json.loads((GOLDEN / "json-1.2-attention-dp.json").read_bytes())
    others = [{**event, "attention_dp_rank": 0} for event in events]
    both = [event for pair in zip(events, others, strict=True) for event in pair]
    translator = TrtllmEvents()

    found = translator.decode(json.dumps(both).encode())

    assert found.keys() == {0, 1}
    assert found[0] == found[1]
    assert translator.gaps == 0


def test_after_a_jump_nothing_is_believed() -> None:
    """Nothing repeats what overflowed, and a removal may have been in it."""
    translator = TrtllmEvents()

    (events,) = translator.decode((GOLDEN / "json-gap.json").read_bytes()).values()

    assert translator.gaps == 2
    assert [type(event) for event in events] == [BlockStored, AllBlocksCleared, AllBlocksCleared]


def test_salt_and_items_come_along() -> None:
    """They are part of what a block is."""
    translator = TrtllmEvents(block_size=4)

    ((event,),) = translator.decode((GOLDEN / "json-1.3-mm-salt.json").read_bytes()).values()

    assert isinstance(event, BlockStored)
    assert event.cache_salt == "tenant-a"
    assert event.mm_keys is not None
    assert event.mm_keys[0] is not None
    assert event.mm_keys[0][0]["hash"].startswith("0102030405060708")  # type: ignore[index]


def test_what_comes_before_the_block_size_is_known_waits_for_it() -> None:
    """A single block may be a partial one; only one that another follows is whole for certain."""
    translator = TrtllmEvents()
    alone = translator.decode(document(stored(1, size=4)))

    (events,) = translator.decode(json.dumps([{"event_id": 1, **stored(2, 3, parent=1, size=4)}]).encode()).values()

    assert alone == {}
    assert [event.block_hashes for event in events if isinstance(event, BlockStored)] == [(1,), (2, 3)]


def test_a_malformed_store_that_waited_does_not_hold_up_what_follows() -> None:
    """It is counted when its turn comes, once."""
    broken = stored(1)
    broken["data"]["blocks"][0]["tokens"][0]["token_id"] = -1
    translator = TrtllmEvents()

    first = translator.decode(document(broken, stored(2), stored(3, 4)))
    second = translator.decode(document(*[{}] * 3, stored(5)))

    assert [event.block_hashes for event in first[0] if isinstance(event, BlockStored)] == [(2,), (3, 4)]
    assert [event.block_hashes for event in second[0] if isinstance(event, BlockStored)] == [(5,)]
    assert translator.skipped == {"malformed": 4}


def test_a_removal_that_nobody_understands_costs_the_rank() -> None:
    """Going on would claim blocks that may be gone."""
    translator = TrtllmEvents(block_size=4)

    (events,) = translator.decode(document(stored(1, 2), {"data": {"type": "removed"}}, stored(3))).values()

    assert [type(event) for event in events] == [BlockStored, AllBlocksCleared, BlockStored]
    assert translator.skipped == {"malformed": 1}


def test_blocks_below_the_gpu_are_given_up_as_well() -> None:
    """`AllBlocksCleared` alone speaks of the GPU."""
    translator = TrtllmEvents(block_size=4)
    translator.decode(document(stored(1, 2, cache_level=1)))

    (events,) = translator.decode(json.dumps([{"event_id": 7, "data": {"type": "created"}}]).encode()).values()

    assert events == (BlockRemoved(block_hashes=(1, 2), medium="CPU"), AllBlocksCleared())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(b"", "not_json"), (b"[" * 100_000, "not_json"), (b"{}", "not_an_array"), (b"\xff", "not_json")],
)
def test_an_answer_that_is_no_array_of_events_is_refused_whole(answer: bytes, reason: str) -> None:
    """The caller counts it; nothing of it was taken."""
    with pytest.raises(WireError) as refused:
        TrtllmEvents().decode(answer)

    assert refused.value.reason == reason


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 70) | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["event_id", "data", "type", "blocks", "block_hash", "tokens", "token_id", "cache_level"]),
            inner | st.sampled_from(["stored", "removed", "updated", "created"]),
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(st.lists(JUNK, max_size=8))
def test_no_event_ends_the_translation(events: list[Any]) -> None:
    """Whatever an engine says is translated or counted."""
    translator = TrtllmEvents(block_size=4)

    found = translator.decode(json.dumps(events).encode())

    assert all(found.values())


def test_a_translated_cache_is_found_by_prompts() -> None:
    """From the engine's JSON to what the router can use: the blocks left after the recorded life."""
    ingest, source = Ingest(PrefixIndex()), Source("trt", 0)
    ingest.open(source, 0, now=0.0)
    batch = EventBatch(timestamp=1.0, events=translate("1.0")[0])

    ingest.receive(source, 0, encode_batch(batch), now=0.0)

    assert ingest.usable_tokens(Prompt(list(range(1, 14)))) == {0: 8}
