"""What a block is, in about a hundred bytes: its tokens, its parent, and what else decides its identity.

A `BlockStored` describes several blocks at once, and some of them leave the cache before others. Here each has a
description of its own, packed, because a publisher may have to remember a million; `stores` makes events of them again.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from struct import Struct
from typing import Final, cast

import msgpack

from kvrouter.events import BlockStored
from kvrouter.events.model import ExtraKey

__all__ = ["DescriptionError", "describe", "fold", "folded", "home_of", "parent_of", "stores"]

# Home, block size, whether there is a parent, the parent, how many tokens; the tokens; what is out of the ordinary.
_HEAD: Final = Struct("<HI?QI")
_UINT64_MAX: Final = 2**64 - 1
_STORE_BLOCKS_MAX: Final = 512
_NOTHING: Final[dict[str, object]] = {}


class DescriptionError(Exception):
    """The event holds values that no wire can carry."""


def fold(hashes: Sequence[object]) -> tuple[int, ...]:
    """Return engine hashes as consumers read them: numbers modulo 2^64, byte strings by their last eight bytes.

    Raises:
        DescriptionError: one of them is neither.
    """
    try:
        array("Q", cast("Sequence[int]", hashes))
    except (TypeError, OverflowError):
        return tuple(map(_fold, hashes))
    return cast("tuple[int, ...]", hashes)


def folded(event: BlockStored) -> BlockStored:
    """Return `event` with all its hashes folded; itself if they are.

    Raises:
        DescriptionError: one of them is no hash.
    """
    hashes, parent = fold(event.block_hashes), event.parent_block_hash
    if parent is not None:
        (parent,) = fold((parent,))
    if hashes is event.block_hashes and parent is event.parent_block_hash:
        return event
    return replace(event, block_hashes=hashes, parent_block_hash=parent)


def describe(event: BlockStored, home: int) -> list[bytes] | None:
    """Return a description of each block of `event`; None if it does not describe its blocks one by one.

    `home` is any number below 65536 that stands for the place that the event names. Its hashes must be folded.

    Raises:
        DescriptionError: a value is not what it should be.
    """
    hashes, size = event.block_hashes, event.block_size
    stated = event.sequence_hashes is not None and not event.token_ids
    if not hashes or (not stated and (not size or len(event.token_ids) != size * len(hashes))):
        return None
    try:
        tokens = array("I", event.token_ids).tobytes()
        width = len(tokens) // len(hashes)
        count = width // 4
        extras = _extras(event)
        head, parent = _HEAD.pack, event.parent_block_hash
        packed = []
        for position, (block, extra) in enumerate(zip(hashes, extras, strict=False)):
            start = head(home, size, parent is not None, parent or 0, count)
            packed.append(start + tokens[position * width : (position + 1) * width] + extra)
            parent = block
    except Exception as error:  # Whatever an engine hands us.
        raise DescriptionError(f"{type(error).__name__} in a store") from error
    return packed


def parent_of(description: bytes) -> int | None:
    """Return the engine hash of the block before."""
    _, _, has_parent, parent, _ = _HEAD.unpack_from(description)
    return parent if has_parent else None


def home_of(description: bytes) -> int:
    """Return the number of the place that described the block."""
    return cast("int", _HEAD.unpack_from(description)[0])


def stores(
    blocks: Iterable[tuple[int, bytes]], *, medium: str | None, group: int, names_namespaces: bool = False
) -> Iterator[BlockStored]:
    """Return stores that describe `blocks`, in order; neighbours of one chain share one.

    With `names_namespaces` a store says of each block that it has no extra keys, instead of nothing. Kinds of
    attention are left out: with them a consumer might take the store for a repetition (`places.Layout`).
    """
    run: _Run | None = None
    for block, packed in blocks:
        _, size, has_parent, parent, count = _HEAD.unpack_from(packed)
        end = _HEAD.size + 4 * count
        extras = _unpack(packed[end:]) if len(packed) > end else _NOTHING
        continues = (
            run is not None
            and has_parent
            and parent == run.hashes[-1]
            and len(run.hashes) < _STORE_BLOCKS_MAX
            and (size, count) == (run.size, run.count)
            and (extras is run.extras[0] or _wide(extras) == _wide(run.extras[0]))
        )
        if run is None or not continues:
            if run is not None:
                yield run.store(medium, group, names_namespaces=names_namespaces)
            run = _Run(size, parent if has_parent else None, count)
        run.hashes.append(block)
        run.tokens.append(packed[_HEAD.size : end])
        run.extras.append(extras)
    if run is not None:
        yield run.store(medium, group, names_namespaces=names_namespaces)


class _Run:
    """Neighbouring blocks on their way into one store."""

    __slots__ = ("count", "extras", "hashes", "parent", "size", "tokens")

    def __init__(self, size: int, parent: int | None, count: int) -> None:
        self.size, self.parent, self.count = size, parent, count
        self.hashes: list[int] = []
        self.tokens: list[bytes] = []
        self.extras: list[dict[str, object]] = []

    def store(self, medium: str | None, group: int, *, names_namespaces: bool) -> BlockStored:
        """Return the store."""
        tokens = array("I")
        tokens.frombytes(b"".join(self.tokens))
        extra_keys = self._column("extra_keys")
        if extra_keys is None and names_namespaces:
            extra_keys = (None,) * len(self.hashes)
        lookahead = self._column("lookahead_token_ids")
        lora_id, lora_name, cache_salt, bigram = _wide(self.extras[0])
        return BlockStored(
            block_hashes=tuple(self.hashes),
            parent_block_hash=self.parent,
            token_ids=tuple(tokens),
            block_size=self.size,
            lora_id=cast("int | None", lora_id),
            medium=medium,
            lora_name=cast("str | None", lora_name),
            extra_keys=cast("tuple[ExtraKey, ...] | None", extra_keys),
            group_idx=group or None,
            cache_salt=cast("str | None", cache_salt),
            lookahead_token_ids=None
            if lookahead is None
            else tuple(cast("tuple[int, ...]", x or ()) for x in lookahead),
            mm_keys=cast("tuple[ExtraKey, ...] | None", self._column("mm_keys")),
            bigram=bool(bigram),
            sequence_hashes=cast("tuple[int | None, ...] | None", self._column("sequence_hashes")),
        )

    def _column(self, name: str) -> tuple[object, ...] | None:
        if not any(self.extras):
            return None
        values = tuple(extras.get(name) for extras in self.extras)
        return None if all(value is None for value in values) else values


def _fold(value: object) -> int:
    if isinstance(value, int):
        return value & _UINT64_MAX
    if isinstance(value, bytes) and value:
        return int.from_bytes(value[-8:], "big")
    raise DescriptionError(f"a block hash is a number or bytes, not {type(value).__name__}")


def _extras(event: BlockStored) -> Iterable[bytes]:
    """What is out of the ordinary in each block, packed; nothing in most."""
    wide = {
        "lora_id": event.lora_id,
        "lora_name": event.lora_name,
        "cache_salt": event.cache_salt,
        "bigram": event.bigram or None,
    }
    per_block = {
        "extra_keys": event.extra_keys,
        "mm_keys": event.mm_keys,
        "lookahead_token_ids": event.lookahead_token_ids,
        "sequence_hashes": event.sequence_hashes,
    }
    wide = {name: value for name, value in wide.items() if value is not None}
    columns = {name: values for name, values in per_block.items() if values is not None}
    if not wide and not columns:
        return repeat(b"")
    packed = []
    for position in range(len(event.block_hashes)):
        values = {name: column[position] for name, column in columns.items()}
        extras = wide | {name: value for name, value in values.items() if value is not None}
        packed.append(cast("bytes", msgpack.packb(extras)) if extras else b"")
    return packed


def _unpack(extras: bytes) -> dict[str, object]:
    return cast("dict[str, object]", msgpack.unpackb(extras, use_list=False, strict_map_key=False))


def _wide(extras: dict[str, object]) -> tuple[object, ...]:
    """What is said of all blocks of an event at once."""
    get = extras.get
    return get("lora_id"), get("lora_name"), get("cache_salt"), get("bigram")
