"""Instance records: the forms that others write and read, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter.discovery import Instance, TransportEndpoint, decode_instance, encode_instance, instance_key
from kvrouter.discovery.records import INSTANCE_ID_MAX, instances_prefix
from kvrouter.errors import WireError

CALL_HOME = TransportEndpoint(transport_id="tcp", address="", metadata={"mode": "call_home"})
NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=20)
ENDPOINTS = st.builds(
    TransportEndpoint,
    transport_id=st.sampled_from(["tcp", "http", "nats", "zmq", "grpc"]),
    address=st.text(max_size=40),
    capabilities=st.dictionaries(NAMES, st.booleans(), max_size=3),
    metadata=st.dictionaries(NAMES, st.text(max_size=10), max_size=3),
)
INSTANCES = st.builds(
    Instance,
    namespace=NAMES,
    component=NAMES,
    endpoint=NAMES,
    instance_id=st.integers(0, INSTANCE_ID_MAX),
    transports=st.lists(ENDPOINTS, min_size=1, max_size=3).map(tuple),
    response_transport=st.none() | ENDPOINTS,
    health=st.sampled_from(["healthy", "degraded", "unhealthy"]),
    health_reason=st.none() | st.text(max_size=20),
    zone=st.none() | NAMES,
)


@given(INSTANCES)
def test_records_come_back(instance: Instance) -> None:
    """A-222, A-233: transports with capabilities and metadata, health, zone."""
    assert decode_instance(encode_instance(instance)) == instance


def legacy(transport: object) -> bytes:
    """A record as older writers make it."""
    names = {"namespace": "dynamo", "component": "backend", "endpoint": "generate"}
    return json.dumps({"type": "Endpoint", **names, "instance_id": 0x123, "transport": transport}).encode()


@pytest.mark.parametrize(
    ("transport", "first", "response"),
    [
        ({"nats_tcp": "dynamo_backend.generate-123"}, ("nats", "dynamo_backend.generate-123"), CALL_HOME),
        ({"http": "http://h:8081/v1/rpc"}, ("http", "http://h:8081/v1/rpc"), CALL_HOME),
        ({"http_tcp": {"http_endpoint": "http://h:8081"}}, ("http", "http://h:8081"), CALL_HOME),
        ({"tcp": "10.0.0.1:9001/generate"}, ("tcp", "10.0.0.1:9001/generate"), CALL_HOME),
        ({"tcp_tcp": {"endpoint": "h:9001"}}, ("tcp", "h:9001"), None),
        (
            {"http_http": {"request": "http://h:1", "response": "http://h:2"}},
            ("http", "http://h:1"),
            TransportEndpoint(transport_id="http", address="http://h:2"),
        ),
    ],
)
def test_older_forms_are_read(transport: object, first: tuple[str, str], response: TransportEndpoint | None) -> None:
    """A-221, A-223, A-234: every form that a deployment may still hold."""
    instance = decode_instance(legacy(transport))

    assert (instance.transports[0].transport_id, instance.transports[0].address) == first
    assert instance.response_transport == response


def test_older_readers_find_the_member_that_they_know() -> None:
    """A-221: beside the unified form, where an older one can say the same."""
    instance = Instance(
        namespace="dynamo", component="backend", endpoint="generate", instance_id=7,
        transports=(TransportEndpoint(transport_id="nats", address="s.g-7"),), response_transport=CALL_HOME,
    )  # fmt: skip

    record = json.loads(encode_instance(instance))

    assert record["type"] == "Endpoint"
    assert record["transport"]["nats_tcp"] == "s.g-7"
    assert record["transport"]["unified"]["request_transport"] == {"transport_id": "nats", "address": "s.g-7"}
    assert instance.key == "instances/dynamo/backend/generate/7"


def test_the_unified_form_goes_first() -> None:
    """Whatever else is there."""
    unified = {"request_transport": {"transport_id": "zmq", "address": "tcp://h:1"}}

    instance = decode_instance(legacy({"nats_tcp": "old", "unified": unified}))

    assert instance.transports[0].transport_id == "zmq"


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (b"", "instance record"),
        (b"\xff", "instance record"),
        (b"{}", "namespace"),
        (legacy({}), "no form"),
        (legacy({"tcp": 7}), "tcp"),
        (legacy({"nats_tcp": "x"}).replace(b"dynamo", b"Dy/namo"), "namespace"),
        (legacy({"nats_tcp": "x"}).replace(b"291", b"-1"), "instance_id"),
        (b" " * 70_000, "exceeds"),
    ],
)
def test_what_is_no_record_is_named(record: bytes, text: str) -> None:
    """One error that names the member."""
    with pytest.raises(WireError, match=text):
        decode_instance(record)


def test_names_and_ids_are_checked_before_they_are_written() -> None:
    """B.10: names that every store can hold, ids that every JSON reader keeps."""
    with pytest.raises(WireError, match="component"):
        instance_key("a", "B", "c", 1)
    with pytest.raises(WireError, match="instance_id"):
        instance_key("a", "b", "c", 1 << 53)
    assert instances_prefix() == "instances/"
    assert instances_prefix("a", "b") == "instances/a/b/"
