"""What share of a trace's prompt tokens caches could save at best, whoever routes.

One pooled cache of all workers' size is a bound that no router can do much better than; a cache without end is the
ideal. Both are computed as if every prompt were in the cache the moment it arrived, and turns of conversations came
as they would from workers without queues: so they belong to a trace and a size, not to a run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from kvrouter.replay.rates import EngineRates
from kvrouter.replay.trace import Trace, Turn

__all__ = ["Bounds", "bounds_of", "in_nominal_order", "least_prefill_seconds"]

_ANSWER_SECONDS_PER_TOKEN = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Shares of the prompt tokens, 0..1."""

    pooled_share: float
    ideal_share: float


def bounds_of(trace: Trace, *, cache_tokens: int) -> Bounds:
    """Return the bounds for workers that have so much cache together."""
    tokens = max(1, trace.input_tokens)
    return Bounds(
        pooled_share=sum(hit for _, hit in pooled_hits(trace, cache_tokens)) / tokens,
        ideal_share=sum(hit for _, hit in pooled_hits(trace, None)) / tokens,
    )


def least_prefill_seconds(trace: Trace, rates: EngineRates, *, cache_tokens: int) -> float:
    """Return the prefill work that one pooled cache leaves, in seconds of one worker."""
    return sum(rates.prefill_seconds(turn.input_tokens - hit, hit) for turn, hit in pooled_hits(trace, cache_tokens))


def pooled_hits(trace: Trace, cache_tokens: int | None) -> Iterator[tuple[Turn, int]]:
    """Yield each turn and the prompt tokens that one least-recently-used cache has of it; None: a cache without end."""
    size = trace.block_tokens
    blocks_max = None if cache_tokens is None else max(1, cache_tokens // size)
    cache: OrderedDict[int, None] = OrderedDict()
    for turn in in_nominal_order(trace):
        keys = turn.keys.tolist()
        usable = min(len(keys), (turn.input_tokens - 1) // size)
        leading = 0
        while leading < usable and keys[leading] in cache:
            leading += 1
        yield turn, leading * size
        for key in reversed(keys):  # the last block of a prompt is the first to go
            cache[key] = None
            cache.move_to_end(key)
        if blocks_max is not None:
            while len(cache) > blocks_max:
                cache.popitem(last=False)


def in_nominal_order(trace: Trace) -> list[Turn]:
    """Return the turns by when they would come if answers took only as long as their tokens."""
    if trace.is_open:
        return sorted(trace.turns, key=lambda turn: turn.arrival)
    at: list[float] = []
    for turn in trace.turns:
        if turn.follows is None:
            at.append(turn.arrival)
        else:
            answer = _ANSWER_SECONDS_PER_TOKEN * trace.turns[turn.follows].output_tokens
            at.append(at[turn.follows] + answer + turn.arrival)
    return [trace.turns[position] for position in sorted(range(len(at)), key=at.__getitem__)]
