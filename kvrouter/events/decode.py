"""Payload bytes of vLLM, SGLang, TensorRT-LLM streaming and Mooncake to events; never trusts, never fails on one event.

A payload is `[timestamp, [event, ...], data_parallel_rank?]` in msgpack. Each event is
an array with its tag first (vLLM up to 0.23, SGLang up to 0.5.18) or a map with a `type`
(later versions, and everybody else); the msgpack type of each event decides. What does
not fit is left out and counted in `EventBatch.skipped`; unknown fields are ignored and
counted as well, because tomorrow's engine sends more than today's.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from struct import Struct
from typing import Final, cast

import msgpack

from kvrouter.errors import WireError
from kvrouter.events.model import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    Event,
    EventBatch,
    ExtraKey,
    PoolObject,
)

__all__ = [
    "BLOCK_TOKENS_MAX",
    "EVENTS_PER_BATCH_MAX",
    "HASHES_PER_EVENT_MAX",
    "PAYLOAD_BYTES_MAX",
    "TOKENS_PER_EVENT_MAX",
    "decode_batch",
    "decode_event",
    "peek_timestamp",
]

PAYLOAD_BYTES_MAX: Final = 64 << 20
EVENTS_PER_BATCH_MAX: Final = 1 << 18
HASHES_PER_EVENT_MAX: Final = 1 << 20
TOKENS_PER_EVENT_MAX: Final = 1 << 22
BLOCK_TOKENS_MAX: Final = 1 << 16

_UINT64: Final = 2**64 - 1
_FIXED_ARRAY: Final = 0x90  # msgpack's marks, for the one look that is not worth a whole decoding
_FLOAT64: Final = 0xCB
_UNPACK_FLOAT64: Final = Struct(">d").unpack_from
_MILLISECONDS_FROM: Final = 100_000_000_000  # As seconds this is the year 5138, so it must be milliseconds.

# Positions in the array encoding; trailing defaults may be absent.
_STORED_FIELDS: Final = (
    "type",
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
    "kv_cache_spec_sliding_window",
)
_REMOVED_FIELDS: Final = ("type", "block_hashes", "medium", "group_idx")
_UNNAMED: Final = ("unnamed_1", "unnamed_2", "unnamed_3", "unnamed_4")

# Mooncake's master describes pool objects with these names; `event_type` may replace `type`.
_POOL_FIELDS: Final = frozenset(
    [
        "event_id",
        "timestamp",
        "event_type",
        "model_name",
        "additional_salt",
        "tenant_id",
        "backend_id",
        "group_id",
        "dp_rank",
        "object_key",
        "seq_hashes",
        "base_block_idx",
        "parent_hash",
    ]
)
_STORED_KEYS: Final = (
    frozenset(_STORED_FIELDS)
    | _POOL_FIELDS
    | {"locality", "ownership", "session_id", "cache_salt", "lookahead_token_ids", "mm_keys", "sequence_hashes"}
)
_REMOVED_KEYS: Final = (
    frozenset(_REMOVED_FIELDS) | _POOL_FIELDS | {"locality", "ownership", "block_size", "lora_name", "token_ids"}
)
_TAG_BY_EVENT_TYPE: Final = {"stored": "BlockStored", "removed": "BlockRemoved", "cleared": "AllBlocksCleared"}

_Fields = Mapping[object, object]


class _SkipEventError(Exception):
    """One event cannot be used; the text is the reason's label. Never leaves this module."""


def decode_batch(payload: bytes) -> EventBatch:
    """Decode one batch of events.

    Raises:
        WireError: the envelope itself is unusable; `reason` says how.
    """
    envelope = _unpack(payload)
    if not isinstance(envelope, tuple) or len(envelope) < 2 or not isinstance(envelope[1], tuple):
        raise WireError("a batch is an array of a timestamp and an array of events", reason="bad_envelope")
    if len(envelope[1]) > EVENTS_PER_BATCH_MAX:
        raise WireError(f"{len(envelope[1])} events exceed {EVENTS_PER_BATCH_MAX}", reason="too_many_events")
    skipped: Counter[str] = Counter()
    events = []
    for raw in envelope[1]:
        event = _event_or_none(raw, skipped)
        if event is not None:
            events.append(event)
    return EventBatch(
        timestamp=_seconds(envelope[0]),
        events=tuple(events),
        data_parallel_rank=_rank(envelope[2]) if len(envelope) > 2 else None,
        skipped=skipped,
    )


def decode_event(data: bytes, skipped: Counter[str]) -> Event | None:
    """Decode one event of a batch; what is left out of it is counted in `skipped`. None: all of it.

    Raises:
        WireError: it is not msgpack.
    """
    return _event_or_none(_unpack(data), skipped)


def peek_timestamp(payload: bytes) -> float | None:
    """Return the time of a batch without decoding it; None where it is not the usual eight-byte float."""
    if len(payload) < 10 or payload[0] & 0xF0 != _FIXED_ARRAY or payload[1] != _FLOAT64:
        return None
    (seconds,) = _UNPACK_FLOAT64(payload, 2)
    return float(seconds)


def _unpack(payload: bytes) -> object:
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise WireError(f"a payload of {len(payload)} bytes exceeds {PAYLOAD_BYTES_MAX}", reason="too_large")
    try:
        return msgpack.unpackb(payload, use_list=False, strict_map_key=False, unicode_errors="replace")
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        # A TypeError is a map used as a key; all the others say what they are.
        raise WireError(f"not msgpack: {type(error).__name__}", reason="not_msgpack") from error


def _seconds(value: object) -> float:
    if isinstance(value, int):
        return value / 1000 if value > _MILLISECONDS_FROM else float(value)
    return value if isinstance(value, float) else 0.0


def _rank(value: object) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 2**32 else None


def _event_or_none(raw: object, skipped: Counter[str]) -> Event | None:
    try:
        return _event(raw, skipped)
    except _SkipEventError as skip:
        skipped[str(skip)] += 1
        return None


def _event(raw: object, skipped: Counter[str]) -> Event:
    if isinstance(raw, dict):
        tag, fields = _map_tag(raw), cast("_Fields", raw)
    elif isinstance(raw, tuple) and raw:
        tag = raw[0]
        # Only the names that this encoding ever had; elements beyond them are of a version that we do not know.
        names = _REMOVED_FIELDS if tag == "BlockRemoved" else _STORED_FIELDS
        fields = dict(zip(names, raw, strict=False))
        if len(raw) > len(names):
            fields.update(zip(_UNNAMED, raw[len(names) :], strict=False))
    else:
        raise _SkipEventError("not_an_event")
    entry = _DECODERS.get(tag) if isinstance(tag, str) else None
    if entry is None:
        raise _SkipEventError("unknown_event")
    decoder, known = entry
    if not fields.keys() <= known:
        skipped["unknown_field"] += len(fields.keys() - known)
    return decoder(fields, skipped)


def _map_tag(fields: Mapping[object, object]) -> object:
    tag = fields.get("type")
    if tag is None:
        event_type = fields.get("event_type")
        return _TAG_BY_EVENT_TYPE.get(event_type) if isinstance(event_type, str) else None
    return tag


def _stored(fields: _Fields, skipped: Counter[str]) -> BlockStored:
    get = fields.get
    pool = _pool(fields)
    hashes = _own_hashes(fields, pool)
    token_ids, following = _tokens(get("token_ids"))
    if following is None:
        lookahead = _lookahead(get("lookahead_token_ids"), len(hashes))
    else:
        lookahead = _bigram_lookahead(token_ids, following, len(hashes))
    return BlockStored(
        block_hashes=hashes,
        parent_block_hash=_parent(get("parent_block_hash"), get("parent_hash")),
        token_ids=token_ids,
        block_size=_block_size(get("block_size")),
        lora_id=_integer(get("lora_id")),
        medium=_text(get("medium")),
        lora_name=_text(get("lora_name")),
        extra_keys=_per_block(get("extra_keys"), len(hashes)),
        group_idx=_integer(get("group_idx")),
        kv_cache_spec_kind=_text(get("kv_cache_spec_kind")),
        kv_cache_spec_sliding_window=_integer(get("kv_cache_spec_sliding_window")),
        locality=_text(get("locality")),
        ownership=_remark(get("ownership"), skipped),
        session_id=_remark(get("session_id"), skipped),
        cache_salt=_text(get("cache_salt", get("additional_salt"))),
        lookahead_token_ids=lookahead,
        mm_keys=_per_block(get("mm_keys"), len(hashes)),
        bigram=following is not None,
        sequence_hashes=_sequence_hashes(get("sequence_hashes"), len(hashes)),
        pool=pool,
    )


def _removed(fields: _Fields, skipped: Counter[str]) -> BlockRemoved:
    get = fields.get
    pool = _pool(fields)
    return BlockRemoved(
        block_hashes=_own_hashes(fields, pool),
        medium=_text(get("medium")),
        group_idx=_integer(get("group_idx")),
        locality=_text(get("locality")),
        ownership=_remark(get("ownership"), skipped),
        pool=pool,
    )


def _cleared(_fields: _Fields, _skipped: Counter[str]) -> AllBlocksCleared:
    return AllBlocksCleared()


_DECODERS: Final[Mapping[object, tuple[Callable[[_Fields, Counter[str]], Event], frozenset[str]]]] = {
    "BlockStored": (_stored, _STORED_KEYS),
    "BlockRemoved": (_removed, _REMOVED_KEYS),
    "AllBlocksCleared": (_cleared, _STORED_KEYS | _REMOVED_KEYS),
}


def _own_hashes(fields: _Fields, pool: PoolObject | None) -> tuple[int, ...]:
    hashes = fields.get("block_hashes")
    if hashes is None and pool is not None:
        return pool.seq_hashes
    return _hashes(hashes)


def _hashes(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple):
        raise _SkipEventError("bad_hashes")
    if len(value) > HASHES_PER_EVENT_MAX:
        raise _SkipEventError("too_many_hashes")
    try:
        array("Q", value)  # One pass in C says that all are plain unsigned 64-bit numbers.
    except (TypeError, OverflowError):
        return tuple(_hash(item) for item in value)
    return cast("tuple[int, ...]", value)


def _hash(value: object) -> int:
    if isinstance(value, int):
        return value & _UINT64
    if isinstance(value, bytes) and value:
        return int.from_bytes(value[-8:], "big")  # What vLLM itself does to make an integer of a digest.
    raise _SkipEventError("bad_hashes")


def _parent(block_hash: object, pool_hash: object) -> int | None:
    value = pool_hash if block_hash is None else block_hash
    if value is None:
        return None
    if isinstance(value, int | bytes) and value != b"":
        return _hash(value)
    raise _SkipEventError("bad_parent")


def _tokens(value: object) -> tuple[tuple[int, ...], int | None]:
    """Return the tokens and, if they came as bigrams, the token that follows them."""
    if value is None:
        return (), None
    if not isinstance(value, tuple):
        raise _SkipEventError("bad_tokens")
    if len(value) > TOKENS_PER_EVENT_MAX:
        raise _SkipEventError("too_many_tokens")
    if value and isinstance(value[0], tuple):
        return _bigrams(value)
    return _checked_tokens(value), None


def _bigrams(pairs: tuple[object, ...]) -> tuple[tuple[int, ...], int]:
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise _SkipEventError("bad_tokens")
    firsts, seconds = zip(*cast("tuple[tuple[int, int], ...]", pairs), strict=True)
    if firsts[1:] != seconds[:-1]:
        raise _SkipEventError("bad_tokens")
    *tokens, following = _checked_tokens((*firsts, seconds[-1]))
    return tuple(tokens), following


def _checked_tokens(value: tuple[object, ...]) -> tuple[int, ...]:
    try:
        array("I", cast("Iterable[int]", value))
    except (TypeError, OverflowError):
        raise _SkipEventError("bad_tokens") from None
    return cast("tuple[int, ...]", value)


def _lookahead(value: object, blocks: int) -> tuple[tuple[int, ...], ...] | None:
    if value is None:
        return None
    if not isinstance(value, tuple) or len(value) != blocks:
        raise _SkipEventError("bad_lookahead")
    return tuple(_tokens_of_lookahead(tokens) for tokens in value)


def _tokens_of_lookahead(tokens: object) -> tuple[int, ...]:
    if tokens is None:
        return ()
    if not isinstance(tokens, tuple):
        raise _SkipEventError("bad_lookahead")
    return _checked_tokens(tokens)


def _bigram_lookahead(tokens: tuple[int, ...], following: int, blocks: int) -> tuple[tuple[int, ...], ...]:
    """Each block's hash also covers the first token after it."""
    size = len(tokens) // blocks if blocks else 0
    if not size or size * blocks != len(tokens):
        raise _SkipEventError("bad_tokens")
    return tuple((token,) for token in (*tokens[size::size], following))


def _block_size(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, int) and 0 <= value <= BLOCK_TOKENS_MAX:
        return value
    raise _SkipEventError("bad_block_size")


def _integer(value: object) -> int | None:
    if value is None or isinstance(value, int):
        return value
    raise _SkipEventError("bad_field")


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise _SkipEventError("bad_field")


def _remark(value: object, skipped: Counter[str]) -> str | None:
    """Return a field that changes nothing here, so that a wrong one need not cost the event."""
    if value is None or isinstance(value, str):
        return value
    skipped["unknown_field"] += 1
    return None


def _per_block(value: object, blocks: int) -> tuple[ExtraKey, ...] | None:
    if value is None:
        return None
    if not isinstance(value, tuple) or len(value) != blocks:
        raise _SkipEventError("bad_extra_keys")
    return tuple(item if item is None or isinstance(item, tuple) else (item,) for item in value)


def _sequence_hashes(value: object, blocks: int) -> tuple[int | None, ...] | None:
    if value is None:
        return None
    if not isinstance(value, tuple) or len(value) != blocks:
        raise _SkipEventError("bad_sequence_hashes")
    for item in value:
        if item is not None and (not isinstance(item, int) or isinstance(item, bool) or not 0 <= item <= _UINT64):
            raise _SkipEventError("bad_sequence_hashes")
    return value


def _pool(fields: _Fields) -> PoolObject | None:
    if "event_type" not in fields:
        return None
    get = fields.get
    return PoolObject(
        event_id=_integer(get("event_id")),
        model_name=_text(get("model_name")),
        tenant_id=_text(get("tenant_id")),
        backend_id=_text(get("backend_id")),
        group_id=_text(get("group_id")),
        object_key=_text(get("object_key")),
        base_block_idx=_integer(get("base_block_idx")),
        dp_rank=_integer(get("dp_rank")),
        seq_hashes=_hashes(get("seq_hashes", ())),
    )
