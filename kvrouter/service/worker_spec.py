"""What one worker is said to be: the fields of `--worker` and of `POST /workers`, checked once, here.

Two spellings lead to the same `WorkerSpec`: ours (`url`, `events`, `ranks`, …) and that of Dynamo's selection service
(`endpoint`, `kv_events_endpoints`, `data_parallel_size`, …), so that its clients switch by changing an address. Nothing
here opens a connection; whether a worker can be reached is `workers.py`.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from urllib.parse import SplitResult, urlsplit

from kvrouter.errors import RequestError, SettingsError
from kvrouter.events.endpoints import check_endpoint, check_source, is_wildcard, rank_endpoint
from kvrouter.routing.constraints import PLAIN, Traits
from kvrouter.service.proxy import Endpoint
from kvrouter.service.worker_traits import Engine, read_engine, read_traits

__all__ = ["WorkerSpec", "parse_worker_spec", "worker_spec_from_fields"]

RANKS_MAX = 256
BOOTSTRAP_PORT = 8998
"""SGLang's own default of --disaggregation-bootstrap-port."""
BLOCK_SIZE_MAX = 65_536
MODELS_MAX = 1024
TEXT_CHARACTERS_MAX = 512

_ID = re.compile(r"[A-Za-z0-9._:@\[\]-]{1,128}")
_HEADER_TEXT = re.compile(r"[\x21-\x7e]{1,4096}")
_ALIASES = {
    "id": "worker_id",
    "model": "models",
    "model_name": "models",
    "events": "kv_events_endpoint",
    "replay": "replay_endpoint",
    "ranks": "data_parallel_size",
    "first_rank": "data_parallel_start_rank",
}
# What the error about an unknown field offers; the rest is for Dynamo's clients, who know their own names.
_OURS = (
    *("url", "id", "model", "events", "replay", "ranks", "first_rank", "block_size", "topic", "api_key"),
    *("labels", "taints", "zone", "role", "engine", "bootstrap_port"),
)
_EVENT_FIELDS = frozenset({"kv_events_endpoint", "kv_events_endpoints"})
# Kept and shown as they were given; our own are read by `worker_traits.py` too.
_ECHOED = (
    "labels",
    "zone",
    "role",
    "engine",
    "bootstrap_port",
    "max_num_batched_tokens",
    "total_kv_blocks",
    "stable_routing_id",
    "is_eagle",
    "taints",
    "topology_domains",
    "kv_transfer_domain",
    "kv_transfer_enforcement",
    "kv_transfer_preferred_weight",
    "router_hint_worker_type",
    "router_hint_source_control_endpoints",
)
_NUMERIC = frozenset({"block_size", "data_parallel_size", "data_parallel_start_rank", "bootstrap_port"})
_KNOWN = {
    "worker_id",
    "url",
    "endpoint",
    "models",
    "routing_group",
    "block_size",
    "kv_events_endpoint",
    "kv_events_endpoints",
    "replay_endpoint",
    "topic",
    "api_key",
    "data_parallel_size",
    "data_parallel_start_rank",
    *_ECHOED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """One worker as registered; `fields` are the checked originals, which an update is merged into."""

    worker_id: str
    public_id: int | str
    """The id as it was given: clients of Dynamo use numbers and get numbers back."""
    address: str
    """What selection answers as `endpoint`; any text if the worker was registered by `endpoint`."""
    url: str | None
    """Where requests go; None when `endpoint` is not an HTTP address, so that only gateways can reach it."""
    trusted: bool
    """Registered by `endpoint`, for a gateway's use: selectable without a good health check of ours."""
    models: tuple[str, ...] = ()
    routing_group: str = "default"
    block_size: int | None = None
    ranks: int = 1
    first_rank: int = 0
    events: Mapping[int, str] = field(default_factory=dict)
    replay: Mapping[int, str] = field(default_factory=dict)
    topic: str = ""
    api_key: str | None = field(default=None, repr=False)
    traits: Traits = PLAIN
    engine: Engine = "vllm"
    reached: Endpoint | None = field(default=None, repr=False)
    """Where requests go instead of `url`, for workers that are reached otherwise."""
    bootstrap_port: int = BOOTSTRAP_PORT
    """Where an SGLang prefill server meets the decode server of a split request."""
    fields: Mapping[str, object] = field(default_factory=dict, repr=False)

    def merged(self, changes: Mapping[str, object]) -> dict[str, object]:
        """Return the fields of this worker with some of them changed; None takes one back."""
        replaced = {_ALIASES.get(name, name) for name in changes}
        # One way of naming the event endpoints replaces the other.
        if replaced & _EVENT_FIELDS:
            replaced |= _EVENT_FIELDS
        return {**{name: value for name, value in self.fields.items() if name not in replaced}, **changes}

    def echoed(self) -> dict[str, object]:
        """Return the fields that are only kept for their reader."""
        return {name: self.fields[name] for name in _ECHOED if name in self.fields}


def parse_worker_spec(text: str) -> WorkerSpec:
    """Parse `URL[,NAME=VALUE]...`; the names are those of `POST /workers`, lists have `+` between their members.

    Raises:
        SettingsError: a field is unknown or out of its bounds; the text names both, and never an API key.
    """
    url, *parts = text.split(",")
    try:
        spec = worker_spec_from_fields(_pairs(url, parts))
    except RequestError as error:
        raise SettingsError(f"worker {_redacted(url)!r}: {error.message}") from None
    if spec.replay and not spec.events:
        raise SettingsError(f"worker {url!r}: replay is of no use without events; give events=tcp://HOST:PORT too")
    return spec


def worker_spec_from_fields(given: Mapping[str, object]) -> WorkerSpec:
    """Check the fields of one worker; None counts as absent.

    Raises:
        RequestError: 400, with `param` naming the field and the text naming its limit.
    """
    fields = _Fields()
    for name, value in given.items():
        if value is not None:
            fields.take(name, value)
    address, url = _address(fields)
    ranks = _integer(fields, "data_parallel_size", 1, 1, RANKS_MAX)
    first_rank = _integer(fields, "data_parallel_start_rank", 0, 0, RANKS_MAX - 1)
    public_id = _identity(fields, url)
    models = _models(fields)
    trusted = "url" not in fields
    if trusted and not models:
        models = ("default",)
    return WorkerSpec(
        worker_id=str(public_id),
        public_id=public_id,
        address=address,
        url=url,
        trusted=trusted,
        models=models,
        routing_group=_text(fields, "routing_group", "default"),
        block_size=_integer(fields, "block_size", 0, 1, BLOCK_SIZE_MAX) or None,
        ranks=ranks,
        first_rank=first_rank,
        events=_events(fields, first_rank, ranks),
        replay=_per_rank(fields, "replay_endpoint", first_rank, ranks),
        topic=_text(fields, "topic", "", least=0),
        api_key=_header_text(fields, "api_key"),
        traits=read_traits(fields),
        engine=read_engine(fields),
        bootstrap_port=_integer(fields, "bootstrap_port", BOOTSTRAP_PORT, 1, 65_535),
        fields=MappingProxyType(fields),
    )


class _Fields(dict[str, object]):
    """Fields by canonical name, and what each was called by whoever gave it: errors speak his language."""

    def __init__(self) -> None:
        super().__init__()
        self._given_names: dict[str, str] = {}

    def take(self, name: str, value: object) -> None:
        """Add a field under either of its names, once."""
        canonical = _ALIASES.get(name, name)
        if canonical not in _KNOWN:
            raise _unknown(name)
        if canonical in self:
            raise RequestError(f"{name} is given twice", param=name)
        self[canonical] = value
        self._given_names[canonical] = name

    def called(self, canonical: str) -> str:
        """Return the name under which a field was given."""
        return self._given_names.get(canonical, canonical)


def _unknown(name: str) -> RequestError:
    near = difflib.get_close_matches(name, [*_OURS, *_KNOWN, *_ALIASES], n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]}?" if near else f"; fields are {', '.join(_OURS)}, and those of Dynamo's workers"
    return RequestError(f"unknown worker field {name!r}{hint}", param=name)


def _pairs(url: str, parts: list[str]) -> dict[str, object]:
    fields: dict[str, object] = {"url": url.strip()}
    for part in parts:
        name, value = _name_and_value(part)
        if name in fields:
            raise RequestError(f"{name} is given twice", param=name)
        fields[name] = value
    return fields


def _name_and_value(part: str) -> tuple[str, object]:
    """Read `NAME=VALUE`; whole numbers as such where the field is one, so that `id=1` stays text."""
    name, equals, value = (each.strip() for each in part.partition("="))
    if not equals:
        raise RequestError(f"{name!r} is not NAME=VALUE", param=name)
    if name in ("labels", "taints"):
        return name, value.split("+")
    numeric = _ALIASES.get(name, name) in _NUMERIC
    return name, int(value) if numeric and re.fullmatch(r"-?[0-9]{1,18}", value) else value


def _address(fields: _Fields) -> tuple[str, str | None]:
    if "url" in fields:
        url = _url(_text(fields, "url", ""), "url")
        return (_text(fields, "endpoint", url), url)
    if "endpoint" not in fields:
        raise RequestError("a worker needs a url", param="url")
    address = _text(fields, "endpoint", "")
    if address.startswith(("http://", "https://")):
        return address, _url(address, "endpoint")
    return address, None


def _url(text: str, name: str) -> str:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise RequestError(f"{name} cannot be read: {str(error)[:1].lower()}{str(error)[1:]}", param=name) from None
    problem = _url_problem(parts, port)
    if problem:
        raise RequestError(f"{name} {problem}", param=name)
    return text.rstrip("/")


def _url_problem(parts: SplitResult, port: int | None) -> str | None:
    if parts.scheme not in ("http", "https"):
        return "must begin with http:// or https://"
    if not parts.hostname:
        return "names no host"
    if port == 0:
        return "must have a port of 1..65535"
    if parts.username is not None or parts.password is not None:
        return "must not carry credentials; use api_key"
    if parts.query or parts.fragment:
        return "must not have a query or fragment"
    if not re.fullmatch(r"[\x21-\x7e]*", parts.geturl()):
        return "must be printable ASCII"
    return None


def _redacted(url: str) -> str:
    """A URL as errors may show it."""
    return re.sub(r"//[^/]*@", "//", url)


def _identity(fields: _Fields, url: str | None) -> int | str:
    given, name = fields.get("worker_id"), fields.called("worker_id")
    if given is None:
        if url is None:
            raise RequestError("worker_id is needed where endpoint is not an HTTP address", param="worker_id")
        parts = urlsplit(url)
        default_port = 443 if parts.scheme == "https" else 80
        netloc = parts.netloc if parts.port else f"{parts.netloc}:{default_port}"
        given = re.sub(r"[^A-Za-z0-9._:@\[\]-]", "-", netloc + parts.path)[:128]
    if isinstance(given, bool) or not isinstance(given, (int, str)):
        raise RequestError(f"{name} must be text or a whole number", param=name)
    if isinstance(given, int) and not 0 <= given < 1 << 64:
        raise RequestError(f"{name} must be 0..2^64-1", param=name)
    if not _ID.fullmatch(str(given)):
        raise RequestError(f"{name} must be 1..128 of A-Z a-z 0-9 . _ : @ [ ] -", param=name)
    return given


def _integer(fields: _Fields, name: str, default: int, least: int, most: int) -> int:
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        name = fields.called(name)
        raise RequestError(f"{name} must be a whole number {least}..{most}, not {value!r}", param=name)
    return value


def _text(fields: _Fields, name: str, default: str, *, least: int = 1) -> str:
    value = fields.get(name, default)
    if not isinstance(value, str) or not least <= len(value) <= TEXT_CHARACTERS_MAX:
        raise RequestError(f"{name} must be text of {least}..{TEXT_CHARACTERS_MAX} characters", param=name)
    return value


def _header_text(fields: _Fields, name: str) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not _HEADER_TEXT.fullmatch(value):
        raise RequestError(f"{name} must be 1..4096 printable ASCII characters without spaces", param=name)
    return value


def _models(fields: _Fields) -> tuple[str, ...]:
    value, called = fields.get("models", ()), fields.called("models")
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or len(names) > MODELS_MAX:
        raise RequestError(f"{called} must be a name or a list of at most {MODELS_MAX}", param=called)
    for name in names:
        if not isinstance(name, str) or not 1 <= len(name) <= TEXT_CHARACTERS_MAX:
            raise RequestError(f"{called}: names must be text of 1..{TEXT_CHARACTERS_MAX} characters", param=called)
    return tuple(dict.fromkeys(names))


def _events(fields: _Fields, first_rank: int, ranks: int) -> Mapping[int, str]:
    each = fields.get("kv_events_endpoints")
    if each is None:
        return _per_rank(fields, "kv_events_endpoint", first_rank, ranks)
    if "kv_events_endpoint" in fields:
        raise RequestError("give kv_events_endpoint or kv_events_endpoints, not both", param="kv_events_endpoints")
    if not isinstance(each, Mapping):
        raise RequestError("kv_events_endpoints must map ranks to endpoints", param="kv_events_endpoints")
    last = first_rank + ranks - 1
    endpoints = {}
    for rank, endpoint in each.items():
        if not (isinstance(rank, str) and rank.isdecimal() and first_rank <= int(rank) <= last):
            raise RequestError(
                f"kv_events_endpoints: rank {rank!r} is not {first_rank}..{last}", param="kv_events_endpoints"
            )
        endpoints[int(rank)] = _event_endpoint(endpoint, "kv_events_endpoints")
    return endpoints


def _per_rank(fields: _Fields, name: str, first_rank: int, ranks: int) -> Mapping[int, str]:
    """Give rank r the port `base + r`, as vLLM and SGLang do; for paths see `rank_endpoint`."""
    if name not in fields:
        return {}
    called = fields.called(name)
    replays = name == "replay_endpoint"  # Only ZeroMQ needs another address for them.
    base = _event_endpoint(fields[name], called, check_endpoint if replays else check_source)
    if replays and is_wildcard(base):
        raise _unconnectable(base, called)
    return {
        rank: _checked_endpoint(partial(rank_endpoint, base, rank), called)
        for rank in range(first_rank, first_rank + ranks)
    }


def _event_endpoint(value: object, name: str, check: Callable[[str], str] = check_source) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{name} must be text such as tcp://host:5557", param=name)
    endpoint = _checked_endpoint(partial(check, value), name)
    # A wildcard for events means that engines connect to us; nobody can connect to one, or to an unknown port.
    if endpoint.endswith((":0", ":*")):
        raise _unconnectable(endpoint, name)
    return endpoint


def _unconnectable(endpoint: str, name: str) -> RequestError:
    return RequestError(f"{name} {endpoint!r} must name a host and a port to connect to", param=name)


def _checked_endpoint(call: Callable[[], str], name: str) -> str:
    try:
        return call()
    except SettingsError as error:
        raise RequestError(f"{name}: {error}", param=name) from None
