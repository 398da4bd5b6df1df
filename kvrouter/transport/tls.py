"""TLS of every transport: one set of files, read from the environment under one set of names, read again when changed.

Servers and clients ask for their context at each handshake; a look at the files' times tells whether they are to be
read again, so that a renewed certificate needs no restart. Files that cannot be read then leave what was read before in
use, and are logged.
"""

import logging
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from kvrouter.errors import SettingsError
from kvrouter.transport.variables import Variables

__all__ = ["ClientTls", "PlaneTls", "ServerTls", "file_stamp", "log_unreadable", "plane_tls", "read_pem"]

_PATHS = ("CERT_PATH", "KEY_PATH", "CA_CERT_PATH", "CLIENT_CA_CERT_PATH", "CLIENT_CERT_PATH", "CLIENT_KEY_PATH")
_HANDSHAKE_SECONDS = 3.0

_log = logging.getLogger("kvrouter.transport")

Stamp: TypeAlias = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneTls:
    """Files in PEM, and how peers are checked.

    A server has `cert_path` and `key_path`; with `client_ca_path` it takes only clients with a certificate of that
    authority. A client trusts `ca_path`, or the system's authorities, and shows `client_cert_path`. `server_name` is
    what the server's certificate must name, where that is not the address; without `verify` a client trusts anybody.
    """

    cert_path: str | None = None
    key_path: str | None = None
    ca_path: str | None = None
    client_ca_path: str | None = None
    client_cert_path: str | None = None
    client_key_path: str | None = None
    server_name: str | None = None
    verify: bool = True
    handshake_seconds: float = _HANDSHAKE_SECONDS

    @property
    def serves(self) -> bool:
        """Whether a server has a certificate."""
        return self.cert_path is not None

    @property
    def dials(self) -> bool:
        """Whether anything is said for clients: then they use TLS where their address alone does not tell."""
        return bool(self.ca_path or self.client_cert_path or self.server_name or not self.verify)


def plane_tls(found: Variables, prefix: str) -> PlaneTls:
    """Read `{prefix}_CERT_PATH` and its like.

    Raises:
        SettingsError: it is half configured, or a value is none.
    """
    cert, key, ca, client_ca, client_cert, client_key = (found.optional(f"{prefix}_{name}") for name in _PATHS)
    if (cert is None) != (key is None):
        raise SettingsError(f"{prefix}_CERT_PATH and {prefix}_KEY_PATH go together")
    if (client_cert is None) != (client_key is None):
        raise SettingsError(f"{prefix}_CLIENT_CERT_PATH and {prefix}_CLIENT_KEY_PATH go together")
    if client_ca is not None and cert is None:
        raise SettingsError(f"{prefix}_CLIENT_CA_CERT_PATH needs {prefix}_CERT_PATH: it is for a server")
    insecure = found.flag(f"{prefix}_INSECURE", default=False)
    if insecure and ca is not None:
        raise SettingsError(f"{prefix}_INSECURE trusts anybody, {prefix}_CA_CERT_PATH does not: set one of them")
    return PlaneTls(
        cert_path=cert,
        key_path=key,
        ca_path=ca,
        client_ca_path=client_ca,
        client_cert_path=client_cert,
        client_key_path=client_key,
        server_name=found.optional(f"{prefix}_SERVER_NAME"),
        verify=not insecure,
        handshake_seconds=found.seconds(f"{prefix}_HANDSHAKE_TIMEOUT_SECS", _HANDSHAKE_SECONDS),
    )


class _Reread:
    """A context, made anew when one of its files has changed."""

    def __init__(self, tls: PlaneTls, paths: Sequence[str | None], alpn: Sequence[str]) -> None:
        self.failed_reloads = 0
        self.last_error: str | None = None
        """Why files that changed could not be read; None while they could."""
        self._tls, self._alpn = tls, list(alpn)
        self._paths = [path for path in paths if path is not None]
        self._stamps = [file_stamp(path) for path in self._paths]
        self._context = self._make()

    def current(self) -> ssl.SSLContext:
        """The context of what the files say now, or said last before they could not be read."""
        stamps = [file_stamp(path) for path in self._paths]
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._context, self.last_error = self._make(), None
            except SettingsError as error:
                self.failed_reloads += 1
                self.last_error = str(error)
                log_unreadable(error)
        return self._context

    def _make(self) -> ssl.SSLContext:
        raise NotImplementedError


class ServerTls(_Reread):
    """TLS of a server that listens; `options` are asyncio's. Raises SettingsError that names a file."""

    def __init__(self, tls: PlaneTls, *, alpn: Sequence[str] = ()) -> None:
        super().__init__(tls, (tls.cert_path, tls.key_path, tls.client_ca_path), alpn)
        # Listeners keep their first context; each handshake is given the current one.
        self._first = self._context
        self._first.sni_callback = self._choose

    def options(self) -> dict[str, Any]:
        """Further arguments of `create_server`."""
        return {"ssl": self._first, "ssl_handshake_timeout": self._tls.handshake_seconds}

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self.current()

    def _make(self) -> ssl.SSLContext:
        tls = self._tls
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        assert tls.cert_path is not None, "no certificate"
        _load_chain(context, tls.cert_path, tls.key_path)
        if tls.client_ca_path is not None:
            _load_authorities(context, tls.client_ca_path)
            context.verify_mode = ssl.CERT_REQUIRED
        if self._alpn:
            context.set_alpn_protocols(self._alpn)
        return context


class ClientTls(_Reread):
    """TLS of a client that dials; `options` are asyncio's. Raises SettingsError that names a file."""

    def __init__(self, tls: PlaneTls, *, alpn: Sequence[str] = ()) -> None:
        super().__init__(tls, (tls.ca_path, tls.client_cert_path, tls.client_key_path), alpn)

    def options(self, host: str) -> dict[str, Any]:
        """Further arguments of `create_connection` to `host`."""
        return {
            "ssl": self.current(),
            "server_hostname": self._tls.server_name or host,
            "ssl_handshake_timeout": self._tls.handshake_seconds,
        }

    def _make(self) -> ssl.SSLContext:
        tls = self._tls
        context = ssl.create_default_context()
        if tls.ca_path is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            _load_authorities(context, tls.ca_path)
        if not tls.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if tls.client_cert_path is not None:
            _load_chain(context, tls.client_cert_path, tls.client_key_path)
        if self._alpn:
            context.set_alpn_protocols(self._alpn)
        return context


def read_pem(path: str) -> bytes:
    """Return a file's bytes; raises SettingsError that names it."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror or type(error).__name__}") from None


def file_stamp(path: str) -> Stamp:
    """What changes when a file is written, or another one is put in its place, also behind a symbolic link."""
    try:
        status = os.stat(path)  # noqa: PTH116 - as a plain call it costs a microsecond
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def log_unreadable(error: SettingsError) -> None:
    """Say that a file has changed and cannot be read, so that what it said before goes on."""
    _log.warning("changed_file_unreadable", extra={"fields": {"error": str(error)}})


def _load_chain(context: ssl.SSLContext, cert_path: str, key_path: str | None) -> None:
    read_pem(cert_path)
    if key_path is not None:
        read_pem(key_path)
    try:
        # An encrypted key is an error, not a question at the terminal.
        context.load_cert_chain(cert_path, key_path, password=lambda: "")
    except (ssl.SSLError, ValueError):
        files = cert_path if key_path is None else f"{cert_path} and {key_path}"
        raise SettingsError(f"TLS: {files}: not a PEM certificate chain with its private key") from None


def _load_authorities(context: ssl.SSLContext, path: str) -> None:
    read_pem(path)
    try:
        context.load_verify_locations(path)
    except (ssl.SSLError, ValueError):
        raise SettingsError(f"TLS: {path}: no certificates of authorities in PEM") from None
