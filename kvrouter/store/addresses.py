"""Which backend a store's URL means, and where in it. Pure string rules; nothing is opened."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal
from urllib.parse import SplitResult, unquote, urlsplit

from kvrouter.errors import SettingsError

__all__ = ["NO_OPTIONS", "StoreAddress", "parse_store_url"]

NO_OPTIONS: Final[Mapping[str, Any]] = MappingProxyType({})

_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,64}")
_REDIS_PATH = re.compile(r"/([0-9]{1,4})/([A-Za-z0-9_-]{1,64})")
_FORMS = (
    "file:///directory, nats://host:port/PREFIX, redis://host:port/database/PREFIX, etcd://host:port/PREFIX, "
    "http://host:port or memory:"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreAddress:
    """`server` is a URL for the backend's client, with password; `prefix` our part of it, or the directory."""

    kind: Literal["file", "memory", "etcd", "http", "nats", "redis"]
    server: str
    prefix: str

    def __repr__(self) -> str:
        return f"StoreAddress(kind={self.kind!r}, prefix={self.prefix!r})"  # `server` may hold a password.


def parse_store_url(url: str) -> StoreAddress:
    """Read the URL of a store.

    Raises:
        SettingsError: it has none of the known forms.
    """
    try:
        parts = urlsplit(url)
        address = _read(url, parts)
    except ValueError:
        address = None
    if address is None:
        raise SettingsError(f"store {re.sub(r'//[^/@]*@', '//***@', url)!r} must look like {_FORMS}")
    return address


def _read(url: str, parts: SplitResult) -> StoreAddress | None:
    if parts.query or parts.fragment:
        return None
    match parts.scheme:
        case "":
            return StoreAddress(kind="file", server="", prefix=url) if url else None
        case "file":
            local = parts.netloc in ("", "localhost") and parts.path.startswith("/")
            return StoreAddress(kind="file", server="", prefix=unquote(parts.path)) if local else None
        case "memory":
            return StoreAddress(kind="memory", server="", prefix="") if url.rstrip("/") == "memory:" else None
        case "nats" | "tls" | "etcd":
            kind: Literal["etcd", "nats"] = "etcd" if parts.scheme == "etcd" else "nats"
            prefix = parts.path.removeprefix("/")
            if not _names_server(parts) or (_PREFIX.fullmatch(prefix) is None and not (kind == "etcd" and not prefix)):
                return None
            return StoreAddress(kind=kind, server=f"{parts.scheme}://{parts.netloc}", prefix=prefix)
        case "http" | "https":
            named = _names_server(parts) and not parts.path.strip("/")
            return StoreAddress(kind="http", server=f"{parts.scheme}://{parts.netloc}", prefix="") if named else None
        case "redis" | "rediss":
            path = _REDIS_PATH.fullmatch(parts.path)
            if not _names_server(parts) or path is None:
                return None
            server = f"{parts.scheme}://{parts.netloc}/{path[1]}"
            return StoreAddress(kind="redis", server=server, prefix=path[2])
        case _:
            return None


def _names_server(parts: SplitResult) -> bool:
    return bool(parts.hostname) and parts.port != 0
