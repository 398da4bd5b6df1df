"""What is known of ranks' caches for one prompt: what events confirm, what is predicted, how far to believe it.

The truth is `kvrouter.ingest`'s; the predictions are written here, by the router's own decisions.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Protocol

import msgspec

from kvrouter import native_core
from kvrouter.blocks import Prompt
from kvrouter.events import Source
from kvrouter.routing.settings import RoutingSettings

if TYPE_CHECKING or not native_core.present:
    from kvrouter.routing.predictions import PredictedBlocks
else:
    PredictedBlocks = native_core.native.PredictedBlocks

__all__ = ["NO_OVERLAPS", "PATIENCE", "REFRESH_SHARE", "CacheTruth", "Knowledge", "Overlaps", "PredictedBlocks"]

# A predicted prefix is written again once this share of its lifetime is over, so that what is in use stays.
REFRESH_SHARE = 0.25
# How many times longer than predicted a prompt's computation may take before its blocks are no longer expected.
PATIENCE = 4.0
_NOTHING: dict[int, int] = {}


class CacheTruth(Protocol):
    """What routing needs of `kvrouter.ingest.Ingest`."""

    @property
    def doubtful(self) -> Collection[int]:
        """The dense ranks whose state is not live."""
        ...

    def open(self, source: Source, rank: int, *, block_size: int | None = None, now: float) -> None:
        """Begin to follow a source under a dense rank number."""
        ...

    def close(self, source: Source) -> None:
        """Forget a source and everything it holds."""
        ...

    def usable_tokens(self, prompt: Prompt, tiers: Collection[str] = ("gpu",)) -> dict[int, int]:
        """Per dense rank the leading prompt tokens that its engine can use from these tiers; zero is absent."""
        ...

    def tiers(self) -> Collection[str]:
        """The tiers in which anything is known to have been."""
        ...

    def block_size(self, rank: int) -> int | None:
        """Tokens per block of a rank; None until known."""
        ...

    def is_trusted(self, rank: int) -> str:
        """State of the rank's source: live, replaying, suspect or predicted."""
        ...


class Overlaps(msgspec.Struct, eq=False, frozen=True, gc=False):
    """Leading tokens of one prompt that dense ranks have cached; ranks that have none are absent.

    `confirmed` is what events say of the GPU, `promised` the longer of that and what is predicted, and `credited` what
    counts when ranks are compared: the part of the promise that is believed, and what is saved by loading from below.
    """

    confirmed: dict[int, int]
    promised: dict[int, int]
    credited: dict[int, int]


NO_OVERLAPS = Overlaps(_NOTHING, _NOTHING, _NOTHING)


class Knowledge:
    """Joins the truth with predictions, for every way of hashing in use."""

    __slots__ = ("_beliefs", "_confirmed", "_settings", "_tier_costs", "_truth", "bytewise", "exact", "lower_tiers")

    def __init__(
        self,
        truth: CacheTruth,
        settings: RoutingSettings,
        beliefs: Mapping[int, float],
        tier_costs: Callable[[], Mapping[str, float]],
    ) -> None:
        self._truth = truth
        self._tier_costs = tier_costs
        """What loading from each tier below the GPU is believed to cost now, from above."""
        self._beliefs = beliefs
        """The ranks that are not believed, and which share of what they promise is."""
        self._confirmed = truth.usable_tokens
        self._settings = settings
        self.exact: dict[int, PredictedBlocks] = {}
        """By block size, what is predicted in hashes of which events speak too (`Prompt.exact`)."""
        self.bytewise: dict[int, PredictedBlocks] = {}
        """By block size, what is predicted in others."""
        self.lower_tiers: tuple[tuple[str, float], ...] = ()
        """Tiers below the GPU that are in use, from above, and what a token there saves; renewed by `expire`."""

    def change(self, settings: RoutingSettings) -> None:
        """Take other lifetimes for what is predicted from now on."""
        self._settings = settings

    def __len__(self) -> int:
        """Pairs of a block and a rank that is predicted to hold it; of long prompts only landmarks count."""
        return sum(map(len, self._all()))

    def overlaps(self, prompt: Prompt, now: float) -> Overlaps:
        """What every rank has of a prompt."""
        is_exact = prompt.exact
        confirmed = self._confirmed(prompt) if is_exact else _NOTHING
        promised = confirmed
        for block_size, predictions in (self.exact if is_exact else self.bytewise).items():
            predictions.expire(now)
            if prompt.block_size is None or prompt.block_size == block_size:
                promised = predictions.promised(promised, prompt.hash_bytes(block_size), block_size, prompt.tokens)
        credited = promised
        doubtful = self._truth.doubtful
        if confirmed and doubtful and not confirmed.keys().isdisjoint(doubtful):
            credited = self._credited(confirmed, promised)
        if self.lower_tiers and is_exact:
            credited = self._with_lower_tiers(prompt, promised, credited)
        if credited and self._beliefs:
            credited = self._believed(credited)
        return Overlaps(confirmed, promised, credited) if promised or credited else NO_OVERLAPS

    def only_predictions(self, block_size: int) -> PredictedBlocks | None:
        """The predictions for prompts of tokens, if there are none for other sizes of blocks."""
        if self.exact and (block_size not in self.exact or len(self.exact) > 1):
            return None
        return self._predictions(self.exact, block_size)

    def block_size(self, rank: int, prompt: Prompt | None) -> int:
        """Tokens per block of a prompt on a rank."""
        if prompt is not None and prompt.block_size is not None:
            return prompt.block_size
        return self._truth.block_size(rank) or self._settings.block_size

    def predict(
        self, rank: int, prompt: Prompt, block_size: int, *, confirmed: int, promised: int, cost: float, now: float
    ) -> None:
        """Note that a rank will hold a prompt's blocks, of which `confirmed` and `promised` tokens it has already.

        The blocks appear when the prompt has been computed, in about `cost` seconds; the lifetime comes on top.
        """
        settings = self._settings
        lifetime = settings.predicted_seconds_unconfirmed
        predictions = self._predictions(self.exact if prompt.exact else self.bytewise, block_size)
        if prompt.exact:
            is_live = rank not in self._truth.doubtful
            for each in self.exact.values():
                each.follow(rank, is_live)
            if is_live:
                lifetime = settings.predicted_seconds_live
        if not lifetime:
            return
        # The part that is predicted already is written again only when it is getting old.
        fresh = now + lifetime * (1 - REFRESH_SHARE)
        deadline = now + PATIENCE * cost + lifetime
        predictions.predict(rank, prompt.hash_bytes(block_size), block_size, confirmed, promised, deadline, fresh)

    def loads(self, prompt: Prompt, rank: int, promised: int) -> tuple[tuple[str, int], ...]:
        """The tokens that a rank would load from each tier below the GPU, after those that it is promised to have."""
        found, reached, tiers = [], promised, ["gpu"]
        for tier, _ in self.lower_tiers if prompt.exact else ():
            tiers.append(tier)
            tokens = self._confirmed(prompt, tiers).get(rank, 0)
            if tokens > reached:
                found.append((tier, tokens - reached))
                reached = tokens
        return tuple(found)

    def expire(self, now: float) -> None:
        """End the predictions whose time is over, and see which tiers there are."""
        known = self._truth.tiers()
        if len(known) > 1:
            costs = self._tier_costs().items()
            self.lower_tiers = tuple((tier, 1.0 - cost) for tier, cost in costs if tier in known)
        for predictions in self._all():
            predictions.expire(now)

    def forget(self, rank: int) -> None:
        """Drop a rank's predictions."""
        for predictions in self._all():
            predictions.drop(rank)

    def _all(self) -> Iterable[PredictedBlocks]:
        return chain(self.exact.values(), self.bytewise.values())

    def _predictions(self, group: dict[int, PredictedBlocks], block_size: int) -> PredictedBlocks:
        predictions = group.get(block_size)
        if predictions is None:
            predictions = group[block_size] = PredictedBlocks(
                blocks_max=self._settings.predicted_blocks_max, total_max=self._settings.predicted_total_max
            )
        return predictions

    def _with_lower_tiers(self, prompt: Prompt, promised: dict[int, int], credited: dict[int, int]) -> dict[int, int]:
        """What continues the prefix below the GPU is loaded: faster than computing it, and not for nothing."""
        credited, reached = dict(credited), dict(promised)
        tiers = ["gpu"]
        for tier, saved in self.lower_tiers:
            tiers.append(tier)
            for rank, tokens in self._confirmed(prompt, tiers).items():
                more = tokens - reached.get(rank, 0)
                if more > 0:
                    credited[rank] = credited.get(rank, 0) + round(more * saved)
                    reached[rank] = tokens
        return credited

    def _credited(self, confirmed: dict[int, int], promised: dict[int, int]) -> dict[int, int]:
        """What a source in doubt confirmed counts only in part."""
        share_of, state_of = self._settings.source_credits, self._truth.is_trusted
        doubted = {rank: share for rank in confirmed if (share := share_of.get(state_of(rank), 1.0)) < 1.0}
        if not doubted:
            return promised
        credited = dict(promised)
        for rank, share in doubted.items():
            credited[rank] -= round(confirmed[rank] * (1.0 - share))
        return credited

    def _believed(self, credited: dict[int, int]) -> dict[int, int]:
        """Of ranks that break promises, what they keep of them."""
        shares = self._beliefs
        return {rank: int(tokens * shares.get(rank, 1.0)) for rank, tokens in credited.items()}
