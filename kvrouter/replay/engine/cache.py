"""The prefix cache of one rank: token sequences over the block pool, and the events that tell of it.

The keys are this engine's own, seeded at random in each process as vLLM's are, and on purpose not kvrouter's
hashes: whoever wants to know what is cached here has to listen to the events. Only full blocks are shared.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

from kvrouter.events import AllBlocksCleared, BlockRemoved, BlockStored, Event
from kvrouter.replay.engine.pool import BlockPool

__all__ = ["CachedSequence", "Namespace", "PrefixCache"]

_KEY_BYTES = 8


class Namespace:
    """What keeps equal tokens apart: a LoRA adapter in every block, a cache salt from the first block on."""

    __slots__ = ("lora_id", "lora_name", "salt")

    def __init__(self, *, lora_id: int | None = None, lora_name: str | None = None, salt: str | None = None) -> None:
        self.lora_id, self.lora_name, self.salt = lora_id, lora_name, salt

    def tag(self, block: int) -> bytes:
        """Return what the key of block number `block` covers besides tokens; it tells an adapter from a salt."""
        salt = self.salt if block == 0 else None
        return repr((self.lora_name, salt)).encode() if self.lora_name or salt else b""

    def extra_keys(self, block: int) -> tuple[str, ...] | None:
        """Return the extra keys of block number `block` of a sequence, as vLLM publishes them."""
        names = (self.lora_name, self.salt if block == 0 else None)
        return tuple(name for name in names if name) or None


class CachedSequence:
    """One request's tokens and the blocks that it uses."""

    __slots__ = ("blocks", "computed", "keys", "labelled", "namespace", "tokens")

    def __init__(self, tokens: array[int], namespace: Namespace) -> None:
        self.tokens, self.namespace = tokens, namespace
        self.keys: list[int] = []
        self.blocks: list[int] = []
        self.computed = 0
        """Leading tokens whose keys and values are in `blocks`."""
        self.labelled = 0
        """Leading blocks that are cached, so that others may share them."""


class PrefixCache:
    """Gives sequences their blocks, finds what is cached, and writes down each change as an event."""

    def __init__(self, *, blocks: int, block_size: int, seed: bytes) -> None:
        self.pool = BlockPool(blocks)
        self.block_size = block_size
        self._seed = seed
        self._events: list[Event] = []

    def hit(self, sequence: CachedSequence) -> list[int]:
        """Return the cached blocks that `sequence` could start from; changes nothing.

        At least one token is left to compute, because the first output token comes from computing the last
        prompt token: a prompt that is cached to its end is computed again from its last block on.
        """
        self._extend_keys(sequence)
        usable = (len(sequence.tokens) - 1) // self.block_size
        return self.pool.find(sequence.keys[:usable])

    def admit(self, sequence: CachedSequence, hit: Sequence[int], tokens: int) -> bool:
        """Start `sequence` from the blocks `hit` and compute `tokens` more; False, and no change, without room."""
        assert not sequence.blocks, "the sequence has blocks already"
        missing = self._blocks_for(len(hit) * self.block_size + tokens) - len(hit)
        if missing > self.pool.free - self.pool.idle(hit):
            return False
        self.pool.share(hit)
        sequence.blocks = list(hit)
        sequence.labelled = len(hit)
        sequence.computed = len(hit) * self.block_size
        return self.advance(sequence, tokens)

    def advance(self, sequence: CachedSequence, tokens: int) -> bool:
        """Compute the next `tokens` of `sequence`; False, and no change, if there is no room for them."""
        missing = self._blocks_for(sequence.computed + tokens) - len(sequence.blocks)
        if missing > self.pool.free:
            return False
        taken, evicted = self.pool.take(max(0, missing))
        self._events += [BlockRemoved(block_hashes=(key,), medium="GPU", group_idx=0) for key in evicted]
        sequence.blocks += taken
        sequence.computed += tokens
        self._label(sequence)
        return True

    def release(self, sequence: CachedSequence) -> None:
        """Take the blocks from `sequence`; what is cached stays until its room is needed."""
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence.labelled = 0

    def clear(self) -> bool:
        """Forget everything, if no sequence holds a block."""
        cleared = self.pool.clear()
        if cleared:
            self._events.append(AllBlocksCleared())
        return cleared

    def take_events(self) -> list[Event]:
        """Return the events since the last call."""
        events, self._events = self._events, []
        return events

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def _extend_keys(self, sequence: CachedSequence) -> None:
        """Chain the keys of full blocks that have none yet."""
        size, keys, namespace = self.block_size, sequence.keys, sequence.namespace
        for block in range(len(keys), len(sequence.tokens) // size):
            digest = blake2b(key=self._seed, digest_size=_KEY_BYTES)
            if block:
                digest.update(keys[-1].to_bytes(_KEY_BYTES, "big"))
            digest.update(sequence.tokens[block * size : (block + 1) * size].tobytes())
            digest.update(namespace.tag(block))
            keys.append(int.from_bytes(digest.digest(), "big"))

    def _label(self, sequence: CachedSequence) -> None:
        """Cache the blocks that have become full, and say so in one event."""
        size, first, full = self.block_size, sequence.labelled, sequence.computed // self.block_size
        if full == first:
            return
        self._extend_keys(sequence)
        for block in range(first, full):
            self.pool.label(sequence.blocks[block], sequence.keys[block])
        sequence.labelled = full
        namespace = sequence.namespace
        self._events.append(
            BlockStored(
                block_hashes=tuple(sequence.keys[first:full]),
                parent_block_hash=sequence.keys[first - 1] if first else None,
                token_ids=tuple(sequence.tokens[first * size : full * size]),
                block_size=size,
                lora_id=namespace.lora_id,
                medium="GPU",
                lora_name=namespace.lora_name,
                extra_keys=tuple(namespace.extra_keys(block) for block in range(first, full)),
                group_idx=0,
                kv_cache_spec_kind="full_attention",
            )
        )
