"""Events to payload bytes, as vLLM writes them; the other direction of `decode`.

`map` is what vLLM has sent since 0.24 and carries every field. `array` is the older
form for consumers that know nothing else; it has no place for the newest fields, so a
`cache_salt` travels as vLLM of that time sent it, in the first block's extra keys.
"""

from typing import Final, Literal

import msgpack

from kvrouter.events.model import AllBlocksCleared, BlockRemoved, BlockStored, Event, EventBatch

__all__ = ["Encoding", "encode_batch"]

Encoding = Literal["map", "array"]

_STORED_OPTIONAL: Final = (
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
    "kv_cache_spec_sliding_window",
    "locality",
    "ownership",
    "session_id",
    "cache_salt",
    "mm_keys",
    "sequence_hashes",
)
_REMOVED_OPTIONAL: Final = ("group_idx", "locality", "ownership")


def encode_batch(batch: EventBatch, *, encoding: Encoding = "map") -> bytes:
    """Encode `batch`; what `decode_batch` returns for it equals it, apart from `skipped` and `pool`."""
    write = _as_map if encoding == "map" else _as_array
    payload = msgpack.packb([batch.timestamp, [write(event) for event in batch.events], batch.data_parallel_rank])
    assert isinstance(payload, bytes)
    return payload


def _as_map(event: Event) -> dict[str, object]:
    if isinstance(event, BlockStored):
        fields: dict[str, object] = {
            "type": "BlockStored",
            "block_hashes": event.block_hashes,
            "parent_block_hash": event.parent_block_hash,
            "token_ids": _wire_tokens(event),
            "block_size": event.block_size,
            "lora_id": event.lora_id,
            "medium": event.medium,
            "lora_name": event.lora_name,
        }
        if event.lookahead_token_ids is not None and not event.bigram:
            fields["lookahead_token_ids"] = event.lookahead_token_ids
        return _with_optional(fields, event, _STORED_OPTIONAL)
    if isinstance(event, BlockRemoved):
        fields = {"type": "BlockRemoved", "block_hashes": event.block_hashes, "medium": event.medium}
        return _with_optional(fields, event, _REMOVED_OPTIONAL)
    assert isinstance(event, AllBlocksCleared)
    return {"type": "AllBlocksCleared"}


def _with_optional(fields: dict[str, object], event: Event, names: tuple[str, ...]) -> dict[str, object]:
    for name in names:
        value = getattr(event, name)
        if value is not None:
            fields[name] = value
    return fields


def _as_array(event: Event) -> list[object]:
    if isinstance(event, BlockStored):
        required: list[object] = [
            "BlockStored",
            event.block_hashes,
            event.parent_block_hash,
            _wire_tokens(event),
            event.block_size,
            event.lora_id,
            event.medium,
            event.lora_name,
        ]
        newer = [
            _array_extra_keys(event),
            event.group_idx,
            event.kv_cache_spec_kind,
            event.kv_cache_spec_sliding_window,
        ]
        return required + _without_trailing_none(newer)
    if isinstance(event, BlockRemoved):
        return ["BlockRemoved", event.block_hashes, event.medium, *_without_trailing_none([event.group_idx])]
    assert isinstance(event, AllBlocksCleared)
    return ["AllBlocksCleared"]


def _without_trailing_none(values: list[object]) -> list[object]:
    while values and values[-1] is None:
        values.pop()
    return values


def _array_extra_keys(event: BlockStored) -> object:
    if event.cache_salt is None or event.parent_block_hash is not None or not event.block_hashes:
        return event.extra_keys
    first, *others = event.extra_keys or (None,) * len(event.block_hashes)
    return ((*(first or ()), event.cache_salt), *others)


def _wire_tokens(event: BlockStored) -> object:
    if not event.bigram or not event.lookahead_token_ids:
        return event.token_ids
    seconds = (*event.token_ids[1:], *event.lookahead_token_ids[-1])
    return tuple(zip(event.token_ids, seconds, strict=True))
