"""Between a followed source and what is saved of it.

A rank's tables are read from its cache. They come back as meanings of hashes, and as the events that make a new cache
count the same copies, so that a restored rank is built as every other one is.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from kvrouter.events import BlockRemoved, BlockStored, Namespace
from kvrouter.ingest.block_table import Meanings
from kvrouter.ingest.followed import Followed
from kvrouter.ingest.rank_cache import RankCache
from kvrouter.ingest.saved import SavedCache, SavedGroup, SavedMeanings, SavedPlace, SavedSource

__all__ = ["resume", "save"]

_EVENT_HASHES = 8192
_ELSEWHERE = "DISK"
"""Where blocks are named whose copy leaves at once: what they are stays known."""

_ORPHAN_BLOCKS_MAX = 1 << 20  # They were within the bound when they were saved.
_MEDIUM = {"gpu": "GPU", "cpu": "CPU", "disk": "DISK"}


def save(followed: Followed) -> SavedSource:
    """What is known of a source now."""
    return SavedSource(
        source=followed.source,
        cursor=followed.sequencer.save(),
        doubt=followed.doubt,
        incomplete=followed.incomplete,
        adapters=tuple(followed.adapters.items()),
        cache=_save_cache(followed.cache),
    )


def resume(followed: Followed, saved: SavedSource) -> int:
    """Make a source that knows nothing know what was saved; returns the number of its blocks in all places."""
    for lora_id, name in saved.adapters:
        followed.name_adapter(lora_id, name)
    cache = followed.cache
    blocks = _resume_cache(cache, saved.cache)
    followed.sequencer.resume(saved.cursor)
    followed.restored = True
    followed.doubt, followed.incomplete = saved.doubt, saved.incomplete
    return blocks


def _save_cache(cache: RankCache) -> SavedCache:
    # Tables of `RankCache` and `AliasMap` are read here, and nowhere else outside of them.
    aliases, shape = cache._aliases, cache.profile.shape  # noqa: SLF001
    get = aliases.keys.get
    namespaces = {namespace: number for number, namespace in enumerate(dict.fromkeys(aliases._namespaces.values()))}  # noqa: SLF001
    inner = aliases._inner  # noqa: SLF001
    return SavedCache(
        unit=shape.unit,
        lookahead=shape.lookahead,
        bigram=shape.bigram,
        clears_all_tiers=cache._clears_all_tiers,  # noqa: SLF001
        names_namespaces=cache._names_namespaces,  # noqa: SLF001
        groups=tuple(
            SavedGroup(index=index, kind=group.kind, block_size=group.block_size, window=group.window)
            for index, group in cache.profile.groups.items()
        ),
        places=tuple(
            SavedPlace(tier=tier, group=group, blocks=_meanings(copies, get), counts=_counts(copies.values()))
            for (tier, group), copies in cache.copies().items()
        ),
        idle=_meanings(cache._idle, get),  # noqa: SLF001
        namespaces=tuple((namespace.salt, namespace.lora) for namespace in namespaces),
        namespaced=_numbers(aliases._namespaces),  # noqa: SLF001
        namespace_of=_numbers((namespaces[namespace] for namespace in aliases._namespaces.values()), "<u4"),  # noqa: SLF001
        inner=_numbers(inner),
        inner_sizes=_numbers(map(len, inner.values()), "<u4"),
        inner_keys=_numbers(chain.from_iterable(inner.values())),
        orphans=tuple(
            replace(event, pool=None)
            for waiting in aliases._orphans.values()  # noqa: SLF001
            for event in waiting
        ),
    )


def _meanings(hashes: Collection[int], key_of: Callable[[int], int | None]) -> SavedMeanings:
    keys = list(map(key_of, hashes))
    known = b""
    if None in keys:
        known = bytes(key is not None for key in keys)
        keys = [key or 0 for key in keys]
    return SavedMeanings(hashes=_numbers(hashes), keys=np.array(keys, "<u8").tobytes(), known=known)


def _counts(copies: Collection[int]) -> bytes:
    return b"" if all(map((1).__eq__, copies)) else _numbers(copies, "<u4")


def _numbers(values: Iterable[int], dtype: str = "<u8") -> bytes:
    return np.fromiter(values, dtype).tobytes()


def _resume_cache(cache: RankCache, saved: SavedCache) -> int:
    """Tell an empty cache what is saved; returns its blocks."""
    cache.apply(_layout(saved))
    aliases = cache._aliases  # noqa: SLF001
    same_blocks = cache.profile.shape.unit == saved.unit  # Keys of another block size say nothing.
    blocks = 0
    for place in saved.places:
        if same_blocks:
            _teach(aliases.keys, place.blocks)
        medium = "CPU_PINNED" if saved.clears_all_tiers and place.tier == "cpu" else _MEDIUM[place.tier]
        blocks += len(place.blocks.hashes) // 8
        for some in _copies(place.blocks.hashes, place.counts):
            cache.apply([BlockStored(block_hashes=some, medium=medium, group_idx=place.group)])
    if same_blocks:
        _teach(aliases.keys, saved.idle)
        for some in _copies(saved.idle.hashes, b""):  # They are idle once the only copy has left.
            cache.apply(
                [
                    BlockStored(block_hashes=some, medium=_ELSEWHERE),
                    BlockRemoved(block_hashes=some, medium=_ELSEWHERE),
                ]
            )
        aliases._namespaces.update(_namespaces(saved))  # noqa: SLF001
        aliases._inner.update(_inner(saved))  # noqa: SLF001
    cache._names_namespaces = saved.names_namespaces  # noqa: SLF001
    cache._clears_all_tiers = saved.clears_all_tiers  # noqa: SLF001
    for orphan in saved.orphans:
        aliases.wait_for_parent(orphan, _ORPHAN_BLOCKS_MAX)
    return blocks


def _teach(meanings: Meanings, blocks: SavedMeanings) -> None:
    """Say what hashes mean. A meaning is given once: a hash may be in several places."""
    hashes, keys = _array(blocks.hashes), _array(blocks.keys)
    known = np.frombuffer(blocks.known, np.uint8) != 0 if blocks.known else np.ones(len(hashes), np.bool_)
    if len(meanings):
        known = known & ~np.fromiter(map(meanings.__contains__, hashes.tolist()), np.bool_, len(hashes))
    # As a loop in C: there may be a million.
    deque(map(meanings.__setitem__, hashes[known].tolist(), keys[known].tolist()), maxlen=0)


def _layout(saved: SavedCache) -> list[BlockStored]:
    """Stores without blocks, which tell of the groups of layers."""
    lookahead = ((0,) * saved.lookahead,) if saved.lookahead else None
    return [
        BlockStored(
            block_hashes=(),
            block_size=group.block_size,
            medium="GPU",
            group_idx=group.index,
            kv_cache_spec_kind=group.kind,
            kv_cache_spec_sliding_window=group.window,
            lookahead_token_ids=lookahead,
            bigram=saved.bigram,
        )
        for group in saved.groups
    ]


def _namespaces(saved: SavedCache) -> Iterator[tuple[int, Namespace]]:
    named = [Namespace(*pair) for pair in saved.namespaces]
    numbers = _array(saved.namespace_of, "<u4").tolist()
    return zip(_array(saved.namespaced).tolist(), map(named.__getitem__, numbers), strict=True)


def _inner(saved: SavedCache) -> Iterator[tuple[int, list[int]]]:
    keys = _array(saved.inner_keys).tolist()
    end = 0
    for engine_hash, size in zip(_array(saved.inner).tolist(), _array(saved.inner_sizes, "<u4").tolist(), strict=True):
        end += size
        yield engine_hash, keys[end - size : end]


def _copies(hashes: bytes, counts: bytes) -> Iterator[tuple[int, ...]]:
    """The hashes of first copies, then those of which there is a second one, and so on."""
    values, left = _array(hashes), _array(counts, "<u4")
    while len(values):
        for start in range(0, len(values), _EVENT_HASHES):
            yield tuple(values[start : start + _EVENT_HASHES].tolist())
        more = left > 1
        values, left = values[: len(left)][more], left[more] - 1


def _array(data: bytes, dtype: str = "<u8") -> NDArray[np.uint64]:
    return np.frombuffer(data, dtype)
