"""The schema of the planes' messages, and the models of Pydantic: what one side writes the other one reads."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel, ValidationError

from kvrouter.discovery import Instance, TransportEndpoint, decode_instance, encode_instance
from kvrouter.errors import HandlerError, TransportError
from kvrouter.transport.callhome_wire import ConnectionInfo, Handshake, encode_connection_info, prologue_message
from kvrouter.transport.messages import Request, encode_error, encode_request
from kvrouter.transport.schemas import MESSAGES, message_schemas, pydantic_models, schema_text
from kvrouter.transport.tcp_frames import PROTOCOL, VERSION, Hello, HelloAck
from kvrouter.transport.two_part import decode_two_part

SCHEMA = Path(__file__).parents[2] / "docs" / "planes.schema.json"
INFO = ConnectionInfo(address="h:1", subject="s", context="r1", reuse=True)
INSTANCE = Instance(
    namespace="demo", component="backend", endpoint="generate", instance_id=7,
    transports=(TransportEndpoint(transport_id="tcp", address="h:1", capabilities={"streaming": True}),),
)  # fmt: skip
WRITTEN: dict[str, bytes] = {
    "RequestControl": bytes(
        decode_two_part(encode_request(Request(endpoint="echo"), id="r1", headers={"a": "b"}, remaining_seconds=1.5))[0]
    ),
    "ConnectionInfoRecord": msgspec.json.encode(encode_connection_info(INFO)),
    "CallHomeInfo": encode_connection_info(INFO)["info"].encode(),
    "Handshake": msgspec.json.encode(Handshake("s", "response", 1)),
    "Prologue": bytes(decode_two_part(prologue_message(HandlerError("boom")))[0]),
    "ErrorRecord": encode_error(TransportError("no such model", code="NOT_FOUND")),
    "Hello": msgspec.json.encode(Hello(PROTOCOL, [VERSION], "a")),
    "HelloAck": msgspec.json.encode(HelloAck(VERSION, "b")),
    "InstanceRecord": encode_instance(INSTANCE),
}


def test_the_schema_that_is_kept_is_that_of_the_code() -> None:
    """A-388: `python -m kvrouter.transport.schemas > docs/planes.schema.json` after a change."""
    assert SCHEMA.read_text(encoding="utf-8") == schema_text()


def test_every_part_of_the_schema_can_be_found() -> None:
    """A-388: generators follow the references, and find every message under its name."""
    definitions = message_schemas()["$defs"]

    assert {message.__name__ for message in MESSAGES} == WRITTEN.keys() <= definitions.keys()
    assert {name.removeprefix("#/$defs/") for name in re.findall(r'"\$ref": "([^"]+)"', schema_text())} < {*definitions}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_is_read_by_the_models_and_back(name: str) -> None:
    """A-388: byte for byte the same members, whichever side wrote them."""
    model: type[BaseModel] = pydantic_models()[name]
    struct = next(message for message in MESSAGES if message.__name__ == name)
    read = model.model_validate_json(WRITTEN[name])

    again = read.model_dump_json(exclude_unset=True)

    assert json.loads(again) == json.loads(WRITTEN[name])
    assert msgspec.json.decode(again, type=struct) == msgspec.json.decode(WRITTEN[name], type=struct)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("RequestControl", {}),
        ("RequestControl", {"id": "r", "payload_codec": "xml"}),
        ("Hello", {"proto": PROTOCOL, "versions": "1"}),
        ("InstanceRecord", {"namespace": "n", "component": "c", "endpoint": "e", "instance_id": 1}),
    ],
)
def test_models_refuse_what_the_planes_refuse(name: str, told: dict[str, Any]) -> None:
    """A-388: a member that is missing, or of another type or value."""
    struct = next(message for message in MESSAGES if message.__name__ == name)

    with pytest.raises(ValidationError):
        pydantic_models()[name].model_validate(told)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(json.dumps(told), type=struct)


def test_a_record_made_with_the_models_is_found() -> None:
    """A-388: another program registers itself with classes of its own."""
    models = pydantic_models()
    endpoint = models["TransportEndpoint"](transport_id="tcp", address="h:1", capabilities={"streaming": True})
    unified = models["Unified"](request_transport=endpoint)
    record = models["InstanceRecord"](
        namespace="demo", component="backend", endpoint="generate", instance_id=7,
        transport=models["Transport"](unified=unified),
    )  # fmt: skip

    assert decode_instance(record.model_dump_json().encode()).transports == INSTANCE.transports
