"""The settings of `kvrouter gateway`, as one section of the schema in `settings.py`."""

from dataclasses import dataclass
from pathlib import Path

from kvrouter.settings_field import setting as _setting

__all__ = ["GatewaySettings"]

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """The [gateway](gateway.md) from HTTP with JSON to NATS with Protobuf; flags of `kvrouter gateway`.

    It takes `auth` and `log` too, and the variables `HOST`, `PORT`, `NATS_URL` (or `NATS_SERVER`),
    `NATS_TIMEOUT_SECONDS`, `NATS_TLS_CERT`, `NATS_TLS_KEY`, `NATS_TLS_CA` and `NATS_AUTH_...` where ours are not set.
    """

    host: str = _setting(
        "127.0.0.1", "address to bind; anything but loopback needs API keys or --insecure", flag="--host"
    )
    port: int = _setting(8000, "port to listen on (0 picks a free one)", flag="--port", at_least=0, at_most=65535)
    processes: int = _setting(1, "processes behind the port", flag="--processes", at_least=1, at_most=256)
    routes: Path | None = _setting(
        None, "route table, TOML or YAML (default: the eight routes that are shipped)", flag="--routes", metavar="FILE"
    )
    descriptors: Path | None = _setting(
        None,
        "descriptor set of the messages, from protoc --include_imports (default: that of the shipped routes)",
        flag="--descriptors",
        metavar="FILE",
    )
    nats_url: str = _setting(
        "nats://localhost:4222", "NATS servers, separated by commas", flag="--nats-url", metavar="URL"
    )
    nats_tls_ca: Path | None = _setting(
        None, "PEM certificates that NATS servers are trusted by", flag="--nats-tls-ca", metavar="FILE"
    )
    nats_tls_certificate: Path | None = _setting(
        None, "PEM certificate that is shown to NATS servers", flag="--nats-tls-certificate", metavar="FILE"
    )
    nats_tls_key: Path | None = _setting(
        None, "PEM private key of that certificate", flag="--nats-tls-key", metavar="FILE"
    )
    nats_credentials: Path | None = _setting(
        None, "NATS credentials file (user JWT and nkey seed)", flag="--nats-credentials", metavar="FILE"
    )
    connect_seconds: float = _setting(
        10.0, "at the start, how long to try to reach NATS", flag="--connect-seconds", at_least=0.1, at_most=3600
    )
    timeout_seconds: float = _setting(
        30.0,
        "time a service has to answer, and may be silent within a stream, unless its route says another",
        flag="--timeout-seconds",
        at_least=0.001,
        at_most=86_400,
    )
    header_seconds: float = _setting(
        15.0, "time a client has to send a request head", flag="--header-seconds", at_least=0.1, at_most=600
    )
    body_bytes_max: int = _setting(
        10 * _MIB, "largest request body", flag="--body-bytes-max", at_least=1024, at_most=1024 * _MIB
    )
    body_seconds: float = _setting(
        60.0, "time a request's body may take", flag="--body-seconds", at_least=0.1, at_most=3600
    )
    streams_max: int = _setting(
        100, "streams that may be open at a time, of all processes", flag="--streams-max", at_least=1, at_most=1_000_000
    )
    stream_queue_max: int = _setting(
        50, "chunks of a stream that wait for its client", flag="--stream-queue-max", at_least=1, at_most=10_000
    )
    keep_alive_seconds: float = _setting(
        10.0, "silence after which a stream gets a comment", flag="--keep-alive-seconds", at_least=0.05, at_most=3600
    )
    slow_client_seconds: float = _setting(
        5.0,
        "time a client may take nothing of its stream, or of a whole answer, before it is cut",
        flag="--slow-client-seconds",
        at_least=0.05,
        at_most=3600,
    )
    idempotency_seconds: float = _setting(
        600.0,
        "how long answers are kept by their idempotency keys",
        flag="--idempotency-seconds",
        at_least=1,
        at_most=86_400,
    )
    idempotency_answers_max: int = _setting(
        10_000, "answers kept by a process", flag="--idempotency-answers-max", at_least=0, at_most=10_000_000
    )
    idempotency_bytes_max: int = _setting(
        64 * _MIB, "memory of these answers", flag="--idempotency-bytes-max", at_least=0, at_most=65_536 * _MIB
    )
    store: str = _setting(
        "memory:",
        "where cut-over shares are kept and watched: a directory, nats://host:4222/PREFIX, redis://host:6379/0/PREFIX "
        "or etcd://host:2379",
        flag="--store",
        metavar="URL",
    )
    shadow_requests_max: int = _setting(
        32,
        "copies under way at a time, of a process; more are dropped",
        flag="--shadow-requests-max",
        at_least=1,
        at_most=10_000,
    )
    shadow_samples_max: int = _setting(
        100, "differences kept for GET /admin/shadow", flag="--shadow-samples-max", at_least=0, at_most=10_000
    )
    tls_certificate: Path | None = _setting(
        None, "PEM certificate chain to serve with; turns TLS on", flag="--tls-certificate", metavar="FILE"
    )
    tls_key: Path | None = _setting(None, "PEM private key of it", flag="--tls-key", metavar="FILE")
    drain_seconds: float = _setting(
        30.0,
        "on SIGTERM, how long running requests may take to finish",
        flag="--drain-seconds",
        at_least=0,
        at_most=3600,
    )
    unready_seconds: float = _setting(
        0.0,
        "on SIGTERM, how long to stay open while /ready says no, so that balancers notice",
        flag="--unready-seconds",
        at_least=0,
        at_most=300,
    )
