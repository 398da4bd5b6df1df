"""What it costs to load from the tiers below the GPU, learnt from the times of first tokens.

A prompt whose prefix goes on in an engine's memory or on its disk is loaded from there; the time, as a share of what
computing the same tokens would have taken, is the cost of that tier. A first token tells it where loading would have
been most of what was waited for, had it been computed: the rest is taken for what it was predicted to be. Each counts
as a share of 0..1, so that a single absurd one moves little, and old ones fade with every new one. Whatever a tier is
believed to cost before is forgotten with the first few.
"""

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from kvrouter.routing.load import Booking
from kvrouter.routing.rank_load import pairs_of

__all__ = ["Loads", "TierCosts"]

Loads: TypeAlias = Sequence[tuple[str, int]]
"""Tokens of one prompt that are loaded from each tier below the GPU, in their order in the prompt."""

# Of what was known of a tier, what is left after each new observation.
_KEPT: Final = 0.95
# How many observations the belief before them is worth.
_PRIOR_WORTH: Final = 0.5
# Loads whose computing takes less say nothing that could be told from chance.
_SECONDS_MIN: Final = 0.02


class TierCosts:
    """The tiers' costs for all ranks together, as shares of computing."""

    __slots__ = ("_known", "_priors")

    def __init__(self, priors: Mapping[str, float]) -> None:
        self._priors = priors
        self._known: dict[str, tuple[float, float, int]] = {}

    def cost(self, tier: str) -> float:
        """Time of loading a token from a tier, as a share of the time of computing it; 0..1."""
        shares, weight, _ = self._known.get(tier, (0.0, 0.0, 0))
        return (shares + self._priors.get(tier, 1.0) * _PRIOR_WORTH) / (weight + _PRIOR_WORTH)

    def costs(self) -> dict[str, float]:
        """Those of all tiers, the ones next to the GPU first."""
        return {tier: self.cost(tier) for tier in self._priors}

    def observed(self, tier: str) -> int:
        """How many first tokens told what a tier costs."""
        return self._known.get(tier, (0.0, 0.0, 0))[2]

    def first_token(self, booking: Booking, loads: Loads, *, promised: int, prompt_tokens: int, now: float) -> bool:
        """Learn from a first token which came now and has not been noted in its booking; whether it told anything.

        `promised` tokens of the prompt were on the GPU, and `loads` follow them.
        """
        load, begin = booking.load, promised
        spans: list[tuple[str, float]] = []
        for tier, tokens in loads:
            begin += tokens
            spans.append((tier, tokens * load.token_seconds + pairs_of(tokens, begin) * load.pair_seconds))
        fresh = max(prompt_tokens - begin, 0)
        others = (booking.work_tokens - booking.prefill_tokens) * load.token_seconds
        others += (booking.work_pairs - booking.prefill_pairs) * load.pair_seconds
        known = load.first_seconds + others + fresh * load.token_seconds
        known += pairs_of(fresh, prompt_tokens) * load.pair_seconds
        tier, seconds = max(spans, key=lambda span: span[1])
        known += sum(self.cost(each) * time for each, time in spans if each != tier)
        if not seconds >= max(known, _SECONDS_MIN):
            return False
        share = min(max((now - booking.work_since - known) / seconds, 0.0), 1.0)
        shares, weight, count = self._known.get(tier, (0.0, 0.0, 0))
        self._known[tier] = shares * _KEPT + share, weight * _KEPT + 1.0, count + 1
        return True
