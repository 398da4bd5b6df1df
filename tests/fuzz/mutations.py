"""Frames that nobody meant: sound ones damaged in the ways of networks and of programs, and bytes out of nothing."""

import random
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgpack

__all__ = ["frames"]

_SPLICES_MAX: Final = 4
_DEPTH_MAX: Final = 5
_NUMBERS: Final = (0, 1, -1, 127, 128, 255, 2**15, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -(2**63))
_TEXTS: Final = (
    "type", "BlockStored", "BlockRemoved", "AllBlocksCleared", "block_hashes", "parent_block_hash", "token_ids",
    "block_size", "medium", "GPU", "CPU", "extra_keys", "group_idx", "kv_cache_spec_kind", "sliding_window",
    "sequence_hashes", "lookahead_token_ids", "kvrouter", "worker", "rank", "incarnation", "sequence", "time", "bytes",
    "snapshot", "digest", "", "\u2028", "x" * 300,
)  # fmt: skip
_MARKS: Final = (
    0x80,
    0x8F,
    0x90,
    0x9F,
    0xA0,
    0xBF,
    0xC0,
    0xC1,
    0xC4,
    0xC6,
    0xC9,
    0xCB,
    0xCF,
    0xDB,
    0xDC,
    0xDD,
    0xDE,
    0xDF,
)


def frames(corpus: Sequence[bytes], count: int, *, seed: int) -> Iterator[bytes]:
    """So many frames: most of them damaged ones of `corpus`, the others invented."""
    choose = random.Random(seed)
    for _ in range(count):
        kind = choose.random()
        if kind < 0.4:
            yield _damaged(choose, corpus)
        elif kind < 0.8:
            yield _rewritten(choose, choose.choice(corpus))
        elif kind < 0.95:
            yield _invented(choose)
        else:
            yield choose.randbytes(choose.randrange(80))


def _damaged(choose: random.Random, corpus: Sequence[bytes]) -> bytes:
    frame = bytearray(choose.choice(corpus))
    for _ in range(choose.randint(1, _SPLICES_MAX)):
        position = choose.randrange(len(frame) + 1)
        end = min(len(frame), position + choose.choice((1, 1, 2, 4, 9, 40)))
        kind = choose.randrange(7)
        if kind == 0:
            del frame[position:end]
        elif kind == 1:
            frame[position:end] = choose.randbytes(end - position)
        elif kind == 2:
            frame[position:position] = frame[position:end]
        elif kind == 3:
            other = choose.choice(corpus)
            start = choose.randrange(len(other) + 1)
            frame[position:end] = other[start : start + end - position]
        elif kind == 4:
            del frame[position:]
        elif kind == 5:
            frame[position:end] = bytes([choose.choice(_MARKS)])
        elif position < len(frame):
            frame[position] ^= 1 << choose.randrange(8)
    return bytes(frame)


def _rewritten(choose: random.Random, frame: bytes) -> bytes:
    """The same in other words: one value is another one, and the lengths are right."""
    unpacker = msgpack.Unpacker(strict_map_key=False, unicode_errors="replace")
    unpacker.feed(frame)
    parts = list(unpacker)
    position = choose.randrange(len(parts))
    parts[position] = _changed(choose, parts[position])
    packed = [bytes(msgpack.packb(part)) for part in parts]
    if isinstance(parts[0], dict) and "bytes" in parts[0] and choose.random() < 0.9:
        packed[0] = bytes(msgpack.packb(parts[0] | {"bytes": sum(map(len, packed[1:]))}))
    return b"".join(packed)


def _changed(choose: random.Random, value: Any) -> Any:
    if isinstance(value, list) and value and choose.random() < 0.9:
        position = choose.randrange(len(value))
        return [*value[:position], _changed(choose, value[position]), *value[position + 1 :]]
    if isinstance(value, dict) and value and choose.random() < 0.9:
        key = choose.choice(list(value))
        return value | {key: _changed(choose, value[key])}
    return choose.choice((_value(choose, 2), value, [value, value], {"type": value}))


def _invented(choose: random.Random) -> bytes:
    """Sound msgpack of a shape that may be anything; half of it looks like a batch or a header."""
    if choose.random() < 0.5:
        events = [_event(choose) for _ in range(choose.randrange(4))]
        return bytes(msgpack.packb([choose.random(), events, _value(choose, 1)]))
    return bytes(msgpack.packb(_value(choose, 0)))


def _event(choose: random.Random) -> Any:
    values = [choose.choice(_TEXTS[1:4]), *(_value(choose, 2) for _ in range(choose.randrange(14)))]
    if choose.random() < 0.5:
        return values
    return {"type": values[0]} | {choose.choice(_TEXTS): value for value in values[1:]}


def _value(choose: random.Random, depth: int) -> Any:
    kind = choose.randrange(8 if depth < _DEPTH_MAX else 5)
    if kind == 0:
        return choose.choice((None, True, False, choose.random(), float("inf"), float("nan")))
    if kind == 1:
        return choose.choice(_NUMBERS)
    if kind == 2:
        return choose.randrange(40)
    if kind == 3:
        return choose.choice(_TEXTS)
    if kind == 4:
        return choose.randbytes(choose.choice((0, 1, 8, 32)))
    if kind == 5:
        return {choose.choice(_TEXTS): _value(choose, depth + 1) for _ in range(choose.randrange(5))}
    return [_value(choose, depth + 1) for _ in range(choose.randrange(6))]
