"""One frozen schema for every setting of the router process.

Sources, strongest first: command-line flags, `KVROUTER_*` variables, a TOML file, the defaults below. An unknown
key, a misspelt variable, a missing file or a value out of bounds is a `SettingsError` whose text is one line that
names it; the command line turns that into exit code 2. Nothing else in the project reads the environment.

How the three sources are read and merged is in `settings_sources.py`; here is only what can be set.
"""

from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import cast

from kvrouter.settings_field import setting as _setting
from kvrouter.settings_gateway import GatewaySettings

__all__ = [
    "AuthSettings",
    "ConfigSettings",
    "EventSettings",
    "GatewaySettings",
    "HealthSettings",
    "IndexSettings",
    "LimitSettings",
    "LogSettings",
    "PlacementSettings",
    "PlaneSettings",
    "QueueSettings",
    "ReplicaSettings",
    "RoutingSettings",
    "ServerSettings",
    "Settings",
    "TokenSettings",
    "section_classes",
    "sections_of",
]

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Where the router listens and how it stops."""

    host: str = _setting("127.0.0.1", "address to bind; anything but loopback needs API keys", flag="--host")
    port: int = _setting(
        8080, "port of the whole service (0 picks a free one)", flag="--port", at_least=0, at_most=65535
    )
    admin_port: int = _setting(
        0, "serve the admin API on this port only, instead of beside /v1 on the main port", at_least=0, at_most=65535
    )
    tls_certificate: Path | None = _setting(None, "PEM certificate chain; turns TLS on", metavar="FILE")
    tls_key: Path | None = _setting(None, "PEM private key of the certificate", metavar="FILE")
    drain_seconds: float = _setting(
        30.0,
        "on SIGTERM, how long running requests may take to finish",
        flag="--drain-seconds",
        at_least=0,
        at_most=3600,
        live=True,
    )
    unready_seconds: float = _setting(
        0.0,
        "on SIGTERM, how long to stay open while /readyz says no, so that balancers notice",
        at_least=0,
        at_most=300,
        live=True,
    )
    route_headers: bool = _setting(True, "answer with x-kvrouter-worker and x-kvrouter-overlap-tokens", live=True)
    exit_with_parent: bool = _setting(
        False, "stop when standard input closes (for a router started by another program)", flag="--exit-with-parent"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings:
    """Who may call."""

    api_keys: tuple[str, ...] = _setting(
        (),
        "bearer token that clients must send (repeatable; prefer the variable, flags show in process lists)",
        flag="--api-key",
        variable="KVROUTER_API_KEYS",
        metavar="KEY",
    )
    admin_keys: tuple[str, ...] = _setting(
        (),
        "bearer token for changing workers (repeatable; default: any API key)",
        flag="--admin-key",
        variable="KVROUTER_ADMIN_KEYS",
        metavar="KEY",
    )
    insecure: bool = _setting(False, "allow binding beyond loopback without API keys", flag="--insecure")


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """Bounds on what one client, one request and one worker may cost."""

    body_bytes_max: int = _setting(32 * _MIB, "largest request body", at_least=1024, at_most=1024 * _MIB, live=True)
    header_bytes_max: int = _setting(64 * 1024, "largest request head", at_least=1024, at_most=_MIB, live=True)
    connections_max: int = _setting(20_000, "client connections at a time", at_least=1, at_most=1_000_000, live=True)
    keepalive_seconds: float = _setting(
        75.0, "idle time before a client connection is closed", at_least=1, at_most=3600, live=True
    )
    header_seconds: float = _setting(
        15.0, "time a client has to send a request head", at_least=0.1, at_most=600, live=True
    )
    body_seconds: float = _setting(
        60.0, "time a client may be silent within a body", at_least=0.1, at_most=3600, live=True
    )
    connect_seconds: float = _setting(3.0, "time to connect to a worker", at_least=0.05, at_most=60)
    first_byte_seconds: float = _setting(
        600.0, "time a worker has to begin its answer", at_least=0.1, at_most=86_400, live=True
    )
    idle_seconds: float = _setting(
        600.0, "time a worker may be silent within an answer", at_least=0.1, at_most=86_400, live=True
    )
    attempts_max: int = _setting(
        3, "workers tried for one request before its first answered byte", at_least=1, at_most=16, live=True
    )
    worker_connections_max: int = _setting(4096, "connections to one worker", at_least=1, at_most=65_536, live=True)
    client_rate: float = _setting(
        0.0,
        "requests per second of one client, known by its API key or else its address (0: any number)",
        flag="--rate-limit",
        at_least=0,
        at_most=1_000_000,
        live=True,
    )
    client_burst: int = _setting(
        0, "requests of one client at once (0: as many as a second has)", at_least=0, at_most=1_000_000, live=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingSettings:
    """How a worker is chosen."""

    policy: str = _setting(
        "kv",
        "routing policy",
        flag="--policy",
        choices=(
            "kv",
            "round-robin",
            "random",
            "least-loaded",
            "power-of-two",
            "sticky",
            "prefix-hash",
            "lmetric",
            "weighted",
            "dynamo-cost",
            "cache-aware-threshold",
        ),
        or_else="the name of an entry point, or package.module:function",
        metavar="POLICY",
        live=True,
    )
    prefill_tokens_per_second: float = _setting(
        8000.0, "prefill speed assumed for a worker until it is known better", at_least=1, at_most=1e9
    )
    predicted_seconds_live: float = _setting(
        5.0,
        "how long a routed prompt counts as cached before its worker's events confirm it",
        at_least=0,
        at_most=3600,
        live=True,
    )
    reservation_seconds: float = _setting(
        60.0,
        "lease of a reservation made over the selection API; progress renews it",
        at_least=1,
        at_most=3600,
        live=True,
    )
    decisions_kept: int = _setting(
        1000, "decisions kept for GET /decisions/{id}", at_least=0, at_most=1_000_000, live=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementSettings:
    """Where requests had better go, besides where they are answered first."""

    zone: str = _setting("", "zone that requests prefer which name none (default: no preference)", live=True)
    zone_seconds: float = _setting(
        0.5, "how much longer a request may wait for a worker of its own zone", at_least=0, at_most=3600, live=True
    )
    sessions: str = _setting(
        "off",
        "whether a conversation stays on its rank: prefer (unless that one is busier by session_seconds) or pin",
        choices=("off", "prefer", "pin"),
    )
    session_seconds: float = _setting(
        1.0, "how much longer a request may wait for the rank of its conversation", at_least=0, at_most=3600, live=True
    )
    session_idle_seconds: float = _setting(
        1800.0, "a conversation without a request for so long is forgotten", at_least=1, at_most=31_536_000, live=True
    )
    sessions_max: int = _setting(
        100_000, "conversations remembered; the longest idle ones go first", at_least=1, at_most=10_000_000, live=True
    )
    split: bool = _setting(True, "split long prompts between workers of the roles prefill and decode, if there are any")
    split_tokens_min: int = _setting(
        512, "uncached prompt tokens from which on a request is split", at_least=0, at_most=10_000_000, live=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """When requests wait at the router, who goes first, who is turned away; without a bound on ranks nobody waits."""

    rank_requests_max: int = _setting(
        0,
        "requests that a rank may have before new ones wait at the router (0: any number)",
        at_least=0,
        at_most=1_000_000,
        live=True,
    )
    rank_prefill_tokens_max: int = _setting(
        0,
        "uncached prompt tokens that a rank may still have to compute before new requests wait (0: any number)",
        at_least=0,
        at_most=1_000_000_000,
        live=True,
    )
    ttft_seconds_max: float = _setting(
        0.0,
        "turn a request away whose first token is predicted later than this (0: never)",
        at_least=0,
        at_most=86_400,
        live=True,
    )
    order: str = _setting(
        "fcfs",
        "who goes first: as they came, least uncached prefill, or earliest deadline",
        choices=("fcfs", "shortest", "deadline"),
        live=True,
    )
    requests_max: int = _setting(10_000, "requests that wait at a time", at_least=1, at_most=1_000_000, live=True)
    bytes_max: int = _setting(
        256 * _MIB, "bytes of the bodies that wait", at_least=1024, at_most=65_536 * _MIB, live=True
    )
    seconds_max: float = _setting(60.0, "longest wait of a request", at_least=0.05, at_most=3600, live=True)
    overtaking_seconds: float = _setting(
        30.0, "nobody is overtaken by requests that come later than this after it", at_least=0, at_most=3600, live=True
    )
    priority_seconds: float = _setting(
        10.0, "each level of priority counts like having come so much earlier", at_least=0, at_most=3600, live=True
    )
    tenant_by: str = _setting("api-key", "what tells tenants apart", choices=("api-key", "header", "user"), live=True)
    tenant_header: str = _setting(
        "x-kvrouter-tenant",
        "header that names the tenant, where a gateway in front sets it",
        name_characters_max=64,
        live=True,
    )
    tenant_weights: tuple[str, ...] = _setting(
        (),
        "TENANT=WEIGHT; 2 is served twice as much as 1 (repeatable; default of all: 1)",
        metavar="TENANT=WEIGHT",
        live=True,
    )
    tenants_max: int = _setting(1000, "tenants that are told apart", at_least=1, at_most=1_000_000, live=True)
    quantum_tokens: int = _setting(
        16_384, "prefill tokens by which a tenant may be ahead of another", at_least=1, at_most=1_000_000_000, live=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSettings:
    """How cache events are received."""

    idle_probe_seconds: float = _setting(
        10.0, "ask a silent worker's replay endpoint for a lost tail this often (0: never)", at_least=0, at_most=3600
    )
    replay_seconds: float = _setting(
        5.0, "time a replay may be silent before it is given up", at_least=0.1, at_most=300
    )
    frame_bytes_max: int = _setting(64 * _MIB, "largest event frame", at_least=1024, at_most=1024 * _MIB)
    router_id: str = _setting(
        "",
        "this router's name at brokers and stores, no other router's, of letters, digits, _ and -; one that is kept "
        "goes on where it stopped (default: drawn at each start)",
        name_characters_max=64,
    )
    snapshots: str = _setting(
        "",
        "where what is known is kept for the next start: a directory, nats://host:4222/PREFIX or "
        "redis://host:6379/0/PREFIX (default: nowhere)",
        flag="--snapshots",
        metavar="URL",
    )
    fleet: str = _setting("kvrouter", "whose state it is; routers of one fleet share it", name_characters_max=64)
    snapshot_seconds: float = _setting(60.0, "time between two snapshots", at_least=1, at_most=86_400)
    stream_messages_max: int = _setting(
        1_000_000,
        "a JetStream stream with more messages is purged behind a snapshot, never past its slowest consumer (0: never)",
        at_least=0,
        at_most=1_000_000_000_000,
    )
    nats_ca: Path | None = _setting(
        None,
        "PEM certificates of who vouches for NATS servers, of events and of stores (default: the system's); with it, "
        "or with a certificate of our own, every connection to them is TLS, not only those of tls:// addresses",
        metavar="FILE",
    )
    nats_certificate: Path | None = _setting(None, "PEM certificate chain that we show to NATS servers", metavar="FILE")
    nats_key: Path | None = _setting(None, "PEM private key of that certificate", metavar="FILE")
    nats_credentials: Path | None = _setting(
        None, "credentials file (.creds) for NATS servers whose address names no user", metavar="FILE"
    )
    nats_nkey: Path | None = _setting(
        None, "file with an NKEY seed, for NATS servers whose address names no user", metavar="FILE"
    )
    load_seconds: float = _setting(
        10.0, "time between two questions to a worker how busy it is (0: never)", at_least=0, at_most=3600
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneSettings:
    """Workers that are found by discovery and reached over a request plane; see [planes](planes.md)."""

    discovery: str = _setting(
        "",
        "where workers' records are kept: a directory, etcd://host:2379, nats://host:4222/PREFIX or "
        "redis://host:6379/0/PREFIX (default: workers are not looked for)",
        flag="--discovery",
        metavar="URL",
    )
    namespace: str = _setting("kvrouter", "namespace of the workers", name_characters_max=64)
    component: str = _setting("backend", "component of the workers", name_characters_max=64)
    endpoint: str = _setting("generate", "endpoint of the workers", name_characters_max=64)
    request_plane: str = _setting(
        "",
        "what requests travel over where a worker offers several (default: KVROUTER_REQUEST_PLANE, or tcp)",
        flag="--request-plane",
        choices=("tcp", "http", "nats", "zmq", "grpc"),
    )
    nats_server: str = _setting(
        "",
        "NATS server of workers that are reached over NATS (default: NATS_SERVER, or nats://127.0.0.1:4222, with "
        "--request-plane nats; otherwise none)",
        flag="--nats-server",
        metavar="URL",
    )
    overload_status: int = _setting(
        503, "status of the answer where every worker that was asked has too much to do", at_least=400, at_most=599
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSettings:
    """Several routers in front of one fleet; see [operations](operations.md#several-routers)."""

    store: str = _setting(
        "",
        "where the routers of a namespace tell each other what they have booked: as --discovery, or off (default: "
        "where --discovery looks)",
        flag="--replica-store",
        metavar="URL",
    )
    interval_seconds: float = _setting(
        0.1,
        "each tells the others so often on average, at most; only what has changed",
        flag="--replica-interval",
        at_least=0.01,
        at_most=5,
    )
    lease_seconds: float = _setting(
        5.0,
        "a router that says nothing for so long is forgotten, with all that it has booked",
        flag="--replica-lease",
        at_least=1,
        at_most=60,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSettings:
    """What is known of the workers' caches."""

    bytes_max: int | None = _setting(
        None,
        "memory of the index, and of all that is kept to follow engines' events; at the bound less is claimed than is "
        "true, never more (default: no bound)",
        flag="--index-bytes-max",
        at_least=_MIB,
        at_most=16 * 1024 * 1024 * _MIB,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSettings:
    """How prompts become tokens."""

    tokenizers: tuple[str, ...] = _setting(
        (),
        "MODEL=PATH of a tokenizer.json, or of the folder that holds it and tokenizer_config.json (repeatable)",
        flag="--tokenizer",
        metavar="MODEL=PATH",
    )
    chat_templates: tuple[str, ...] = _setting(
        (),
        "MODEL=PATH of a Jinja chat template that replaces the tokenizer's own (repeatable)",
        flag="--chat-template",
        metavar="MODEL=PATH",
    )
    worker_tokenize: bool = _setting(True, "ask a worker's /tokenize where no tokenizer is given")
    block_size: int = _setting(
        16, "tokens per block until a worker's events tell its own", flag="--block-size", at_least=1, at_most=65_536
    )
    cache_bytes_max: int = _setting(256 * _MIB, "memory of the prompt caches", at_least=0, at_most=65_536 * _MIB)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSettings:
    """How workers are watched."""

    interval_seconds: float = _setting(
        5.0, "time between health checks of a worker", at_least=0.05, at_most=3600, live=True
    )
    timeout_seconds: float = _setting(2.0, "time a health check may take", at_least=0.05, at_most=60, live=True)
    failures: int = _setting(
        3, "failed checks in a row that make a worker unroutable", at_least=1, at_most=100, live=True
    )
    successes: int = _setting(1, "good checks in a row that make it routable again", at_least=1, at_most=100, live=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What the process says."""

    level: str = _setting(
        "info",
        "least level that is logged",
        flag="--log-level",
        choices=("debug", "info", "warning", "error"),
        live=True,
    )
    format: str = _setting("json", "json lines or plain text", flag="--log-format", choices=("json", "text"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigSettings:
    """Where settings are kept that change while the router runs; see [operations](operations.md)."""

    store: str = _setting(
        "",
        "store whose key `config/NAMESPACE` is followed: a directory, etcd://host:2379, nats://host:4222/PREFIX or "
        "redis://host:6379/0/PREFIX, or off (default: that of --discovery, if there is one)",
        flag="--config-store",
        metavar="URL",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set, built once and passed down in sections."""

    server: ServerSettings = field(default_factory=ServerSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    routing: RoutingSettings = field(default_factory=RoutingSettings)
    queue: QueueSettings = field(default_factory=QueueSettings)
    placement: PlacementSettings = field(default_factory=PlacementSettings)
    events: EventSettings = field(default_factory=EventSettings)
    planes: PlaneSettings = field(default_factory=PlaneSettings)
    replicas: ReplicaSettings = field(default_factory=ReplicaSettings)
    index: IndexSettings = field(default_factory=IndexSettings)
    tokens: TokenSettings = field(default_factory=TokenSettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    log: LogSettings = field(default_factory=LogSettings)
    config: ConfigSettings = field(default_factory=ConfigSettings)
    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    workers: tuple[str, ...] = ()
    """Worker specifications, as `--worker` takes them; `kvrouter.service.workers` parses them."""


def section_classes() -> dict[str, type]:
    """Return the sections by name, in the order of `Settings`."""
    return {
        each.name: cast("type", each.default_factory)
        for each in cast("tuple[Field[object], ...]", fields(Settings))
        if each.default_factory is not MISSING
    }


def sections_of(command: str) -> tuple[str, ...]:
    """Return the sections that `kvrouter serve` or `kvrouter gateway` has flags for; files may hold those of both."""
    if command == "gateway":
        return ("gateway", "auth", "log")
    return tuple(section for section in section_classes() if section != "gateway")
