"""Names that publishers and consumers of a JetStream event plane agree on: addresses, subjects, message ids.

Pure string rules, with the standard library only; nothing here opens a connection. docs/transport-nats.md is the page.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from kvrouter.errors import SettingsError
from kvrouter.events.endpoints import without_password
from kvrouter.events.load import KV_METRICS_TOPIC
from kvrouter.events.model import Source

__all__ = [
    "GUEST_CREDENTIALS",
    "NatsCredentials",
    "NatsEndpoint",
    "events_stream",
    "events_subject",
    "load_subject",
    "load_subjects",
    "message_id",
    "parse_nats_endpoint",
    "state_subject",
    "stream_name",
]

_PORT: Final = 4222
_NAME_CHARACTERS_MAX: Final = 255
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsCredentials:
    """How we prove to a NATS server who we are; the first of these that is set is used, in this order.

    `nkey_seed` and `credentials_file` need the package nkeys. None of them is ever shown.
    """

    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    nkey_seed: str | None = field(default=None, repr=False)
    credentials_file: str | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "NatsCredentials":
        """Read `NATS_AUTH_*` of a given environment, which is the caller's to name; without any: `user`/`user`."""
        username, password = environment.get("NATS_AUTH_USERNAME"), environment.get("NATS_AUTH_PASSWORD")
        if username and password:
            return cls(username=username, password=password)
        if token := environment.get("NATS_AUTH_TOKEN"):
            return cls(token=token)
        if seed := environment.get("NATS_AUTH_NKEY"):
            return cls(nkey_seed=seed)
        if file := environment.get("NATS_AUTH_CREDENTIALS_FILE"):
            return cls(credentials_file=file)
        return GUEST_CREDENTIALS

    def connect_options(self) -> dict[str, Any]:
        """Return what the client library's `connect` is to be called with."""
        if self.username is not None:
            return {"user": self.username, "password": self.password or ""}
        if self.token is not None:
            return {"token": self.token}
        if self.nkey_seed is not None:
            return {"nkeys_seed_str": self.nkey_seed}
        if self.credentials_file is not None:
            return {"user_credentials": self.credentials_file}
        return {}


GUEST_CREDENTIALS: Final = NatsCredentials(username="user", password="user")  # noqa: S106 - what an open server is told
"""What clients of this wire say where nothing is configured; a server without authentication takes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsEndpoint:
    """One stream of one server. `server` is the address without credentials."""

    server: str
    stream: str
    secure: bool
    credentials: NatsCredentials | None = None

    def __str__(self) -> str:
        return f"{self.server}/{self.stream}"


def parse_nats_endpoint(endpoint: str) -> NatsEndpoint:
    """Read `nats://[user[:password]@]host[:port]/stream`, or `tls://...` where the connection must be encrypted.

    A user without a password is a token, as everywhere with NATS.

    Raises:
        SettingsError: it is not of that form.
    """
    wrong = SettingsError(f"event endpoint {without_password(endpoint)!r} must look like nats://host[:port]/stream")
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError as error:
        raise wrong from error
    if parts.scheme not in ("nats", "tls") or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise wrong
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return NatsEndpoint(
        server=f"{parts.scheme}://{host}:{port or _PORT}",
        stream=stream_name(parts.path[1:]),
        secure=parts.scheme == "tls",
        credentials=_userinfo(parts.username, parts.password),
    )


def stream_name(name: str) -> str:
    """Return `name` as a stream may be called: slashes become `_`.

    Raises:
        SettingsError: it is empty, too long, or has characters that mean something else to NATS.
    """
    usable = name.replace("/", "_").replace("\\", "_")
    if not usable or len(usable) > _NAME_CHARACTERS_MAX or _UNSAFE.search(usable):
        raise SettingsError(f"stream {name!r} must be of letters, digits, `-` and `_`")
    return usable


def events_stream(namespace: str, component: str, *, subject: str = "kv_events") -> str:
    """Return the stream of a component's events, as `namespace-dynamo-component-backend-kv-events`."""
    slug = _UNSAFE.sub("_", f"namespace.{namespace}.component.{component}.{subject}".lower())
    return slug.replace("_", "-")


def events_subject(stream: str) -> str:
    """Return the subject under which all sources of a stream publish; the stream keeps `{stream}.*`."""
    return f"{stream}.queue"


def state_subject(stream: str, source: Source) -> str:
    """Return the subject on which a publisher answers for its whole state; the stream does not keep it."""
    return f"{stream}.state.{_token(source.worker_id)}.{source.rank}"


def load_subject(stream: str, source: Source) -> str:
    """Return the subject of a source's load reports; no stream keeps it, also one that keeps `{stream}.>`."""
    return f"{KV_METRICS_TOPIC}.{stream}.{_token(source.worker_id)}.{source.rank}"


def load_subjects(stream: str) -> str:
    """Return what a router subscribes to for the load reports of all sources of a stream."""
    return f"{KV_METRICS_TOPIC}.{stream}.*.*"


def message_id(source: Source, incarnation: int, sequence: int) -> str:
    """Return the `Nats-Msg-Id` of a batch, by which the server knows one that was sent twice."""
    return f"{_token(source.worker_id)}-{source.rank}-{incarnation:016x}:{sequence}"


def _userinfo(name: str | None, password: str | None) -> NatsCredentials | None:
    if name is None:
        return None
    if password is None:
        return NatsCredentials(token=unquote(name))
    return NatsCredentials(username=unquote(name), password=unquote(password))


def _token(text: str) -> str:
    """Write any text as one token of a subject; different texts stay different."""
    return _UNSAFE.sub(lambda found: "".join(f"={byte:02X}" for byte in found.group().encode()), text)
