"""A small engine's cache that does what a seed says, and tells it in events; what it holds is the truth of a schedule.

A block is (chain, depth): its tokens follow from both, its engine hash from the life as well, so that what is claimed
of a life that is over can never be taken for the present one's.
"""

import random
from collections.abc import Iterable
from typing import Final

from kvrouter.events import AllBlocksCleared, BlockRemoved, BlockStored, Event
from kvrouter.events.tiers import TIERS, tier_of

__all__ = ["CHAINS", "DEPTH", "SIZE", "Copies", "ScriptedCache", "block_of", "chain_tokens", "follow"]

SIZE: Final = 4
CHAINS: Final = 5
DEPTH: Final = 6
_MEDIA: Final = {"gpu": "GPU", "cpu": "CPU", "disk": "DISK"}

Copies = dict[tuple[str, int], int]
"""How many copies of an engine hash are in a tier; never zero."""


def chain_tokens(chain: int) -> list[int]:
    """The tokens of a chain, from its first block to its last."""
    return list(range(1000 * chain + 4, 1000 * chain + 4 + DEPTH * SIZE))


def block_of(engine_hash: int) -> tuple[int, int]:
    """The chain and depth of a block, whichever life gave it its hash."""
    return divmod(engine_hash % 1000, 100)


def follow(copies: Copies, events: Iterable[Event]) -> None:
    """Change what is held as events say. A reset empties the GPU and nothing else, as vLLM's does."""
    for event in events:
        if isinstance(event, AllBlocksCleared):
            for place in [place for place in copies if place[0] == "gpu"]:
                del copies[place]
            continue
        tier = tier_of(event.medium)
        assert tier is not None
        for engine_hash in event.block_hashes:
            left = copies.pop((tier, engine_hash), 0) + (1 if isinstance(event, BlockStored) else -1)
            if left > 0:
                copies[tier, engine_hash] = left


class ScriptedCache:
    """Prompts are computed, second copies made, blocks offloaded and evicted anywhere, at times the GPU is cleared."""

    def __init__(self, seed: int, life: int) -> None:
        self._random = random.Random(seed)
        self._life = life
        self.copies: Copies = {}

    def step(self) -> list[Event]:
        """Let one step of the engine happen, and return its events."""
        events = []
        for _ in range(self._random.randint(1, 3)):
            event = self._change()
            follow(self.copies, [event])
            events.append(event)
        return events

    def _change(self) -> Event:
        choice = self._random.random()
        if not self.copies or choice < 0.45:
            return self._compute()
        if choice < 0.55:
            return self._offload()
        if choice < 0.995:
            tier, engine_hash = self._random.choice(list(self.copies))
            return BlockRemoved(block_hashes=(engine_hash,), medium=_MEDIA[tier])
        return AllBlocksCleared()

    def _compute(self) -> BlockStored:
        """Store what a prompt needs beyond the blocks that are there, or a second copy of some of them."""
        chain, end = self._random.randrange(CHAINS), self._random.randint(1, DEPTH)
        held = [("gpu", self._hash(chain, depth)) in self.copies for depth in range(end)]
        start = held.index(False) if False in held else self._random.randrange(end)
        return self._store(chain, start, end, "gpu")

    def _offload(self) -> BlockStored:
        """Copy a block that is held to a lower tier."""
        tier, engine_hash = self._random.choice(list(self.copies))
        chain, depth = block_of(engine_hash)
        return self._store(chain, depth, depth + 1, TIERS[min(TIERS.index(tier) + 1, 2)])

    def _store(self, chain: int, start: int, end: int, tier: str) -> BlockStored:
        return BlockStored(
            block_hashes=tuple(self._hash(chain, depth) for depth in range(start, end)),
            parent_block_hash=self._hash(chain, start - 1) if start else None,
            token_ids=tuple(chain_tokens(chain)[start * SIZE : end * SIZE]),
            block_size=SIZE,
            medium=_MEDIA[tier],
        )

    def _hash(self, chain: int, depth: int) -> int:
        return 1000 * (self._life + 1) + 100 * chain + depth
