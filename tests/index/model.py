"""Random histories of a prefix index beside a naive model: a dictionary of sets."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvrouter.index import RANKS_MAX

TIERS = ("gpu", "cpu", "disk")


def array(values: Sequence[int] | range) -> Any:
    """Hashes as the uint64 array that callers pass."""
    return np.array(list(values), dtype=np.uint64)


def model_machine(make: Callable[[], Any]) -> type[RuleBasedStateMachine]:
    """Random operations on `make()` beside a naive model: (tier, rank) to a set of hashes."""
    hashes = st.lists(st.integers(1, 12) | st.integers(1, 130), max_size=8)
    ranks = st.sampled_from([0, 1, 2, 31, 64, RANKS_MAX - 1])
    tiers = st.sampled_from(TIERS)

    class Machine(RuleBasedStateMachine):
        @initialize()
        def begin(self) -> None:
            self.index = make()
            self.model: dict[tuple[str, int], set[int]] = {}

        @rule(rank=ranks, keys=hashes, tier=tiers)
        def store(self, rank: int, keys: list[int], tier: str) -> None:
            self.index.store(rank, array(keys), tier)
            self.model.setdefault((tier, rank), set()).update(keys)

        @rule(rank=ranks, keys=hashes, tier=tiers)
        def remove(self, rank: int, keys: list[int], tier: str) -> None:
            self.index.remove(rank, keys, tier)
            self.model.setdefault((tier, rank), set()).difference_update(keys)

        @rule(rank=ranks, start=st.integers(1, 64), length=st.integers(0, 64), tier=tiers)
        def store_chain(self, rank: int, start: int, length: int, tier: str) -> None:
            keys = list(range(start, start + length))
            self.index.store_chain(rank, array(keys), start - 1 if start > 1 else None, tier)
            self.model.setdefault((tier, rank), set()).update(keys)

        @rule(rank=ranks, tier=st.none() | tiers)
        def clear(self, rank: int, tier: str | None) -> None:
            self.index.clear(rank, tier)
            for name in TIERS if tier is None else (tier,):
                self.model.pop((name, rank), None)

        @rule()
        def save_and_load(self) -> None:
            self.index = type(self.index).restore(self.index.snapshot())

        @rule(length=st.integers(0, 130), chosen=st.none() | st.sets(tiers))
        def match(self, length: int, chosen: set[str] | None) -> None:
            prompt = list(range(1, length + 1))
            expected = {}
            for rank in {rank for _, rank in self.model}:
                held = set().union(*(self._held(tier, rank) for tier in (TIERS if chosen is None else chosen)))
                if depth := next((at for at, key in enumerate(prompt) if key not in held), length):
                    expected[rank] = depth
            assert self.index.match(array(prompt), tiers=chosen).depths() == expected
            assert self.index.match_depths(prompt, chosen) == expected

        @rule(rank=ranks, keys=hashes, tier=st.none() | tiers)
        def probe(self, rank: int, keys: list[int], tier: str | None) -> None:
            held = set().union(*(self._held(name, rank) for name in (TIERS if tier is None else (tier,))))
            assert self.index.holds(rank, array(keys), tier).tolist() == [key in held for key in keys]

        @invariant()
        def counts_agree(self) -> None:
            assert len(self.index) == len(set().union(*self.model.values()))
            for (tier, rank), held in self.model.items():
                assert self.index.blocks(rank, tier) == len(held)

        def _held(self, tier: str, rank: int) -> set[int]:
            return self.model.get((tier, rank), set())

    return Machine
