"""What an engine says about its KV cache, as values; not how it is written on a wire.

The names are vLLM's. A field that an engine or an engine version does not send
is None. Engine hashes are opaque 64-bit numbers here, whatever the wire said:
signed numbers are taken modulo 2^64 and byte strings by their last eight bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = [
    "AllBlocksCleared",
    "BlockRemoved",
    "BlockStored",
    "Event",
    "EventBatch",
    "ExtraKey",
    "PoolObject",
    "Source",
]

# One block's extra hash inputs as the engine published them: LoRA name, multimodal items, salt.
ExtraKey = tuple[object, ...] | None


class Source(NamedTuple):
    """One publisher of events: one data-parallel `rank` of one worker."""

    worker_id: str
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolObject:
    """What a shared store (Mooncake's master) adds to an event: whose object it is, and its own keys."""

    event_id: int | None = None
    model_name: str | None = None
    tenant_id: str | None = None
    backend_id: str | None = None
    group_id: str | None = None
    object_key: str | None = None
    base_block_idx: int | None = None
    dp_rank: int | None = None
    seq_hashes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockStored:
    """Blocks became cached.

    `token_ids` are the tokens of the blocks, in order, continuing after the block
    `parent_block_hash` (None: from the start of the prompt). Two irregular forms
    exist and both are kept as sent: with `block_size` 0 and no tokens only hashes
    are known, and with more than `block_size` tokens per hash some blocks of the
    range are not stored (a masked store).

    `lookahead_token_ids` has one entry per hash: tokens after the block that its
    hash covers as well. With `bigram` they came as overlapping token pairs.

    `sequence_hashes`, which no engine sends, has one entry per hash as well: our own
    sequence hash of the block, so that no tokens are needed (None: not known). See
    `kvrouter.ingest.hash_only`.
    """

    block_hashes: tuple[int, ...]
    parent_block_hash: int | None = None
    token_ids: tuple[int, ...] = ()
    block_size: int = 0
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: tuple[ExtraKey, ...] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None
    ownership: str | None = None
    session_id: str | None = None
    cache_salt: str | None = None
    lookahead_token_ids: tuple[tuple[int, ...], ...] | None = None
    mm_keys: tuple[ExtraKey, ...] | None = None
    bigram: bool = False
    sequence_hashes: tuple[int | None, ...] | None = None
    pool: PoolObject | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRemoved:
    """One physical copy of each block left the cache; other copies may remain."""

    block_hashes: tuple[int, ...]
    medium: str | None = None
    group_idx: int | None = None
    locality: str | None = None
    ownership: str | None = None
    pool: PoolObject | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AllBlocksCleared:
    """The whole cache of the rank was reset."""


Event = BlockStored | BlockRemoved | AllBlocksCleared


@dataclass(frozen=True, slots=True, kw_only=True)
class EventBatch:
    """Events published together.

    `timestamp` is in seconds since the epoch (0.0 if the wire had none);
    `skipped` counts, by reason, events or parts of events that were left out.
    """

    timestamp: float
    events: tuple[Event, ...]
    data_parallel_rank: int | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)
