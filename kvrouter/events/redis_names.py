"""Names that publishers and consumers of a Redis event plane agree on: addresses, keys, the form of an entry.

Pure string rules, with the standard library only; nothing here opens a connection. docs/transport-redis.md is the page.
"""

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from kvrouter.errors import SettingsError
from kvrouter.events.endpoints import check_source, transport_of, without_password
from kvrouter.events.load import KV_METRICS_TOPIC
from kvrouter.events.model import Source

__all__ = [
    "EMPTY_ANSWER",
    "ENTRY_FIELD",
    "GROUP_PREFIX",
    "REFUSED_ANSWER",
    "WORKER_GROUP",
    "EntryId",
    "RedisEndpoint",
    "RedisTls",
    "alive_key",
    "answer_key",
    "load_channel",
    "parse_entry_id",
    "parse_redis_endpoint",
    "reader_key",
    "request_key",
    "router_group",
]

ENTRY_FIELD: Final = b"e"
"""The field of a stream's entry that holds the envelope; all others are for other readers."""
GROUP_PREFIX: Final = "kvrouter:"
WORKER_GROUP: Final = "kvrouter-workers"
"""The group whose members share a stream; each entry goes to one of them."""
EMPTY_ANSWER: Final = b"empty"
"""Stands for a snapshot of a publisher that has sent nothing yet."""
REFUSED_ANSWER: Final = b"none"
"""Stands for a snapshot of a publisher that makes none."""

_PORT: Final = 6379


class EntryId(NamedTuple):
    """The id of a stream's entry; later entries have higher ones."""

    milliseconds: int
    number: int

    def __str__(self) -> str:
        return f"{self.milliseconds}-{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisTls:
    """Files for TLS beyond what the system trusts: who may vouch for the server, and who we are."""

    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None

    def client_options(self) -> dict[str, str]:
        """Return what the client library is to be called with."""
        options = {
            "ssl_ca_certs": self.ca_file,
            "ssl_certfile": self.certificate_file,
            "ssl_keyfile": self.key_file,
        }
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisEndpoint:
    """One stream of one server."""

    host: str
    port: int
    database: int
    stream: str
    secure: bool
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.secure else 'redis'}://{host}:{self.port}/{self.database}/{self.stream}"

    def client_options(self, tls: RedisTls | None = None) -> dict[str, Any]:
        """Return what the client library is to be called with."""
        options: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "db": self.database,
            "ssl": self.secure,
        }
        if self.username:
            options["username"] = self.username
        if self.password:
            options["password"] = self.password
        if self.secure and tls is not None:
            options |= tls.client_options()
        return options


def parse_redis_endpoint(endpoint: str) -> RedisEndpoint:
    """Read `redis://[[user]:password@]host[:port]/database/stream`, or `rediss://...` for TLS.

    Raises:
        SettingsError: it is not of that form.
    """
    if transport_of(endpoint) != "redis":
        raise SettingsError(f"event endpoint {without_password(endpoint)!r} must start with redis:// or rediss://")
    parts = urlsplit(check_source(endpoint))
    _, database, stream = parts.path.split("/")
    stream = unquote(stream)
    if any(character in stream for character in "{}"):
        raise SettingsError(f"stream {stream!r} must not have braces: they mean something to Redis")
    return RedisEndpoint(
        host=parts.hostname or "",
        port=parts.port or _PORT,
        database=int(database),
        stream=stream,
        secure=parts.scheme == "rediss",
        username=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
    )


def parse_entry_id(text: bytes | str) -> EntryId:
    """Read an id as Redis writes it.

    Raises:
        SettingsError: it is none.
    """
    plain = text.decode("ascii", "replace") if isinstance(text, bytes) else text
    milliseconds, _, number = plain.partition("-")
    if not (milliseconds.isdecimal() and number.isdecimal()):
        raise SettingsError(f"{plain[:64]!r} is not the id of an entry")
    return EntryId(int(milliseconds), int(number))


def router_group(router_id: str) -> str:
    """Return the consumer group of one router, which sees every entry."""
    return f"{GROUP_PREFIX}{router_id}"


def alive_key(stream: str, group: str) -> str:
    """Return the key that is there as long as somebody reads as `group`."""
    return f"{_tag(stream)}:alive:{group}"


def reader_key(stream: str, group: str) -> str:
    """Return the key that names the process which reads as `group`, as long as it does."""
    return f"{_tag(stream)}:reader:{group}"


def request_key(stream: str, source: Source) -> str:
    """Return the list in which a publisher finds who wants its snapshot: the keys for the answers."""
    return f"{_tag(stream)}:wanted:{source.rank}:{source.worker_id}"


def answer_key(stream: str, token: str) -> str:
    """Return the list in which a snapshot is handed over; `token` is the asker's own."""
    return f"{_tag(stream)}:snapshot:{token}"


def load_channel(stream: str) -> str:
    """Return the channel of the load reports of all sources of a stream; the server keeps none of them."""
    return f"{_tag(stream)}:{KV_METRICS_TOPIC}"


def _tag(stream: str) -> str:
    """Keys that begin so are on the same node of a Redis cluster as the stream itself."""
    return f"{{{stream}}}"
