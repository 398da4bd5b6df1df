"""What besides tokens makes a block: read from the many ways in which engines say it."""

import pytest

from kvrouter.events import BlockStored, Namespace, block_namespaces, decode_batch, encode_batch, tier_of
from kvrouter.events.model import EventBatch


def _stored(**fields: object) -> BlockStored:
    base: dict[str, object] = {"block_hashes": (1, 2), "token_ids": (1, 2, 3, 4), "block_size": 2}
    return BlockStored(**(base | fields))  # type: ignore[arg-type]


def test_plain_blocks_have_no_namespace() -> None:
    """Neither salt nor adapter, no items."""
    assert block_namespaces(_stored(extra_keys=(None, None))) == (Namespace(), ())


def test_a_bare_string_is_the_adapter_if_the_event_names_it() -> None:
    """The same string means a salt without that name."""
    with_adapter = block_namespaces(_stored(lora_name="a", extra_keys=(("a",), ("a",))))
    with_salt = block_namespaces(_stored(extra_keys=(("a",), None)))

    assert with_adapter.namespace == Namespace(lora="a")
    assert with_salt.namespace == Namespace(salt="a")


def test_a_salt_that_equals_the_adapter_is_still_a_salt() -> None:
    """The adapter is subtracted once."""
    stated = block_namespaces(_stored(lora_name="a", extra_keys=(("a", "a"), ("a",))))

    assert stated.namespace == Namespace(salt="a", lora="a")


def test_a_salt_is_stated_in_the_first_block_of_a_prompt_only() -> None:
    """A string further on is something else and sets the block apart."""
    stated = block_namespaces(_stored(parent_block_hash=9, extra_keys=(("x",), None)))

    assert stated == (Namespace(), (("x",), ()))


def test_multimodal_items_are_told_from_names() -> None:
    """VLLM sends pairs, TensorRT-LLM maps, prompt embeddings a digest."""
    vllm = block_namespaces(_stored(extra_keys=((("img", 3),), (("img", -13), ("other", 5), "salt?"))))
    trtllm = block_namespaces(_stored(mm_keys=(({"type": "mm_key", "hash": "ab", "start_offset": 1},), None)))
    embeds = block_namespaces(_stored(extra_keys=((b"\x01\x02",), None)))

    assert vllm.items == (("img",), ("img", "other", "salt?"))
    assert trtllm.items == (("ab",), ())
    assert embeds.items == (("0102",), ())


def test_later_engines_say_it_outright() -> None:
    """SGLang sends the salt with every event."""
    assert block_namespaces(_stored(cache_salt="t", lora_name="a")).namespace == Namespace(salt="t", lora="a")


def test_the_array_encoding_keeps_the_salt() -> None:
    """It has no field for it, so it travels where engines of that time put it."""
    event = _stored(cache_salt="t", lora_name="a", extra_keys=(("a",), ("a",)))

    (again,) = decode_batch(encode_batch(EventBatch(timestamp=0.0, events=(event,)), encoding="array")).events

    assert isinstance(again, BlockStored)
    assert block_namespaces(again) == block_namespaces(event)


@pytest.mark.parametrize(
    ("medium", "tier"),
    [
        (None, "gpu"),
        ("GPU", "gpu"),
        ("cuda:0", "gpu"),
        ("CPU", "cpu"),
        ("cpu", "cpu"),
        ("cpu:0", "cpu"),
        ("CPU_PINNED", "cpu"),
        ("CPU_TIER1", "cpu"),
        ("CPU_TIER2", "disk"),
        ("DISK", "disk"),
        ("STORAGE", "disk"),
        ("nvme", "disk"),
        ("EXTERNAL", None),
        ("REMOTE", None),
        ("SHARED", None),
        ("moon", None),
    ],
)
def test_media_of_all_engines_are_three_tiers(medium: str | None, tier: str | None) -> None:
    """What is not on the worker, or unknown, has none."""
    assert tier_of(medium) == tier
