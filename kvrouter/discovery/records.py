"""Instance records: one endpoint of one worker process, and the transports that reach it. JSON, pure.

Keys are `v1/instances/NAMESPACE/COMPONENT/ENDPOINT/ID` with the id in hexadecimal. The JSON is Dynamo's: readers take
the `unified` form first and the legacy ones otherwise; writers emit `unified`, and beside it the legacy member that
says the same where there is one, so that older readers find what they know.
"""

import re
from typing import Any, Literal, TypeAlias

import msgspec

from kvrouter.errors import WireError

__all__ = [
    "BUCKET",
    "INSTANCE_ID_MAX",
    "Health",
    "Instance",
    "InstanceRecord",
    "TransportEndpoint",
    "decode_instance",
    "encode_instance",
    "instance_key",
    "instances_prefix",
]

BUCKET = "v1"
INSTANCE_ID_MAX = (1 << 53) - 1
"""Larger ids would not survive JSON readers whose numbers are doubles."""
RECORD_BYTES_MAX = 64 << 10
_NAME = re.compile(r"[a-z0-9_-]{1,64}")

TransportId: TypeAlias = Literal["tcp", "http", "nats", "zmq", "grpc", "ucx"]
Health: TypeAlias = Literal["healthy", "degraded", "unhealthy"]


class TransportEndpoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One way in: which transport, its address, what it can do."""

    transport_id: str
    address: str
    capabilities: dict[str, bool | int] = {}
    metadata: dict[str, str] = {}


class _Unified(msgspec.Struct, frozen=True, omit_defaults=True):
    request_transport: TransportEndpoint
    response_transport: TransportEndpoint | None = None
    others: list[TransportEndpoint] = []


class _HttpTcp(msgspec.Struct, frozen=True):
    http_endpoint: str


class _HttpHttp(msgspec.Struct, frozen=True):
    request: str
    response: str


class _TcpTcp(msgspec.Struct, frozen=True):
    endpoint: str


class _Transport(msgspec.Struct, frozen=True, omit_defaults=True):
    """Every form that a record's `transport` may have; members that nobody knows are ignored."""

    unified: _Unified | None = None
    nats_tcp: str | None = None
    http: str | None = None
    tcp: str | None = None
    http_tcp: _HttpTcp | None = None
    http_http: _HttpHttp | None = None
    tcp_tcp: _TcpTcp | None = None


class InstanceRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """The value of an instance's key."""

    namespace: str
    component: str
    endpoint: str
    instance_id: int
    transport: _Transport
    type: str = "Endpoint"
    health_status: str | None = None
    health_reason: str | None = None
    last_heartbeat: float | None = None
    device_type: str | None = None
    zone: str | None = None
    worker: dict[str, Any] = {}


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint of one worker process.

    `transports` are ways in, the preferred one first; at least one. `response_transport` is where answers come from, if
    not over the way in.
    """

    namespace: str
    component: str
    endpoint: str
    instance_id: int
    transports: tuple[TransportEndpoint, ...]
    response_transport: TransportEndpoint | None = None
    health: Health = "healthy"
    health_reason: str | None = None
    device_type: str | None = None
    zone: str | None = None
    worker: dict[str, Any] = {}
    """What a router is told of it besides: fields of `POST /workers`, such as where its cache events are."""

    @property
    def key(self) -> str:
        """Its key in the store's bucket."""
        return instance_key(self.namespace, self.component, self.endpoint, self.instance_id)


def instances_prefix(namespace: str = "", component: str = "", endpoint: str = "") -> str:
    """What the keys of a namespace, a component or an endpoint begin with; nothing means all."""
    parts = ["instances"]
    for part in (namespace, component, endpoint):
        if not part:
            break
        parts.append(_checked(part, "name"))
    return "/".join(parts) + "/"


def instance_key(namespace: str, component: str, endpoint: str, instance_id: int) -> str:
    """The key of an instance within the bucket `v1`. Raises WireError for names and ids that cannot be."""
    if not 0 <= instance_id <= INSTANCE_ID_MAX:
        raise WireError(f"instance_id {instance_id} is not between 0 and {INSTANCE_ID_MAX}")
    names = (
        _checked(namespace, "namespace"), _checked(component, "component"), _checked(endpoint, "endpoint"),
    )  # fmt: skip
    return "/".join(("instances", *names, f"{instance_id:x}"))


def encode_instance(instance: Instance) -> bytes:
    """Return a record as JSON.

    Raises:
        WireError: a name or an id cannot be, there is no transport, or the record exceeds 64 KiB.
    """
    instance_key(instance.namespace, instance.component, instance.endpoint, instance.instance_id)
    if not instance.transports:
        raise WireError("an instance without a transport cannot be reached")
    first, *others = instance.transports
    transport = msgspec.structs.replace(
        _legacy(first, instance.response_transport),
        unified=_Unified(first, instance.response_transport, others),
    )
    record = InstanceRecord(
        instance.namespace,
        instance.component,
        instance.endpoint,
        instance.instance_id,
        transport,
        health_status=instance.health if instance.health != "healthy" else None,
        health_reason=instance.health_reason,
        device_type=instance.device_type,
        zone=instance.zone,
        worker=instance.worker,
    )
    # The type is what older readers look at first; `omit_defaults` would leave it out.
    encoded = msgspec.json.encode({"type": record.type, **msgspec.to_builtins(record)})
    if len(encoded) > RECORD_BYTES_MAX:
        raise WireError(f"a record of {len(encoded)} bytes exceeds {RECORD_BYTES_MAX}", reason="too_large")
    return encoded


def decode_instance(data: bytes) -> Instance:
    """Read a record in any of its forms.

    Raises:
        WireError: it is none; the text names the member.
    """
    if len(data) > RECORD_BYTES_MAX:
        raise WireError(f"a record of {len(data)} bytes exceeds {RECORD_BYTES_MAX}", reason="too_large")
    try:
        record = msgspec.json.decode(data, type=InstanceRecord)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(f"instance record: {error}") from None
    instance_key(record.namespace, record.component, record.endpoint, record.instance_id)
    transports, response = _read_transport(record.transport)
    health = record.health_status if record.health_status in ("degraded", "unhealthy") else "healthy"
    return Instance(
        namespace=record.namespace,
        component=record.component,
        endpoint=record.endpoint,
        instance_id=record.instance_id,
        transports=transports,
        response_transport=response,
        health=health,  # type: ignore[arg-type] # checked above
        health_reason=record.health_reason,
        device_type=record.device_type,
        zone=record.zone,
        worker=record.worker,
    )


def _read_transport(given: _Transport) -> tuple[tuple[TransportEndpoint, ...], TransportEndpoint | None]:
    if given.unified is not None:
        unified = given.unified
        return (unified.request_transport, *unified.others), unified.response_transport
    call_home = TransportEndpoint(transport_id="tcp", address="", metadata={"mode": "call_home"})
    match given:
        case _Transport(nats_tcp=str(subject)):
            return (TransportEndpoint(transport_id="nats", address=subject),), call_home
        case _Transport(http_tcp=_HttpTcp(url)) | _Transport(http=str(url)):
            return (TransportEndpoint(transport_id="http", address=url),), call_home
        case _Transport(http_http=_HttpHttp(request, response)):
            answers = TransportEndpoint(transport_id="http", address=response)
            return (TransportEndpoint(transport_id="http", address=request),), answers
        case _Transport(tcp_tcp=_TcpTcp(address)):
            return (TransportEndpoint(transport_id="tcp", address=address),), None
        case _Transport(tcp=str(address)):
            legacy = TransportEndpoint(transport_id="tcp", address=address, metadata={"mode": "v0"})
            return (legacy,), call_home
    raise WireError("instance record: transport has no form that is known here", reason="transport")


def _legacy(first: TransportEndpoint, response: TransportEndpoint | None) -> _Transport:
    """The older member that says the same, where there is one."""
    calls_home = response is not None and response.metadata.get("mode") == "call_home"
    if first.transport_id == "nats" and calls_home:
        return _Transport(nats_tcp=first.address)
    if first.transport_id == "tcp" and calls_home:
        return _Transport(tcp=first.address)
    if first.transport_id == "http" and calls_home:
        return _Transport(http=first.address, http_tcp=_HttpTcp(first.address))
    if first.transport_id == "http" and response is not None and response.transport_id == "http":
        return _Transport(http_http=_HttpHttp(first.address, response.address))
    if first.transport_id == "tcp" and response is None:
        return _Transport(tcp_tcp=_TcpTcp(first.address))
    return _Transport()


def _checked(name: str, what: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise WireError(f"{what} {name[:64]!r} must be 1 to 64 of a-z, 0-9, '-' and '_'")
    return name
