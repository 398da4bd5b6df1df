"""What routers tell each other on the wire: read back as it was, refused by name where it is wrong, bounded."""

from typing import Any

import msgspec
import pytest

from kvrouter.errors import WireError
from kvrouter.routing.replica_records import RankShare, ReplicaRecord, decode_record, encode_record
from kvrouter.store.key_values import VALUE_BYTES_MAX

SHARE: list[Any] = ["w", 0, 3, 1, 2000, 4_000_000, 40, 17]
RECORD: dict[str, Any] = {"replica_id": "a", "number": 7, "lease_seconds": 5.0, "ranks": [SHARE], "version": 1}
GOLDEN = b'{"replica_id":"a","number":7,"lease_seconds":5.0,"ranks":[["w",0,3,1,2000,4000000,40,17]],"version":1}'


def _encoded(**changes: Any) -> bytes:
    return msgspec.json.encode({key: value for key, value in {**RECORD, **changes}.items() if value is not None})


def _with(at: int, value: Any) -> list[Any]:
    return [[*SHARE[:at], value, *SHARE[at + 1 :]]]


def test_a_record_is_read_as_it_was_written() -> None:
    """And has the bytes that routers of other versions know."""
    record = ReplicaRecord("a", 7, 5.0, (RankShare("w", 0, 3, 1, 2000, 4_000_000, 40, 17),))

    assert encode_record(record) == (GOLDEN, 0)
    assert decode_record(GOLDEN, "a") == record


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"", "record"),
        (b"\xff\xfe", "record"),
        (b"[1]", "record"),
        (b"[" * 100_000, "record"),
        (b" " * (VALUE_BYTES_MAX + 1), "bytes"),
        (_encoded(number=None), "number"),
        (_encoded(number=-1), "number"),
        (_encoded(number=1.5), "number"),
        (_encoded(lease_seconds=0), "lease_seconds"),
        (_encoded(lease_seconds=1e9), "lease_seconds"),
        (_encoded(version=2), "version"),
        (_encoded(replica_id=""), "replica_id"),
        (_encoded(replica_id="b"), "replica_id"),
        (_encoded(ranks=[SHARE, SHARE]), "ranks"),
        (_encoded(ranks={}), "ranks"),
        (_encoded(ranks=_with(0, "")), "worker_id"),
        (_encoded(ranks=_with(1, -1)), "rank"),
        (_encoded(ranks=_with(2, "3")), "requests"),
        (_encoded(ranks=_with(3, 4)), "waiting"),
        (_encoded(ranks=_with(4, 1 << 45)), "prefill_tokens"),
        (_encoded(ranks=_with(5, -1)), "prefill_pairs"),
        (_encoded(ranks=_with(6, None)), "decode_blocks"),
        (_encoded(ranks=_with(7, True)), "arrivals"),
        (_encoded(ranks=[SHARE[:5]]), "ranks"),
    ],
)
def test_what_is_wrong_is_refused_by_its_name(data: bytes, field: str) -> None:
    """A counter has the name as its label, so it is one of few words."""
    with pytest.raises(WireError) as refused:
        decode_record(data, "a")

    assert refused.value.reason == field


def test_fields_of_later_versions_are_passed_over() -> None:
    """Routers of two versions run side by side while a fleet is renewed."""
    decoded = decode_record(_encoded(colour="green", ranks=[[*SHARE, 99]]), "a")

    assert decoded.number == 7
    assert decoded.ranks[0].arrivals == 17


def test_a_record_that_is_too_long_tells_of_the_busiest_ranks() -> None:
    """A store takes values of a bounded size; what is left out is said."""
    shares = tuple(RankShare("w" * 100 + str(each), 0, 1, 0, each, 0, 1, 1) for each in range(5000))

    data, left_out = encode_record(ReplicaRecord("a", 1, 5.0, shares))
    kept = decode_record(data, "a").ranks

    assert len(data) <= VALUE_BYTES_MAX
    assert left_out == 5000 - len(kept)
    assert min(each.prefill_tokens for each in kept) == left_out
