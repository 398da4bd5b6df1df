"""The records of service stats are those of NATS micro services, and nothing that comes instead breaks a reader."""

import json

import pytest
from nats.micro.service import ServiceInfo, ServicePing
from nats.micro.service import ServiceStats as MicroStats

from kvrouter.errors import WireError
from kvrouter.reporting.service_records import (
    ANSWER_BYTES_MAX,
    EndpointStats,
    ServiceIdentity,
    decode_stats,
    encode_info,
    encode_ping,
    encode_stats,
    metrics_subject,
    service_name,
    subjects,
)

IDENTITY = ServiceIdentity(name="demo_backend", id="1f", version="0.1.0", endpoints={"generate": "demo.backend-1f"})
STARTED = "2026-01-02T03:04:05.678Z"
GENERATE = EndpointStats(
    name="generate", subject="demo.backend-1f", requests=4, errors=1, last_error="ValueError", processing_ns=1000,
    data={"kv_stats": {"kv_active_blocks": 5}},
)  # fmt: skip


def test_names_are_those_that_dashboards_know() -> None:
    """A-001, A-002, A-361: a component's service, and the subject of a namespace's load."""
    assert service_name("dynamo", "backend") == "dynamo_backend"
    assert service_name("a.b", "Prefill Pool") == "a_b_prefill_pool"
    assert metrics_subject("dynamo") == "namespace.dynamo.kv_metrics"


def test_a_question_reaches_an_instance_over_one_subject() -> None:
    """A-362: of everything that may be asked, one of its subscriptions covers it and no second one."""
    asked = [
        "$SRV.STATS",
        "$SRV.STATS.demo_backend",
        "$SRV.STATS.demo_backend.1f",
        "$SRV.PING",
        "$SRV.INFO.demo_backend",
    ]
    covering = [[each for each in subjects(IDENTITY) if _covers(each, question)] for question in asked]

    assert [len(found) for found in covering] == [1] * len(asked)
    others = ["$SRV.STATS.other", "$SRV.STATS.demo_backend.2f"]
    assert not any(_covers(each, question) for each in subjects(IDENTITY) for question in others)


def test_other_clients_read_the_records() -> None:
    """A-361: NATS' own library takes them for what its services answer."""
    stats = MicroStats.from_dict(json.loads(encode_stats(IDENTITY, STARTED, [GENERATE])))
    info = ServiceInfo.from_dict(json.loads(encode_info(IDENTITY)))
    ping = ServicePing.from_dict(json.loads(encode_ping(IDENTITY)))

    assert (ping.name, ping.id, ping.type) == ("demo_backend", "1f", "io.nats.micro.v1.ping_response")
    assert [(each.name, each.subject) for each in info.endpoints] == [("generate", "demo.backend-1f")]
    (endpoint,) = stats.endpoints
    assert (endpoint.num_requests, endpoint.num_errors, endpoint.average_processing_time) == (4, 1, 250)
    assert (endpoint.last_error, endpoint.data) == ("ValueError", {"kv_stats": {"kv_active_blocks": 5}})


def test_what_was_written_is_read() -> None:
    """A-361: a round trip, and members that nobody knows are passed over."""
    written = json.loads(encode_stats(IDENTITY, STARTED, [GENERATE]))
    read = decode_stats(json.dumps({**written, "surprise": 1}).encode())

    assert (read.name, read.id, read.version, read.started) == ("demo_backend", "1f", "0.1.0", STARTED)
    assert read.endpoints == (GENERATE,)
    assert decode_stats(b'{"name": "n", "id": "i"}').endpoints == ()


@pytest.mark.parametrize(
    "payload",
    [b"", b"null", b"[]", b"{}", b"\xff", b'{"name": "n", "id": "i", "endpoints": 7}', b"[" * 100_000,
     b'{"name": "n", "id": "i", "endpoints": [7]}', b'{"name": "n", "id": "i", "endpoints": [{"num_requests": -1}]}',
     b'{"name": "n", "id": "i", "endpoints": [{"num_errors": "x"}]}', b" " * (ANSWER_BYTES_MAX + 1),
     b'{"name": "n", "id": "i", "endpoints": [{"processing_time": 1e999}]}'],
    ids=lambda payload: repr(payload[:60]),
)  # fmt: skip
def test_what_is_no_answer_is_one_error(payload: bytes) -> None:
    """Services of others answer on the same subjects."""
    with pytest.raises(WireError):
        decode_stats(payload)


def _covers(pattern: str, subject: str) -> bool:
    """As a NATS server matches, for patterns without `>`."""
    ours, theirs = pattern.split("."), subject.split(".")
    return len(ours) == len(theirs) and all(one in ("*", other) for one, other in zip(ours, theirs, strict=True))
