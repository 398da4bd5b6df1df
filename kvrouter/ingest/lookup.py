"""How much of a prompt each rank can use at once: the index's answer under each rank's own rules.

This is asked for every request, so ranks are grouped by how they hash and what limits them, and
the usual fleet, all ranks alike and without rules, takes one short path. Never changes anything.
"""

from collections.abc import Collection
from dataclasses import dataclass

from kvrouter.blocks import Prompt, chain_hashes, hash_seed, token_bytes
from kvrouter.index import PrefixIndex
from kvrouter.ingest.profile import Shape, WindowRule
from kvrouter.ingest.rank_cache import RankCache

__all__ = ["Lookup", "TierOverlap"]

_GPU = ("gpu",)
_TO_CPU = ("gpu", "cpu")
_TO_DISK = ("gpu", "cpu", "disk")


@dataclass(frozen=True, slots=True, kw_only=True)
class TierOverlap:
    """Leading blocks of a prompt on one rank; each count includes the tiers above it.

    `cpu - gpu` blocks continue the prefix from host memory, `disk - cpu` from disk. Counts are in blocks of
    `block_size` tokens and ignore the last-token rule.
    """

    block_size: int
    gpu: int
    cpu: int
    disk: int


class _Alike:
    """Ranks whose prompts hash alike; those in `ruled` have rules of their own beyond contiguity."""

    __slots__ = ("plain", "ruled")

    def __init__(self) -> None:
        self.plain: set[int] = set()
        self.ruled: dict[int, RankCache] = {}


class Lookup:
    """Finds usable tokens. `place` and `remove` follow the ranks; both are idempotent."""

    def __init__(self, index: PrefixIndex) -> None:
        self.index = index
        self.only_block_size = 0
        """Tokens per block of every rank, while all are plain and alike; else 0."""
        self._match = index.match_depths
        self._alike: dict[Shape, _Alike] = {}
        self._shapes: dict[int, Shape] = {}

    def place(self, cache: RankCache) -> None:
        """Take a rank in, or follow a change of its layout."""
        rank, profile = cache.rank, cache.profile
        self._take_out(rank)
        alike = self._alike.setdefault(profile.shape, _Alike())
        if profile.plain:
            alike.plain.add(rank)
        else:
            alike.ruled[rank] = cache
        self._shapes[rank] = profile.shape
        self._find_short_path()

    def remove(self, rank: int) -> None:
        """Forget a rank."""
        self._take_out(rank)
        self._find_short_path()

    def usable_tokens(self, prompt: Prompt, tiers: Collection[str] = _GPU) -> dict[int, int]:
        """Per dense rank the tokens of `prompt` that it would not compute; ranks without any are absent."""
        size = self.only_block_size
        if size and prompt.exact:
            # A view, so that no integer object is made of any hash.
            hashes = memoryview(prompt.hash_bytes(size)).cast("Q")
            usable = (prompt.tokens - 1) // size
            if usable < len(hashes):
                hashes = hashes[:usable]
            return {rank: blocks * size for rank, blocks in self._match(hashes, tiers).items()}
        if not prompt.exact:
            return self._usable_by_own_blocks(prompt, tiers)
        found: dict[int, int] = {}
        for shape, alike in self._alike.items():
            found.update(self._usable_alike(prompt, shape, alike, tiers))
        return found

    def tier_blocks(self, prompt: Prompt) -> dict[int, TierOverlap]:
        """Per dense rank the leading blocks of `prompt` in each tier; ranks without any are absent."""
        found: dict[int, TierOverlap] = {}
        for shape, alike in self._alike.items():
            keys = _prompt_keys(prompt, shape)[shape.stride - 1 :: shape.stride]
            gpu, cpu, disk = (self._match(keys, tiers) for tiers in (_GPU, _TO_CPU, _TO_DISK))
            for rank in disk.keys() & (alike.plain | alike.ruled.keys()):
                found[rank] = TierOverlap(
                    block_size=shape.unit * shape.stride, gpu=gpu.get(rank, 0), cpu=cpu.get(rank, 0), disk=disk[rank]
                )
        return found

    def _usable_by_own_blocks(self, prompt: Prompt, tiers: Collection[str]) -> dict[int, int]:
        """A prompt known by request bytes: its blocks are its own, whatever the ranks' block sizes."""
        size = prompt.block_size
        if size is None:
            return {}
        hashes = prompt.hash_list(size)[: max(0, prompt.tokens - 1) // size]
        return {rank: blocks * size for rank, blocks in self._match(hashes, tiers).items()}

    def _usable_alike(self, prompt: Prompt, shape: Shape, alike: _Alike, tiers: Collection[str]) -> dict[int, int]:
        keys = _prompt_keys(prompt, shape)
        stride, block_size = shape.stride, shape.unit * shape.stride
        usable = min(shape.usable_blocks(prompt.tokens), len(keys) // stride)
        ends = keys[stride - 1 : usable * stride : stride] if usable * stride < len(keys) or stride > 1 else keys
        depths = self._match(ends, tiers)
        found = {rank: blocks * block_size for rank, blocks in depths.items() if rank in alike.plain}
        for rank, cache in alike.ruled.items():
            depth = depths.get(rank, 0) if cache.profile.has_full else usable
            units = _usable_under_rules(cache, keys, depth * stride)
            if units:
                found[rank] = units * shape.unit
        return found

    def _take_out(self, rank: int) -> None:
        shape = self._shapes.pop(rank, None)
        if shape is None:
            return
        alike = self._alike[shape]
        alike.plain.discard(rank)
        alike.ruled.pop(rank, None)
        if not alike.plain and not alike.ruled:
            del self._alike[shape]

    def _find_short_path(self) -> None:
        self.only_block_size = 0
        if len(self._alike) == 1:
            (shape, alike), *_ = self._alike.items()
            if not alike.ruled and shape == Shape(shape.unit):
                self.only_block_size = shape.unit


def _prompt_keys(prompt: Prompt, shape: Shape) -> list[int]:
    if not shape.lookahead or prompt.block_size is not None:
        return prompt.hash_list(shape.unit)
    seed = hash_seed(prompt.salt, prompt.lora)
    return chain_hashes(None, token_bytes(prompt.token_ids), shape.unit, seed, lookahead=shape.lookahead)


def _usable_under_rules(cache: RankCache, keys: list[int], units: int) -> int:
    """The longest aligned prefix, in units and at most `units`, that every group of the rank allows.

    Each rule only shortens, and a shorter prefix may break another one: repeat until none objects.
    """
    profile = cache.profile
    alignment = profile.alignment
    units -= units % alignment
    for group, stride in profile.other_full:
        held = cache.blocks(group=group)
        for end in range(stride, units + 1, stride):
            if keys[end - 1] not in held:
                units = (end - stride) // alignment * alignment
                break
    before = -1
    while units != before:
        before = units
        for rule in profile.windows:
            units = _usable_in_window(cache.blocks(group=rule.group), rule, keys, units, alignment)
    return units


def _usable_in_window(held: Collection[int], rule: WindowRule, keys: list[int], units: int, alignment: int) -> int:
    """The longest aligned prefix up to `units` whose last `needed` blocks are held, or all of them."""
    stride = rule.stride
    run = end = 0
    for last in range(units, 0, -stride):
        if keys[last - 1] not in held:
            run = 0
        elif run or last % alignment == 0:
            if not run:
                end = last
            run += 1
            if run == rule.needed:
                return end
    return end if run else 0
