"""The same random history on two indexes, their answers compared: the contract at sizes that no example reaches."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from kvrouter.index import RANKS_MAX

TIERS = ("gpu", "cpu", "disk")


class TwinHistory:
    """Drives `subject` and `oracle` alike. `keys` is how many different blocks there are in runs of `run`."""

    def __init__(self, subject: Any, oracle: Any, *, seed: int, keys: int, run: int, ranks: int) -> None:
        self.subject, self.oracle = subject, oracle
        self.random = random.Random(seed)
        numbers = np.random.default_rng(seed).integers(0, 2**64, size=keys, dtype=np.uint64)
        numbers[:2] = 0, 2**64 - 1
        self.runs = [numbers[start : start + run] for start in range(0, keys, run)]
        # Prompts with a beginning in common: a hash has one and the same before it wherever it appears.
        for at in range(1, len(self.runs), 2):
            cut = self.random.randint(1, run)
            self.runs[at] = np.concatenate([self.runs[at - 1][:cut], self.runs[at]])
        self.ranks = [self.random.randrange(RANKS_MAX) for _ in range(ranks - 2)] + [0, RANKS_MAX - 1]
        # Mostly filling, mostly emptying, or both alike.
        self.filling = 0.5

    def step(self) -> int:
        """One random operation and one comparison; returns how many blocks it was about."""
        choose = self.random
        if choose.random() < 0.01:
            self.filling = choose.choice([0.1, 0.5, 0.9])
        rank, tier = choose.choice(self.ranks), choose.choice(TIERS)
        part = self._part()
        chance = choose.random()
        chain = self._chain() if choose.random() < 0.5 else None
        if chance < 0.006:
            cleared = choose.choice([None, tier])
            self._both(lambda index: index.clear(rank, cleared))
        elif chance < 0.4 + self.filling and chain is not None:
            self._both(lambda index: index.store_chain(rank, chain[0], chain[1], tier))
        elif chance < 0.4 + self.filling:
            self._both(lambda index: index.store(rank, part, tier))
        else:
            self._both(lambda index: index.remove(rank, part, tier))
        self.compare(rank, tier)
        return len(part)

    def restart(self) -> None:
        """Continue with what each restores from the other's snapshot."""
        subject, oracle = self.subject.snapshot(), self.oracle.snapshot()
        self.subject, self.oracle = type(self.subject).restore(oracle), type(self.oracle).restore(subject)

    def compare(self, rank: int, tier: str) -> None:
        """Ask both the same."""
        subject, oracle = self.subject, self.oracle
        prompt = self.random.choice(self.runs)
        tiers = self.random.choice([None, (tier,), ("gpu", "cpu"), ()])
        assert subject.match_depths(prompt, tiers) == oracle.match_depths(prompt.tolist(), tiers)
        k = self.random.choice([1, 2, 12])
        assert subject.match_best(prompt, k, tiers) == oracle.match_best(prompt, k, tiers)
        loose = subject.match(prompt, exact=False, tiers=tiers).depths()
        assert loose == oracle.match(prompt, exact=False, tiers=tiers).depths()
        exact = subject.match(prompt, tiers=tiers)
        assert dict(zip(exact.ranks.tolist(), exact.blocks.tolist(), strict=True)) == exact.depths()
        assert exact.depths() == oracle.match(prompt, tiers=tiers).depths()
        assert subject.match_depths(prompt.tolist()) == oracle.match_depths(prompt.tolist())
        assert (subject.holds(rank, prompt, tier) == oracle.holds(rank, prompt, tier)).all()
        assert subject.blocks(rank, tier) == oracle.blocks(rank, tier)
        assert len(subject) == len(oracle)

    def compare_all(self) -> None:
        """Ask both everything about some ranks."""
        for rank in self.ranks[-8:]:
            assert self.subject.blocks(rank) == self.oracle.blocks(rank)
            for tier in TIERS:
                for run in self.runs:
                    assert (self.subject.holds(rank, run, tier) == self.oracle.holds(rank, run, tier)).all()

    def _part(self) -> Any:
        choose = self.random
        run = choose.choice(self.runs)
        kind = choose.random()
        if kind < 0.5:
            return run[: choose.randint(1, len(run))]
        if kind < 0.7:
            return run[choose.randrange(len(run)) :: -choose.randint(1, 3)]
        if kind < 0.9:
            start = choose.randrange(len(run))
            return run[start : start + 1].tolist()
        return np.concatenate([choose.choice(self.runs)[:5] for _ in range(8)])

    def _chain(self) -> tuple[Any, int | None]:
        """Some blocks that follow one another, and what comes before the first of them."""
        choose = self.random
        run = choose.choice(self.runs)
        start = choose.choice([0, 0, choose.randrange(len(run))])
        stop = choose.choice([len(run), choose.randint(start, len(run))])
        return run[start:stop], int(run[start - 1]) if start else None

    def _both(self, change: Callable[[Any], None]) -> None:
        change(self.subject)
        change(self.oracle)
