"""Hybrid models: a small engine with full and sliding-window groups, asked by brute force what it could reuse.

The engine follows vLLM: a hash names a prefix whatever the group's block size, window groups store only some
blocks of a range, and a usable prefix must satisfy every group at once.
"""

from collections import Counter
from math import lcm
from random import Random
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrouter.blocks import Prompt
from kvrouter.events import BlockRemoved, BlockStored, Event
from tests.ingest.engines import RANK, Rank, removed, stored, tokens


class Layout(NamedTuple):
    """Block sizes in tokens; `window_first` gives the window group the lower number."""

    full: int
    window: int
    span: int
    window_first: bool = False

    @property
    def step(self) -> int:
        """A usable prefix is a multiple of this many tokens."""
        return lcm(self.full, self.window)

    @property
    def needed(self) -> int:
        """Window blocks that must lie before the end of a usable prefix."""
        return -(-(self.span - 1) // self.window)


LAYOUTS = [
    Layout(2, 2, 5),
    Layout(2, 2, 9, window_first=True),
    Layout(4, 2, 6),
    Layout(4, 2, 9, window_first=True),
    Layout(2, 4, 7),
    Layout(8, 2, 5),
]


class HybridEngine:
    """Two groups of layers; blocks are named by the tokens of their whole prefix."""

    def __init__(self, layout: Layout, random: Random) -> None:
        self.layout, self.random = layout, random
        self.full: Counter[tuple[int, ...]] = Counter()
        self.window: Counter[tuple[int, ...]] = Counter()

    def usable(self, prompt: tuple[int, ...]) -> int:
        """Brute force over every aligned length."""
        layout = self.layout
        for length in range((len(prompt) - 1) // layout.step * layout.step, 0, -layout.step):
            full_ends = range(layout.full, length + 1, layout.full)
            window_ends = list(range(layout.window, length + 1, layout.window))[-layout.needed :]
            if all(self.full[prompt[:end]] for end in full_ends) and all(
                self.window[prompt[:end]] for end in window_ends
            ):
                return length
        return 0

    def compute(self, prompt: tuple[int, ...], start: int, end: int) -> list[Event]:
        """Cache the range: every full block, and of the window group the last blocks before a random step."""
        layout = self.layout
        kept_until = self.random.randrange(start, end + 1, layout.step)
        window_ends = [
            position
            for position in range(start + layout.window, end + 1, layout.window)
            if kept_until - layout.needed * layout.window < position <= kept_until
        ]
        full_ends = list(range(start + layout.full, end + 1, layout.full))
        self.full.update(prompt[:position] for position in full_ends)
        self.window.update(prompt[:position] for position in window_ends)
        events: list[Event] = [
            self._stored(prompt, start, end, full_ends, window=False),
            self._stored(prompt, start, end, window_ends, window=True),
        ]
        return events[::-1] if layout.window_first else events

    def evict(self) -> list[Event]:
        """Drop a random copy in a random group."""
        in_window = self.random.random() < 0.5
        copies = self.window if in_window else self.full
        held = sorted(+copies)
        if not held:
            return []
        prefix = self.random.choice(held)
        copies[prefix] -= 1
        return [BlockRemoved(block_hashes=(_name(prefix),), group_idx=self._group(window=in_window))]

    def _stored(self, prompt: tuple[int, ...], start: int, end: int, ends: list[int], *, window: bool) -> BlockStored:
        layout = self.layout
        return stored(
            [_name(prompt[:position]) for position in ends],
            prompt[start:end],
            parent=_name(prompt[:start]) if start else None,
            size=layout.window if window else layout.full,
            group_idx=self._group(window=window),
            kv_cache_spec_kind="sliding_window" if window else "full_attention",
            kv_cache_spec_sliding_window=layout.span if window else None,
        )

    def _group(self, *, window: bool) -> int:
        return int(window != self.layout.window_first)


def _name(prefix: tuple[int, ...]) -> int:
    return hash(prefix) % 2**64


def _prompt(random: Random, step: int) -> tuple[int, ...]:
    """A prompt of few distinct tokens per step, so that prompts share beginnings."""
    steps = random.randint(1, 5)
    return tuple(token for _ in range(steps) for token in [random.randint(0, 1)] * step)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@settings(max_examples=25, deadline=None)
@given(random=st.randoms(use_true_random=False))
def test_every_group_must_agree(layout: Layout, random: Random) -> None:
    """After every batch the prediction equals what the engine would find."""
    engine, rank = HybridEngine(layout, random), Rank(block_size=None)
    for _ in range(12):
        prompt = _prompt(random, layout.step)
        hit = engine.usable((*prompt, 9))
        if hit < len(prompt):
            middle = random.randrange(hit, len(prompt) + 1, layout.step)
            for start, end in ((hit, middle), (middle, len(prompt))):
                if start < end:
                    rank.send(*engine.compute(prompt, start, end))
        rank.send(*engine.evict())

        for _ in range(4):
            asked = (*_prompt(random, layout.step), 9)
            predicted = rank.ingest.usable_tokens(Prompt(asked)).get(RANK, 0)
            assert predicted == engine.usable(asked)


def test_a_window_group_alone_bounds_by_its_window() -> None:
    """A model without full attention: the last blocks are enough."""
    swa: dict[str, Any] = {"kv_cache_spec_kind": "sliding_window", "kv_cache_spec_sliding_window": 5, "group_idx": 0}
    rank = Rank(block_size=None)
    rank.send(stored([11, 12, 13], tokens(3), **swa))

    rank.send(removed(11, group_idx=0))
    without_first = rank.usable(tokens(3))
    rank.send(removed(13, group_idx=0))

    assert (without_first, rank.usable(tokens(3))) == (12, 8)


def test_a_state_group_needs_the_block_at_the_very_end() -> None:
    """Mamba keeps states at some positions only; partial blocks at the end of a prompt do not count."""
    full: dict[str, Any] = {"kv_cache_spec_kind": "full_attention", "group_idx": 0}
    mamba: dict[str, Any] = {"kv_cache_spec_kind": "mamba", "group_idx": 1}
    rank = Rank(block_size=None)

    rank.send(stored([11, 12, 13], tokens(3), **full), stored([12], tokens(3), **mamba))
    rank.send(stored([99], (1, 2), parent=13, size=2, **mamba))

    assert rank.usable(tokens(3)) == 8
    assert rank.ingest.block_size(RANK) == 4


def test_groups_of_unknown_kind_do_not_count() -> None:
    """VLLM 0.20 numbers its groups and does not say what they are: group 0 decides."""
    rank = Rank(block_size=None)

    rank.send(stored([11, 12], tokens(2), group_idx=0), stored([12], tokens(2), group_idx=1))

    assert rank.usable(tokens(2)) == 8


def test_cross_attention_is_no_prefix_cache() -> None:
    """Groups of encoders never limit a hit."""
    rank = Rank(block_size=None)

    rank.send(
        stored([11], tokens(1), group_idx=0, kv_cache_spec_kind="full_attention"),
        stored([50], tokens(1), group_idx=1, kv_cache_spec_kind="cross_attention"),
    )

    assert rank.usable(tokens(1)) == 4


def test_two_full_groups_must_both_hold_the_prefix() -> None:
    """The index follows one of them, the other is asked as well."""
    full: dict[str, Any] = {"kv_cache_spec_kind": "full_attention"}
    rank = Rank(block_size=None)
    rank.send(stored([11, 12], tokens(2), group_idx=0, **full), stored([11, 12], tokens(2), group_idx=1, **full))

    rank.send(removed(12, group_idx=1))

    assert rank.usable(tokens(2)) == 4


def test_the_index_follows_the_full_group_when_it_appears() -> None:
    """A window group may be announced first."""
    swa: dict[str, Any] = {"kv_cache_spec_kind": "sliding_window", "kv_cache_spec_sliding_window": 5, "group_idx": 0}
    full: dict[str, Any] = {"kv_cache_spec_kind": "full_attention", "group_idx": 1}
    rank = Rank(block_size=None)
    rank.send(stored([11, 12, 13], tokens(3), **swa))

    rank.send(stored([11, 12], tokens(2), **full))

    assert rank.status.blocks == 2
    assert rank.usable(tokens(3)) == 8


def test_a_finer_group_that_appears_later_starts_over() -> None:
    """Keys of the coarser blocks say nothing then; nothing is claimed that is not known."""
    full: dict[str, Any] = {"kv_cache_spec_kind": "full_attention", "group_idx": 0}
    swa: dict[str, Any] = {"kv_cache_spec_kind": "sliding_window", "kv_cache_spec_sliding_window": 3, "group_idx": 1}
    rank = Rank(block_size=None)
    rank.send(stored([11], tokens(1), **full))

    rank.send(stored([5, 11], tokens(1), size=2, **swa))
    forgotten = rank.usable(tokens(1))
    rank.send(stored([11], tokens(1), **full))

    assert (forgotten, rank.usable(tokens(1))) == (0, 4)
