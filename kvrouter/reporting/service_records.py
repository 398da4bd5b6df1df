"""The records of NATS micro services (ADR-32): who there is, what it serves, what it has done. JSON, pure.

Who asks on `$SRV.PING`, `$SRV.INFO` or `$SRV.STATS`, alone or followed by a service's name, or by that and an
instance's id, is answered by each instance that is meant, once. The `nats` command (`nats micro stats`) reads them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kvrouter.errors import WireError

__all__ = [
    "ANSWER_BYTES_MAX",
    "EndpointStats",
    "ServiceIdentity",
    "ServiceStats",
    "decode_stats",
    "encode_info",
    "encode_ping",
    "encode_stats",
    "metrics_subject",
    "service_name",
    "subjects",
]

ANSWER_BYTES_MAX: Final = 1 << 20
_TYPE: Final = "io.nats.micro.v1.{}_response"
_NOT_IN_NAMES: Final = re.compile(r"[^a-zA-Z0-9_-]")
_COUNT_MAX: Final = 1 << 63


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceIdentity:
    """One instance of a service; `endpoints` are names and the subjects where requests go."""

    name: str
    id: str
    version: str
    endpoints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointStats:
    """What an endpoint has done since the start; `processing_ns` is the sum of the times that requests took."""

    name: str
    subject: str = ""
    requests: int = 0
    errors: int = 0
    last_error: str = ""
    processing_ns: int = 0
    data: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStats:
    """What an instance has done; `started` as it writes it."""

    name: str
    id: str
    version: str
    started: str
    endpoints: tuple[EndpointStats, ...] = ()


def service_name(namespace: str, component: str) -> str:
    """What NATS calls a component: `dynamo_backend`."""
    return _NOT_IN_NAMES.sub("_", f"{namespace}_{component}").lower()


def metrics_subject(namespace: str) -> str:
    """Where the workers of a namespace publish their load."""
    return f"namespace.{namespace}.kv_metrics"


def subjects(identity: ServiceIdentity) -> tuple[str, ...]:
    """Where an instance listens. Every question is on a subject that one of these covers, and no other."""
    return "$SRV.*", f"$SRV.*.{identity.name}", f"$SRV.*.{identity.name}.{identity.id}"


def encode_ping(identity: ServiceIdentity) -> bytes:
    """The answer to a PING."""
    return _encode("ping", identity)


def encode_info(identity: ServiceIdentity) -> bytes:
    """The answer to an INFO."""
    endpoints = [
        {"name": name, "subject": subject, "queue_group": "", "metadata": {}}
        for name, subject in identity.endpoints.items()
    ]
    return _encode("info", identity, description="", endpoints=endpoints)


def encode_stats(identity: ServiceIdentity, started: str, endpoints: "list[EndpointStats]") -> bytes:
    """The answer to a STATS."""
    rows = [
        {
            "name": each.name,
            "subject": each.subject,
            "queue_group": "",
            "num_requests": each.requests,
            "num_errors": each.errors,
            "last_error": each.last_error,
            "processing_time": each.processing_ns,
            "average_processing_time": each.processing_ns // each.requests if each.requests else 0,
            "data": each.data,
        }
        for each in endpoints
    ]
    return _encode("stats", identity, started=started, endpoints=rows)


def decode_stats(payload: bytes) -> ServiceStats:
    """Read the answer to a STATS, of any service; members that nobody knows are passed over.

    Raises:
        WireError: it is none.
    """
    if len(payload) > ANSWER_BYTES_MAX:
        raise WireError(f"service stats of {len(payload)} bytes exceed {ANSWER_BYTES_MAX}", reason="too_large")
    try:
        record: dict[str, Any] = json.loads(payload)
        return ServiceStats(
            name=str(record["name"]),
            id=str(record["id"]),
            version=str(record.get("version", "")),
            started=str(record.get("started", "")),
            endpoints=tuple(_endpoint(each) for each in record.get("endpoints") or ()),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise WireError("an answer to $SRV.STATS cannot be read", reason="bad_stats") from error


def _endpoint(record: Mapping[str, Any]) -> EndpointStats:
    return EndpointStats(
        name=str(record.get("name", "")),
        subject=str(record.get("subject", "")),
        requests=_count(record.get("num_requests", 0)),
        errors=_count(record.get("num_errors", 0)),
        last_error=str(record.get("last_error") or ""),
        processing_ns=_count(record.get("processing_time", 0)),
        data=record.get("data"),
    )


def _count(number: object) -> int:
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < _COUNT_MAX:
        raise ValueError("a count that is none")
    return int(number)


def _encode(kind: str, identity: ServiceIdentity, **members: object) -> bytes:
    record = {
        "type": _TYPE.format(kind),
        "name": identity.name,
        "id": identity.id,
        "version": identity.version,
        "metadata": {},
        **members,
    }
    return json.dumps(record, separators=(",", ":")).encode()
