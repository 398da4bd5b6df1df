"""How one rank divides its cache, learnt from its events: block sizes, groups of layers, token pairs.

A hybrid model keeps one group of blocks per kind of attention. What a prompt can use there must be
in every group, under rules that depend on the kind; `lookup` applies them. Nothing here holds blocks.
"""

from collections.abc import Iterable
from math import gcd, lcm
from typing import Final, Literal, NamedTuple

from kvrouter.events import BlockStored

__all__ = ["Group", "Profile", "Shape", "WindowRule"]

_Role = Literal["full", "window", "ignored"]

# vLLM's kinds of attention. Chunked local attention is held to the stricter rule: events do not tell the chunk.
_ROLE_BY_KIND: Final[dict[str, _Role]] = {
    "full_attention": "full",
    "mla_attention": "full",
    "sink_full_attention": "full",
    "chunked_local_attention": "full",
    "sliding_window": "window",
    "sliding_window_mla": "window",
    "mamba": "window",
    "encoder_only_attention": "ignored",
    "cross_attention": "ignored",
}


class Shape(NamedTuple):
    """How a prompt is hashed to look it up on a rank, and how much of a match counts.

    Keys are sequence hashes of `unit` tokens; a block of the main group spans `stride` of them. Each hash
    also covers `lookahead` tokens after its block. With `bigram`, keys are token pairs: one token less.
    """

    unit: int
    stride: int = 1
    lookahead: int = 0
    bigram: bool = False

    def usable_blocks(self, tokens: int) -> int:
        """How many blocks a prompt of `tokens` may use: the last token is always computed anew."""
        return max(0, tokens - 1 - self.bigram) // (self.unit * self.stride)


class Group(NamedTuple):
    """One group of layers: its rule, its block size, and for windows how many tokens back it looks."""

    role: _Role
    kind: str | None
    block_size: int
    window: int | None


class WindowRule(NamedTuple):
    """A hit of L tokens needs the last `needed` blocks before L in `group`, or all of them from the start."""

    group: int
    stride: int
    needed: int


class Profile:
    """What is known of one rank's cache layout; `observe` says whether it changed."""

    __slots__ = ("alignment", "groups", "main", "other_full", "shape", "windows")

    def __init__(self, block_size: int) -> None:
        self.groups: dict[int, Group] = {}
        self.main = 0
        self.shape = Shape(block_size)
        self.alignment = 1  # A hit is a multiple of this many units.
        self.windows: tuple[WindowRule, ...] = ()
        self.other_full: tuple[tuple[int, int], ...] = ()  # (group, stride) of full groups beside the main one

    @property
    def plain(self) -> bool:
        """Whether the main group alone decides, with no rule beyond contiguity."""
        return not self.windows and not self.other_full and self.alignment == self.shape.stride

    @property
    def has_full(self) -> bool:
        """Whether any group remembers whole prefixes, so that the index bounds the hit."""
        group = self.groups.get(self.main)
        return group is None or group.role == "full"

    def observe(self, event: BlockStored) -> bool:
        """Learn from a store on the GPU; returns whether the layout is not what it was."""
        if not self.is_new(event):
            return False
        index, shape = event.group_idx or 0, self.shape
        self.groups[index] = _group_of(event, self.groups.get(index))
        self._derive(max(_lookahead(event), shape.lookahead), bigram=shape.bigram or event.bigram)
        return True

    def is_new(self, event: BlockStored) -> bool:
        """Whether a store on the GPU says something about the layout that is not known."""
        known, shape = self.groups.get(event.group_idx or 0), self.shape
        new_pairs = _lookahead(event) > shape.lookahead or (event.bigram and not shape.bigram)
        return known is None or new_pairs or not self._says_nothing_new(known, event)

    def _says_nothing_new(self, known: Group, event: BlockStored) -> bool:
        if known.kind is None and event.kv_cache_spec_kind is not None:
            return False
        # Partial blocks (Mamba) announce a smaller size than their group's; a group never changes size otherwise.
        return known.kind != "mamba" or event.block_size <= known.block_size

    def _derive(self, lookahead: int, *, bigram: bool) -> None:
        counted = {index: group for index, group in sorted(self.groups.items()) if group.role != "ignored"}
        full = [index for index, group in counted.items() if group.role == "full"]
        self.main = next(iter(full or counted or self.groups))
        unit = _unit(counted.values()) or self.groups[self.main].block_size
        stride = max(1, self.groups[self.main].block_size // unit)
        self.shape = Shape(unit, stride, lookahead if lookahead <= unit else 0, bigram)
        strides = {index: max(1, group.block_size // unit) for index, group in counted.items()}
        self.alignment = lcm(stride, *strides.values())
        self.other_full = tuple((index, strides[index]) for index in full if index != self.main)
        rules = (_window_rule(index, counted[index], strides[index]) for index in counted if index not in full)
        self.windows = tuple(rule for rule in rules if rule.needed > 0)


def _lookahead(event: BlockStored) -> int:
    return len(event.lookahead_token_ids[-1]) if event.lookahead_token_ids else 0


def _group_of(event: BlockStored, known: Group | None) -> Group:
    kind = event.kv_cache_spec_kind or (known.kind if known else None)
    window = event.kv_cache_spec_sliding_window
    if kind is None:
        # Older engines name no kinds: group 0 is the one that remembers whole prefixes, others cannot be judged.
        role: _Role = "full" if not event.group_idx else "ignored"
    else:
        role = _ROLE_BY_KIND.get(kind, "window" if window else "ignored")
    size = max(event.block_size, known.block_size) if known else event.block_size
    return Group(role, kind, size, window)


def _unit(groups: Iterable[Group]) -> int:
    """The largest step that all groups' blocks are multiples of; Mamba's last, partial blocks do not count."""
    groups = list(groups)
    sizes = [group.block_size for group in groups if group.kind != "mamba"]
    return gcd(*(sizes or [group.block_size for group in groups]))


def _window_rule(index: int, group: Group, stride: int) -> WindowRule:
    if group.kind == "mamba" or group.window is None:
        return WindowRule(index, stride, 1)  # A state: the block that ends exactly there.
    return WindowRule(index, stride, -(-(group.window - 1) // group.block_size))
