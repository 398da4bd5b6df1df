"""The bytes of what ingest knows, so that a router which begins anew goes on where another one stood.

    state   = magic version section* end
    section = length (u64) XXH3-64 (u64) msgpack map, one for each source: cursor, layout, tables
    end     = 0 (u64) number of sections (u64)

Numbers are little-endian. Tables are flat arrays: hashes and sequence hashes as u64, counts as u32. A section is what
one source knew at one moment; sources need not be of the same moment, because nothing is shared between them. The
index is not in it: it is what the sources say, and is built from them.

Here are bytes and values. What they mean for a rank is `restoring`'s.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import msgpack
import numpy as np
from xxhash import xxh3_64_intdigest

from kvrouter.errors import SnapshotError, WireError
from kvrouter.events import TIERS, BlockStored, Event, EventBatch, Source, decode_batch, encode_batch
from kvrouter.ingest.cursor import Cursor

__all__ = [
    "SavedCache",
    "SavedGroup",
    "SavedMeanings",
    "SavedPlace",
    "SavedSource",
    "pack",
    "pack_end",
    "pack_start",
    "unpack",
]

_MAGIC: Final = b"kvringst"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<8sI")
_FRAME: Final = struct.Struct("<QQ")
_UINT64_MAX: Final = 2**64 - 1
_SEQUENCE_MAX: Final = 2**64 - 1
_BLOCK_TOKENS_MAX: Final = 1 << 16
_GROUPS_MAX: Final = 256

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedGroup:
    """One group of layers, as its events told of it."""

    index: int
    kind: str | None
    block_size: int
    window: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedMeanings:
    """Engine hashes, and the sequence hash of each that has one, as `known` says (empty: all have)."""

    hashes: bytes
    keys: bytes
    known: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedPlace:
    """What has copies in one tier and group, and how many each (empty: one)."""

    tier: str
    group: int
    blocks: SavedMeanings
    counts: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedCache:
    """One rank's tables; `idle` are hashes without copies whose meaning is kept, in the order in which they went."""

    unit: int
    lookahead: int
    bigram: bool
    clears_all_tiers: bool
    names_namespaces: bool
    groups: tuple[SavedGroup, ...]
    places: tuple[SavedPlace, ...]
    idle: SavedMeanings
    namespaces: tuple[tuple[str | None, str | None], ...]
    namespaced: bytes
    namespace_of: bytes
    inner: bytes
    inner_sizes: bytes
    inner_keys: bytes
    orphans: tuple[BlockStored, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedSource:
    """One source at one moment."""

    source: Source
    cursor: Cursor
    doubt: str | None
    incomplete: bool
    adapters: tuple[tuple[int, str], ...]
    cache: SavedCache


def pack_start() -> bytes:
    """What every saved state begins with."""
    return _HEAD.pack(_MAGIC, _VERSION)


def pack(saved: SavedSource) -> bytes:
    """One section."""
    cursor, cache = saved.cursor, saved.cache
    fields = {
        "worker": saved.source.worker_id,
        "rank": saved.source.rank,
        "doubt": saved.doubt,
        "incomplete": saved.incomplete,
        "adapters": saved.adapters,
        "cursor": {name: getattr(cursor, name) for name in Cursor.__slots__},
        "cache": {name: getattr(cache, name) for name in SavedCache.__slots__}
        | {
            "groups": [[group.index, group.kind, group.block_size, group.window] for group in cache.groups],
            "places": [[place.tier, place.group, place.counts, *_pack(place.blocks)] for place in cache.places],
            "idle": _pack(cache.idle),
            "orphans": encode_batch(EventBatch(timestamp=0.0, events=cache.orphans)),
        },
    }
    section = cast("bytes", msgpack.packb(fields))
    return _FRAME.pack(len(section), xxh3_64_intdigest(section)) + section


def pack_end(sections: int) -> bytes:
    """What every saved state ends with."""
    return _FRAME.pack(0, sections)


def unpack(data: bytes | bytearray | memoryview) -> list[SavedSource]:
    """Return what was saved.

    Raises:
        SnapshotError: the bytes are damaged, truncated or of another version.
    """
    try:
        return [_source(section) for section in _sections(memoryview(data).cast("B"))]
    except (
        WireError,
        ValueError,
        TypeError,
        KeyError,
        OverflowError,
        RecursionError,
        msgpack.UnpackException,
    ) as error:
        raise SnapshotError(f"saved ingest state is damaged: {type(error).__name__}: {error}") from error


def _sections(data: memoryview) -> Iterator[memoryview]:
    if len(data) < _HEAD.size:
        raise SnapshotError("saved ingest state is damaged: it ends within its head")
    magic, version = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise SnapshotError("this is not a saved ingest state")
    if version != _VERSION:
        raise SnapshotError(f"saved ingest state of version {version}; this program reads version {_VERSION}")
    offset, count = _HEAD.size, 0
    while True:
        if len(data) < offset + _FRAME.size:
            raise SnapshotError("saved ingest state is damaged: it ends too early")
        length, checksum = _FRAME.unpack_from(data, offset)
        offset += _FRAME.size
        if not length:
            if checksum != count or offset != len(data):
                raise SnapshotError("saved ingest state is damaged: its end is not where it should be")
            return
        section = data[offset : offset + length]
        if len(section) < length or xxh3_64_intdigest(section) != checksum:
            raise SnapshotError("saved ingest state is damaged: a checksum does not match")
        yield section
        offset += length
        count += 1


def _source(section: memoryview) -> SavedSource:
    fields = _Fields(msgpack.unpackb(section, use_list=False, strict_map_key=False))
    cursor, cache = _Fields(fields.any("cursor")), _Fields(fields.any("cache"))
    return SavedSource(
        source=Source(fields.of("worker", str), fields.number("rank", 2**32 - 1)),
        cursor=_cursor(cursor),
        doubt=fields.maybe("doubt", str),
        incomplete=fields.of("incomplete", bool),
        adapters=tuple((_typed(number, int), _typed(name, str)) for number, name in fields.of("adapters", tuple)),
        cache=_cache(cache),
    )


def _cursor(fields: "_Fields") -> Cursor:
    expected = fields.number("expected", _SEQUENCE_MAX)
    fingerprints = fields.array("fingerprints", 8)
    covered_at = fields.any("covered_at")
    _check(len(fingerprints) <= 8 * expected, "more fingerprints than batches")
    _check(covered_at is None or isinstance(covered_at, float), "a time is a number")
    return Cursor(
        expected=expected,
        incarnation=fields.number("incarnation", _UINT64_MAX),
        life=fields.maybe_number("life", _UINT64_MAX),
        left=tuple((_in(life, _UINT64_MAX), _in(seen, _UINT64_MAX)) for life, seen in fields.of("left", tuple)),
        given_up_below=fields.number("given_up_below", _SEQUENCE_MAX),
        fingerprints=fingerprints,
        covered_at=covered_at,
    )


def _cache(fields: "_Fields") -> SavedCache:
    groups = fields.of("groups", tuple)
    places = fields.of("places", tuple)
    cache = SavedCache(
        unit=fields.number("unit", _BLOCK_TOKENS_MAX, least=1),
        lookahead=fields.number("lookahead", _BLOCK_TOKENS_MAX),
        bigram=fields.of("bigram", bool),
        clears_all_tiers=fields.of("clears_all_tiers", bool),
        names_namespaces=fields.of("names_namespaces", bool),
        groups=tuple(_group(*group) for group in groups),
        places=tuple(_place(*place) for place in places),
        idle=_meanings(*fields.of("idle", tuple)),
        namespaces=tuple((_maybe(salt), _maybe(lora)) for salt, lora in fields.of("namespaces", tuple)),
        namespaced=fields.array("namespaced", 8),
        namespace_of=fields.array("namespace_of", 4),
        inner=fields.array("inner", 8),
        inner_sizes=fields.array("inner_sizes", 4),
        inner_keys=fields.array("inner_keys", 8),
        orphans=_orphans(fields.of("orphans", bytes)),
    )
    _check(len(cache.namespaced) == 2 * len(cache.namespace_of), "every hash has a namespace")
    _check(len(cache.inner) == 2 * len(cache.inner_sizes), "every hash has inner keys")
    if cache.namespace_of:
        _check(int(np.frombuffer(cache.namespace_of, "<u4").max()) < len(cache.namespaces), "a namespace is missing")
    sizes = int(np.frombuffer(cache.inner_sizes, "<u4").sum(dtype=np.uint64))
    _check(8 * sizes == len(cache.inner_keys), "inner keys are missing")
    return cache


def _group(index: object, kind: object, block_size: object, window: object) -> SavedGroup:
    size = _in(block_size, _BLOCK_TOKENS_MAX)
    _check(size > 0, "a block has tokens")
    return SavedGroup(
        index=_in(index, _GROUPS_MAX - 1),
        kind=_maybe(kind),
        block_size=size,
        window=None if window is None else _typed(window, int),
    )


def _place(tier: object, group: object, counts: object, *blocks: object) -> SavedPlace:
    place = SavedPlace(
        tier=_typed(tier, str),
        group=_in(group, _GROUPS_MAX - 1),
        blocks=_meanings(*blocks),
        counts=_array(counts, 4),
    )
    _check(place.tier in TIERS, "a tier is unknown")
    _check(not place.counts or len(place.blocks.hashes) == 2 * len(place.counts), "every hash has a count")
    return place


def _meanings(hashes: object, keys: object, known: object) -> SavedMeanings:
    meanings = SavedMeanings(hashes=_array(hashes, 8), keys=_array(keys, 8), known=_array(known, 1))
    _check(len(meanings.hashes) == len(meanings.keys), "every hash has a key")
    _check(not meanings.known or 8 * len(meanings.known) == len(meanings.hashes), "every hash has a meaning or none")
    return meanings


def _orphans(payload: bytes) -> tuple[BlockStored, ...]:
    batch = decode_batch(payload)
    _check(not batch.skipped, "an orphan is not understood")
    return tuple(_orphan(event) for event in batch.events)


def _orphan(event: Event) -> BlockStored:
    stored = _typed(event, BlockStored)
    _check(stored.parent_block_hash is not None, "an orphan without a parent")
    return stored


def _pack(meanings: SavedMeanings) -> tuple[bytes, bytes, bytes]:
    return meanings.hashes, meanings.keys, meanings.known


class _Fields:
    """A map, whose values are checked as they are read."""

    def __init__(self, value: object) -> None:
        self._values: Mapping[object, Any] = _typed(value, dict)

    def any(self, name: str) -> Any:
        """Whatever it is."""
        return self._values[name]

    def of(self, name: str, kind: type[T]) -> T:
        """A value of that type."""
        return _typed(self._values[name], kind)

    def maybe(self, name: str, kind: type[T]) -> T | None:
        """A value of that type, or none."""
        value = self._values[name]
        return None if value is None else _typed(value, kind)

    def number(self, name: str, most: int, *, least: int = 0) -> int:
        """An integer from `least` to `most`."""
        value = _in(self._values[name], most)
        _check(value >= least, f"{name} is too small")
        return value

    def maybe_number(self, name: str, most: int) -> int | None:
        """An integer from 0 to `most`, or none."""
        return None if self._values[name] is None else self.number(name, most)

    def array(self, name: str, width: int) -> bytes:
        """The bytes of numbers of that width."""
        return _array(self._values[name], width)


def _array(value: object, width: int) -> bytes:
    data = _typed(value, bytes)
    _check(len(data) % width == 0, "an array is cut")
    return data


def _maybe(value: object) -> str | None:
    return None if value is None else _typed(value, str)


def _in(value: object, most: int) -> int:
    number = _typed(value, int)
    _check(0 <= number <= most, "a number is out of bounds")
    return number


def _typed(value: object, kind: type[T]) -> T:
    _check(isinstance(value, kind) and (kind is bool or not isinstance(value, bool)), f"not of type {kind.__name__}")
    return cast("T", value)


def _check(sound: bool, what: str) -> None:  # noqa: FBT001 - it is the question itself
    if not sound:
        raise SnapshotError(f"saved ingest state is damaged: {what}")
