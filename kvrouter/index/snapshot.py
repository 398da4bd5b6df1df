"""The bytes of a saved index: versioned, checksummed, and refused when anything about them is wrong.

Layout, all little-endian: magic, version (u32), XXH3-64 of the rest (u64), number of tiers (u32); then per tier the
length and text of its name, the number and width of its rank sets, the sets as bit masks, the number of blocks, their
hashes (u64 each), for each the number of its rank set (u32) and a mark of what it follows (u8). A mark is 0, or 128
plus a position 0..31 plus, if the block follows the one before it in the table, 32. An implementation need not write
any, and need not look at them.
"""

import struct

import numpy as np
from xxhash import xxh3_64, xxh3_64_intdigest

from kvrouter.errors import SnapshotError
from kvrouter.index.overlap import RANKS_MAX

__all__ = ["decode_tables", "encode_tables", "seal", "unseal"]

_HEAD = struct.Struct("<8sIQI")
_MAGIC = b"kvrindex"
_VERSION = 2
_TIER = struct.Struct("<HIIQ")
_CHECKED_FROM = 20
_WIDTH_MAX = RANKS_MAX // 8


def seal(tables: bytes, tiers: int) -> bytes:
    """Put the head in front of the tables of so many tiers."""
    checksum = xxh3_64(tiers.to_bytes(4, "little"))
    checksum.update(tables)
    return _HEAD.pack(_MAGIC, _VERSION, checksum.intdigest(), tiers) + tables


def unseal(buffer: bytes | bytearray | memoryview) -> tuple[memoryview, int]:
    """The tables and the number of tiers that a sound snapshot holds.

    Raises:
        SnapshotError: it is none.
    """
    data = memoryview(buffer).cast("B")
    if len(data) < _HEAD.size:
        raise SnapshotError("index snapshot is damaged: it ends within its head")
    magic, version, checksum, tiers = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise SnapshotError("this is not an index snapshot")
    if version != _VERSION:
        raise SnapshotError(f"index snapshot of version {version}; this program reads version {_VERSION}")
    if xxh3_64_intdigest(data[_CHECKED_FROM:]) != checksum:
        raise SnapshotError("index snapshot is damaged: its checksum does not match")
    return data[_HEAD.size :], tiers


def encode_tables(tables: dict[str, dict[int, int]]) -> bytes:
    """Tier to (hash to rank set), as bytes."""
    return seal(b"".join(_encode_table(tier, table) for tier, table in tables.items()), len(tables))


def decode_tables(buffer: bytes | bytearray | memoryview) -> dict[str, dict[int, int]]:
    """The inverse of `encode_tables`; raises SnapshotError for anything that it did not write."""
    data, tiers = unseal(buffer)
    tables: dict[str, dict[int, int]] = {}
    offset = 0
    try:
        for _ in range(tiers):
            tier, table, offset = _decode_table(data, offset)
            if tier in tables:
                raise SnapshotError("index snapshot is damaged: a tier appears twice")
            tables[tier] = table
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise SnapshotError(f"index snapshot is damaged: {error}") from error
    if offset != len(data):
        raise SnapshotError("index snapshot is damaged: its length does not fit its contents")
    return tables


def _encode_table(tier: str, table: dict[int, int]) -> bytes:
    name = tier.encode()
    numbers: dict[int, int] = {}
    ids = np.fromiter((numbers.setdefault(ranks, len(numbers)) for ranks in table.values()), "<u4", len(table))
    width = (max(numbers, default=0).bit_length() + 7) // 8
    sets = b"".join(ranks.to_bytes(width, "little") for ranks in numbers)
    hashes = np.fromiter(table, "<u8", len(table))
    head = _TIER.pack(len(name), len(numbers), width, len(table))
    return b"".join((head, name, sets, hashes.tobytes(), ids.tobytes(), bytes(len(table))))


def _decode_table(data: memoryview, offset: int) -> tuple[str, dict[int, int], int]:
    name_length, set_count, width, blocks = _TIER.unpack_from(data, offset)
    offset += _TIER.size
    lengths = (name_length, set_count * width, 8 * blocks, 4 * blocks, blocks)
    if width > _WIDTH_MAX or offset + sum(lengths) > len(data):
        raise SnapshotError("index snapshot is damaged: a table is longer than the snapshot")
    parts = []
    for length in lengths:
        parts.append(data[offset : offset + length])
        offset += length
    name, sets, hashes, ids, _ = parts
    masks = [int.from_bytes(sets[start : start + width], "little") for start in range(0, len(sets), max(width, 1))]
    numbers = np.frombuffer(ids, "<u4")
    if not all(masks) or (blocks and int(numbers.max()) >= len(masks)):
        raise SnapshotError("index snapshot is damaged: a block has no rank set")
    table = dict(zip(np.frombuffer(hashes, "<u8").tolist(), map(masks.__getitem__, numbers.tolist()), strict=True))
    if len(table) != blocks:
        raise SnapshotError("index snapshot is damaged: a block appears twice")
    return bytes(name).decode(), table, offset
