"""The paged KV cache of one simulated worker: the engine's own block pool under block keys instead of tokens.

`kvrouter.replay.engine.cache` is the same over token ids. Here a trace has said which blocks are equal, and the
keys are sequence hashes already, so that nothing is hashed while the simulation runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvrouter.events import AllBlocksCleared, BlockRemoved, BlockStored, Event
from kvrouter.replay.engine.pool import BlockPool

__all__ = ["WorkerCache"]


class WorkerCache:
    """Gives requests their blocks, tells what is cached, and writes down each change as an event."""

    __slots__ = ("_events", "block_tokens", "evicted_blocks", "pool", "was_full")

    def __init__(self, *, blocks: int, block_tokens: int) -> None:
        self.pool = BlockPool(blocks)
        self.block_tokens = block_tokens
        self.evicted_blocks = 0
        self.was_full = False
        """Whether anything was ever evicted, or had to wait for room: if not, more room would have changed nothing."""
        self._events: list[Event] = []

    def hit(self, keys: Sequence[int], tokens: int) -> list[int]:
        """Return the cached blocks that a prompt of so many tokens could start from; changes nothing.

        One token at least is left to compute: the first output token comes from it.
        """
        return self.pool.find(keys[: (tokens - 1) // self.block_tokens])

    def fits(self, hit: Sequence[int], tokens: int) -> bool:
        """Whether there is room for a request with `hit`, of which the first `tokens` shall be in blocks."""
        missing = self.blocks_for(tokens) - len(hit)
        has_room = missing <= self.pool.free - self.pool.idle(hit)
        self.was_full = self.was_full or not has_room
        return has_room

    def take(self, count: int) -> list[int]:
        """Take free blocks, of which there must be enough; what they held is forgotten."""
        taken, evicted = self.pool.take(count)
        if evicted:
            self.evicted_blocks += len(evicted)
            self.was_full = True
            self._events.append(BlockRemoved(block_hashes=tuple(evicted), medium="GPU"))
        return taken

    def label(self, blocks: Sequence[int], keys: Sequence[int]) -> None:
        """Cache blocks that have become full, in the order of the prompt, and say so in one event."""
        label = self.pool.label
        for block, key in zip(blocks, keys, strict=True):
            label(block, key)
        hashes = tuple(keys)
        self._events.append(
            BlockStored(block_hashes=hashes, block_size=self.block_tokens, medium="GPU", sequence_hashes=hashes)
        )

    def clear(self) -> None:
        """Lose everything, as a restart does: the pool is new, and nothing is said of the old one."""
        self.pool = BlockPool(self.pool.blocks)
        self._events.clear()

    def reset(self) -> None:
        """Forget what is cached, which nobody may be using, and say so."""
        if self.pool.clear():
            self._events.append(AllBlocksCleared())

    def blocks_for(self, tokens: int) -> int:
        """Blocks that so many tokens occupy."""
        return -(-tokens // self.block_tokens)

    def take_events(self) -> list[Event]:
        """Return the events since the last call."""
        events, self._events = self._events, []
        return events
