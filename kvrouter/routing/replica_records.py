"""What one router tells the other routers of its fleet: how busy it keeps each rank. Codec only.

One JSON object per router, its ranks as arrays, so that it is short and an operator can read it in the store. A
record is whole: whoever reads the last one knows everything, and those between need not be seen.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from kvrouter.errors import WireError

__all__ = ["RANKS_MAX", "VERSION", "RankShare", "ReplicaRecord", "decode_record", "encode_record"]

VERSION: Final = 1
RANKS_MAX: Final = 4096
"""Ranks that one record may name; as many as one router serves."""
_BYTES_MAX: Final = 256 << 10
"""What a key-value store holds."""

_Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256)]
_Count: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 32)]
_Tokens: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 44)]
_Serial: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 53)]


class RankShare(msgspec.Struct, frozen=True, array_like=True):
    """What one router has booked on one rank.

    Attributes:
        worker_id: the worker.
        rank: of it.
        requests: that were sent there and have not ended.
        waiting: of them, those without a first token.
        prefill_tokens: prompt tokens that the rank has not computed yet.
        prefill_pairs: the same in pairs of a token and one before it.
        decode_blocks: KV blocks that the requests occupy.
        arrivals: requests that this router ever sent there; only ever grows.
    """

    worker_id: _Name
    rank: _Count
    requests: _Count
    waiting: _Count
    prefill_tokens: _Tokens
    prefill_pairs: _Serial
    decode_blocks: _Tokens
    arrivals: _Serial


class ReplicaRecord(msgspec.Struct, frozen=True):
    """All that one router tells.

    Attributes:
        replica_id: names one life of one router.
        number: grows with each record of a life.
        lease_seconds: after so long without another record the router is taken for dead.
        ranks: those that it keeps busy; it has nothing on the others.
        version: of this form.
    """

    replica_id: _Name
    number: _Serial
    lease_seconds: Annotated[float, Meta(gt=0, le=3600)]
    ranks: Annotated[tuple[RankShare, ...], Meta(max_length=RANKS_MAX)]
    version: Annotated[int, Meta(ge=VERSION, le=VERSION)] = VERSION


_decoder: Final = msgspec.json.Decoder(ReplicaRecord)
_encoder: Final = msgspec.json.Encoder()
_ELEMENT: Final = re.compile(r"\$\.ranks\[[^]]*\]\[(\d+)\]")
_MEMBER: Final = re.compile(r"`\$\.(\w+)")
_MISSING: Final = re.compile(r"missing required field `(\w+)`")


def encode_record(record: ReplicaRecord) -> tuple[bytes, int]:
    """Return the bytes, and how many of its ranks had no room in them: the least busy ones."""
    ranks: Sequence[RankShare] = record.ranks
    if len(ranks) > RANKS_MAX:
        ranks = _busiest(ranks, RANKS_MAX)
    data = _encode(record, ranks)
    while len(data) > _BYTES_MAX:
        ranks = _busiest(ranks, min(len(ranks) * _BYTES_MAX // len(data), len(ranks) - 1))
        data = _encode(record, ranks)
    return data, len(record.ranks) - len(ranks)


def decode_record(data: bytes, replica_id: str) -> ReplicaRecord:
    """Read the record that stands under the name of a router.

    Raises:
        WireError: it is too long, malformed, or contradicts itself; `reason` names the field.
    """
    if len(data) > _BYTES_MAX:
        raise WireError(f"replica record: {len(data)} bytes exceed {_BYTES_MAX}", reason="bytes")
    try:
        record = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        field = _field(str(error))
        raise WireError(f"replica record: {field}: {error}", reason=field) from None
    if record.replica_id != replica_id:
        raise WireError(f"replica record: replica_id: {record.replica_id!r} is not its key", reason="replica_id")
    if len({(each.worker_id, each.rank) for each in record.ranks}) < len(record.ranks):
        raise WireError("replica record: ranks: one is named twice", reason="ranks")
    for each in record.ranks:
        if each.waiting > each.requests:
            raise WireError(f"replica record: waiting: {each.waiting} of {each.requests} requests", reason="waiting")
    return record


def _encode(record: ReplicaRecord, ranks: Sequence[RankShare]) -> bytes:
    return _encoder.encode(msgspec.structs.replace(record, ranks=tuple(ranks)))


def _busiest(ranks: Sequence[RankShare], count: int) -> list[RankShare]:
    return sorted(ranks, key=lambda each: (each.prefill_tokens, each.requests), reverse=True)[:count]


def _field(problem: str) -> str:
    """The field that a message of the decoder speaks of; `record` where it is none."""
    element = _ELEMENT.search(problem)
    if element is not None and int(element[1]) < len(RankShare.__struct_fields__):
        return RankShare.__struct_fields__[int(element[1])]
    found = _MISSING.search(problem) or _MEMBER.search(problem)
    return found[1] if found is not None and found[1] in ReplicaRecord.__struct_fields__ else "record"
