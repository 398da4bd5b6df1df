"""What share of a trace's prompt tokens caches could save at best, whoever routes.

One pooled cache of all workers' size is a bound that no router can do much better than; a cache without end is the
ideal. Both are computed as if every prompt were in the cache the moment it arrived.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from kvrouter.replay.trace import Turn

__all__ = ["pooled_hit_tokens"]


def pooled_hit_tokens(turns: Iterable[Turn], *, block_tokens: int, cache_tokens: int | None) -> int:
    """Return the prompt tokens of `turns`, in this order, that one least-recently-used cache would have.

    `cache_tokens` is None for a cache without end.
    """
    blocks_max = None if cache_tokens is None else max(1, cache_tokens // block_tokens)
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for turn in turns:
        keys = turn.keys.tolist()
        usable = (turn.input_tokens - 1) // block_tokens
        leading = 0
        while leading < usable and keys[leading] in cache:
            leading += 1
        hits += leading * block_tokens
        for key in reversed(keys):  # the last block of a prompt is the first to go
            cache[key] = None
            cache.move_to_end(key)
        if blocks_max is not None:
            while len(cache) > blocks_max:
                cache.popitem(last=False)
    return hits
