"""Load reports on the wire: what was written is read, whatever else is read is bounded and passed over."""

import json
import math
import random
from dataclasses import replace
from itertools import pairwise

import msgpack
import pytest

from kvrouter.errors import WireError
from kvrouter.events import Source
from kvrouter.events.load import (
    LOAD_BYTES_MAX,
    LoadOutbox,
    LoadReport,
    decode_load,
    encode_load,
    load_from_record,
    load_record,
)

FULL = LoadReport(
    worker_id="worker-a",
    rank=3,
    timestamp=1750000000.5,
    request_active_slots=7,
    request_total_slots=256,
    num_requests_waiting=2,
    prefill_tokens_waiting=9000,
    kv_active_blocks=500,
    kv_total_blocks=1000,
    gpu_cache_usage_perc=0.5,
    gpu_prefix_cache_hit_rate=0.25,
)


@pytest.mark.parametrize("encoding", ["msgpack", "json"])
@pytest.mark.parametrize("report", [FULL, LoadReport(worker_id="w"), replace(FULL, kv_total_blocks=None)])
def test_what_was_encoded_is_decoded(encoding: str, report: LoadReport) -> None:
    """In both encodings, and with figures that are not known."""
    assert decode_load(encode_load(report, encoding=encoding)) == report  # type: ignore[arg-type]


def test_the_record_has_the_names_and_groups_of_forward_pass_metrics() -> None:
    """Consumers of Dynamo's record find everything where they look."""
    assert load_record(FULL) == {
        "worker_id": "worker-a",
        "timestamp": 1750000000.5,
        "data": {
            "worker_stats": {
                "data_parallel_rank": 3,
                "request_active_slots": 7,
                "request_total_slots": 256,
                "num_requests_waiting": 2,
                "prefill_tokens_waiting": 9000,
            },
            "kv_stats": {
                "kv_active_blocks": 500,
                "kv_total_blocks": 1000,
                "gpu_cache_usage_perc": 0.5,
                "gpu_prefix_cache_hit_rate": 0.25,
            },
        },
    }


@pytest.mark.parametrize(
    "record",
    [
        {"worker_id": "w", "data_parallel_rank": 1, "kv_active_blocks": 5},
        {"worker_id": "w", "rank": 1, "kv_active_blocks": 5},
        {"worker_id": "w", "kv_stats": {"kv_active_blocks": 5}, "worker_stats": {"data_parallel_rank": 1}},
        {"worker_id": "w", "data": {"kv_active_blocks": 5, "data_parallel_rank": 1}},
        {"worker_id": "w", "data": {"kv_stats": {"kv_active_blocks": 5, "new": []}, "rank": 1}, "spec_decode_stats": 7},
    ],
)
def test_figures_are_found_wherever_a_sender_puts_them(record: dict[str, object]) -> None:
    """In their groups, in `data`, or beside the worker."""
    assert load_from_record(record) == LoadReport(worker_id="w", rank=1, kv_active_blocks=5)


@pytest.mark.parametrize("value", [-1, "7", None, True, [], {}, 2**60, math.nan, math.inf, b"x"])
def test_a_figure_that_cannot_be_meant_is_not_known(value: object) -> None:
    """The others are kept."""
    record = {"worker_id": "w", "data": {"kv_stats": {"kv_active_blocks": value, "kv_total_blocks": 9}}}

    report = decode_load(msgpack.packb(record))

    assert (report.kv_active_blocks, report.kv_total_blocks) == (None, 9)


def test_shares_are_cut_at_one() -> None:
    """Engines round."""
    report = load_from_record({"worker_id": "w", "gpu_cache_usage_perc": 1.0000001})

    assert report.gpu_cache_usage_perc == 1.0


def test_a_number_as_worker_is_its_name() -> None:
    """Dynamo's workers are numbers."""
    assert load_from_record({"worker_id": 694, "kv_active_blocks": 1}).source == Source("694", 0)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b"\xc1",
        b"{}",
        b'{"worker_id": ""}',
        b'{"worker_id": true}',
        b'{"worker_id": "w", "rank": -1}',
        b'{"worker_id": "w", "rank": 1e9}',
        b'{"worker_id": "w", "rank": 99999999999}',
        b'{"worker_id": "' + b"w" * 300 + b'"}',
        b'{"worker_id": "w", "x": ' + b"[" * 5000,
        msgpack.packb({"worker_id": None}),
        msgpack.packb([1, 2]),
        msgpack.packb({(1, 2): 3}),
        b"\x91" * 3000,
        b"\xdf\xff\xff\xff\xff",
        b"\xc7\xff\x01" + b"x" * 255,
        b"x" * (LOAD_BYTES_MAX + 1),
    ],
)
def test_what_is_no_report_is_refused(payload: bytes) -> None:
    """With one kind of error, whatever the bytes."""
    with pytest.raises(WireError):
        decode_load(payload)


def test_any_bytes_are_a_report_or_an_error() -> None:
    """Nothing else ever leaves the decoder."""
    chance = random.Random(5)
    good = [encode_load(FULL), encode_load(FULL, encoding="json")]
    for _ in range(20_000):
        data = bytearray(chance.choice(good))
        for _ in range(chance.randrange(1, 5)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            report = decode_load(bytes(data[: chance.randrange(1, len(data) + 1)]))
        except WireError:
            continue
        assert isinstance(report, LoadReport)


@pytest.mark.parametrize(
    "wrong", [{"worker_id": ""}, {"rank": -1}, {"kv_active_blocks": -5}, {"gpu_cache_usage_perc": math.nan}]
)
def test_a_report_that_nobody_would_take_is_not_written(wrong: dict[str, object]) -> None:
    """The sender learns it, not its readers."""
    with pytest.raises(WireError):
        encode_load(replace(FULL, **wrong))  # type: ignore[arg-type]


def test_a_report_is_sent_when_it_changed_and_now_and_then_else() -> None:
    """Not more often than the least, not more seldom than the most."""
    outbox = LoadOutbox(settle_seconds=0.0, least_seconds=1.0, most_seconds=10.0)
    busy = replace(FULL, num_requests_waiting=9)

    assert outbox.take(0.0) is None
    outbox.offer(FULL)
    assert outbox.take(0.0) is FULL
    assert outbox.take(5.0) is None
    outbox.offer(replace(FULL, timestamp=FULL.timestamp + 1))
    assert outbox.take(6.0) is None, "only the time has changed"
    outbox.offer(busy)
    assert outbox.take(6.0) is busy
    outbox.offer(FULL)
    assert outbox.take(6.5) is None, "too soon"
    assert outbox.take(7.0) is FULL
    assert outbox.take(16.9) is None
    assert outbox.take(17.0) is FULL, "so that its age stays meaningful"
    assert outbox.latest is FULL


def test_a_report_is_sent_a_moment_after_its_figures_last_changed() -> None:
    """What one step of an engine changes, one figure after the other, is one report; what comes back is none."""
    outbox = LoadOutbox(settle_seconds=0.001, least_seconds=0.1, most_seconds=5.0)
    steps = [replace(FULL, kv_active_blocks=500 + number) for number in range(3)]
    assert outbox.idle_seconds(0.0) == math.inf

    for number, step in enumerate(steps):
        outbox.offer(step)
        assert outbox.idle_seconds(0.0008 * number) == 0.0
        assert outbox.take(0.0008 * number) is None
    assert outbox.idle_seconds(0.0016) == pytest.approx(0.001)
    assert outbox.take(0.0026) is steps[2]
    outbox.offer(steps[0])
    assert outbox.take(0.05) is None
    outbox.offer(steps[2])
    assert outbox.take(0.2) is None
    assert outbox.idle_seconds(0.2) == pytest.approx(4.8026)


def test_figures_that_never_stand_still_are_sent_all_the_same() -> None:
    """As often as reports may be sent at all."""
    outbox = LoadOutbox(settle_seconds=0.01, least_seconds=0.1, most_seconds=5.0)
    sent = []
    for step in range(1000):
        outbox.offer(replace(FULL, kv_active_blocks=step))
        if outbox.take(step * 0.001) is not None:
            sent.append(step)

    assert len(sent) == 9
    assert all(100 <= later - earlier <= 110 for earlier, later in pairwise(sent))


def test_json_is_json_for_every_reader() -> None:
    """No NaN, no other extension."""
    assert json.loads(encode_load(FULL, encoding="json")) == load_record(FULL)
