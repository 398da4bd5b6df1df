"""What a replay plays: turns of conversations with their arrivals, lengths and block keys. No files are read here.

A prompt is known by the sequence hashes of its full blocks. Traces name blocks by ids, one for each block of a prompt;
`keys_of_ids` chains them with the router's own hash, as if an id were the block's only token, so that equal prefixes
have equal keys and nothing else has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvrouter.blocks import sequence_hashes

__all__ = ["BLOCK_TOKENS", "Trace", "Turn", "TurnKeys", "keys_of_ids", "resampled", "resolution"]

BLOCK_TOKENS: Final = 512
"""Tokens per block where a trace does not say it; Mooncake's."""
TurnKeys = NDArray[np.uint64]


class Turn:
    """One request: a prompt that arrives at a time of its own, or some time after the answer to an earlier one.

    `keys` are the sequence hashes of the prompt's full blocks. More of them than that are those of the answer, as
    far as a later prompt tells what it will be. `follows` is the position of the turn whose end it waits for; then
    `arrival` counts from that end.
    """

    __slots__ = ("arrival", "follows", "input_tokens", "keys", "output_tokens", "session")

    def __init__(
        self,
        *,
        arrival: float,
        input_tokens: int,
        output_tokens: int,
        keys: TurnKeys,
        session: str | None = None,
        follows: int | None = None,
    ) -> None:
        self.arrival, self.follows, self.session = arrival, follows, session
        self.input_tokens, self.output_tokens = input_tokens, output_tokens
        self.keys = keys

    def moved(self, arrival: float) -> Turn:
        """Return the same turn at another time."""
        return Turn(
            arrival=arrival,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            keys=self.keys,
            session=self.session,
            follows=self.follows,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Turns in an order in which none comes before the one that it follows. Never changed after it was made.

    `bin_seconds` is the resolution of the arrivals: several at the same time came somewhere within so many seconds.
    """

    name: str
    turns: Sequence[Turn]
    block_tokens: int = BLOCK_TOKENS
    bin_seconds: float = 0.0

    @property
    def is_open(self) -> bool:
        """Whether all arrivals are given, so that slow answers do not slow the users."""
        return all(turn.follows is None for turn in self.turns)

    @property
    def span_seconds(self) -> float:
        """From the first arrival to the last of those that are given."""
        given = [turn.arrival for turn in self.turns if turn.follows is None]
        return max(given) - min(given) if given else 0.0

    @property
    def input_tokens(self) -> int:
        """Of all prompts together."""
        return sum(turn.input_tokens for turn in self.turns)

    def at_rate(self, scale: float) -> Trace:
        """Return the trace with given arrivals `scale` times as dense; think times are people's and stay."""
        if scale == 1.0:
            return self
        turns = [turn if turn.follows is not None else turn.moved(turn.arrival / scale) for turn in self.turns]
        return replace(self, turns=turns, bin_seconds=self.bin_seconds / scale)

    def head(self, *, requests: int | None = None, seconds: float | None = None) -> Trace:
        """Return the beginning: so many turns, and none that arrives later than so many seconds after the first."""
        turns = list(self.turns if requests is None else self.turns[:requests])
        if seconds is not None and turns:
            end = min(turn.arrival for turn in turns if turn.follows is None) + seconds
            turns = _without_late(turns, end)
        return replace(self, turns=turns)


def keys_of_ids(ids: Sequence[int]) -> TurnKeys:
    """Return the sequence hashes of blocks that are known by ids of 0..2^32-1."""
    return sequence_hashes(np.asarray(ids, dtype=np.uint32), 1)


def resampled(trace: Trace, seed: int) -> Trace:
    """Return the trace as one seed plays it: another time of the same day.

    Arrivals in bins are spread evenly at random inside them, in order. Exact arrivals stay as they are for seed 0;
    for others each is late by at most the mean distance of two, so that seeds tell what is chance.
    """
    if trace.bin_seconds:
        return _spread(trace, Random(seed))
    given = sum(turn.follows is None for turn in trace.turns)
    if not seed or given < 2:
        return trace
    random, width = Random(seed), trace.span_seconds / (given - 1)
    return replace(
        trace,
        turns=[
            turn.moved(turn.arrival + random.random() * width) if turn.follows is None else turn for turn in trace.turns
        ],
    )


def resolution(arrivals: Iterable[float]) -> float:
    """Guess the width of the bins of arrivals in seconds; 0 where they look exact.

    They are in bins if many arrive at once and different times are nearly all about equally far apart.
    """
    ordered = sorted(arrivals)
    steps = sorted(later - earlier for earlier, later in pairwise(ordered) if later > earlier)
    if not steps or len(steps) * 3 > len(ordered):
        return 0.0
    middle = steps[len(steps) // 2]
    regular = sum(abs(step - middle) <= 0.01 * middle for step in steps)
    return middle if regular >= 0.8 * len(steps) else 0.0


def _spread(trace: Trace, random: Random) -> Trace:
    width = trace.bin_seconds
    bins: dict[float, list[int]] = {}
    for position, turn in enumerate(trace.turns):
        if turn.follows is None:
            bins.setdefault(turn.arrival, []).append(position)
    turns = list(trace.turns)
    for start, members in bins.items():
        for position, offset in zip(members, sorted(random.random() * width for _ in members), strict=True):
            turns[position] = turns[position].moved(start + offset)
    return replace(trace, turns=turns, bin_seconds=0.0)


def _without_late(turns: Sequence[Turn], end: float) -> list[Turn]:
    kept: list[Turn] = []
    places: dict[int, int] = {}
    for position, turn in enumerate(turns):
        if turn.follows is None:
            if turn.arrival > end:
                continue
            follows = None
        else:
            if turn.follows not in places:
                continue
            follows = places[turn.follows]
        places[position] = len(kept)
        moved = turn.moved(turn.arrival)
        moved.follows = follows
        kept.append(moved)
    return kept
