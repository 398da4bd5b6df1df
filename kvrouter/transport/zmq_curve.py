"""ZeroMQ's own encryption (CURVE): key pairs in files as `zmq.auth.create_certificates` writes them.

It encrypts, and proves both ends to each other. A server takes every client that knows its public key, or with a folder
of public keys those alone; the folder is read for every client that comes, so who is added or taken out counts at once.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import zmq
import zmq.asyncio
import zmq.auth
from zmq.utils import z85

from kvrouter.errors import SettingsError
from kvrouter.transport.endpoints import EndpointCounters
from kvrouter.transport.variables import Variables

__all__ = ["ZmqClients", "ZmqCurve", "zmq_curve"]

_ZAP_ADDRESS = "inproc://zeromq.zap.01"
_KEY_BYTES = 32
_ZAP_DOMAIN = b"kvrouter"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZmqCurve:
    """Files of keys: our own pair (`NAME.key_secret`), and the public one of the server that we dial (`NAME.key`).

    For a server, `clients_path` is a folder of the public keys of those clients that may come.
    """

    secret_key_path: str
    server_key_path: str | None = None
    clients_path: str | None = None

    def secure_server(self, socket: "zmq.asyncio.Socket") -> None:
        """Set a socket up before it is bound. Raises SettingsError that names a file."""
        _, secret = _pair(self.secret_key_path)
        socket.curve_secretkey = secret
        socket.curve_server = True
        if self.clients_path is not None:
            socket.zap_domain = _ZAP_DOMAIN

    def secure_client(self, socket: "zmq.asyncio.Socket") -> None:
        """Set a socket up before it connects. Raises SettingsError that names a file."""
        if self.server_key_path is None:
            raise SettingsError("CURVE: a client needs the server's public key")
        public, secret = _pair(self.secret_key_path)
        socket.curve_publickey, socket.curve_secretkey = public, secret
        socket.curve_serverkey, _ = _load(self.server_key_path)


class ZmqClients:
    """Answers the library when it asks whether a client may come (ZAP, https://rfc.zeromq.org/spec/27)."""

    def __init__(self, folder: str, counters: EndpointCounters) -> None:
        self._folder, self._counters = Path(folder), counters
        self._task: asyncio.Task[None] | None = None

    def start(self, context: "zmq.asyncio.Context") -> None:
        """Begin to answer, before a socket is bound. Raises SettingsError if there is no such folder."""
        if not self._folder.is_dir():
            raise SettingsError(f"CURVE: {self._folder} is no folder of public keys")
        socket = context.socket(zmq.REP)
        socket.bind(_ZAP_ADDRESS)
        self._task = asyncio.create_task(self._answer(socket), name="zmq clients")

    async def stop(self) -> None:
        """End. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _answer(self, socket: "zmq.asyncio.Socket") -> None:
        try:
            while True:
                version, request_id, _, _, _, mechanism, *credentials = await socket.recv_multipart()
                may = mechanism == b"CURVE" and len(credentials) == 1 and self._knows(credentials[0])
                self._counters.refused_keys += not may
                status = (b"200", b"OK") if may else (b"400", b"unknown key")
                await socket.send_multipart((version, request_id, *status, b"", b""))
        finally:
            socket.close(0)

    def _knows(self, key: bytes) -> bool:
        if len(key) != _KEY_BYTES:
            return False
        shown = z85.encode(key)
        for file in self._folder.glob("*.key"):
            try:
                if _load(str(file))[0] == shown:
                    return True
            except SettingsError:
                continue  # one that is being written
        return False


def zmq_curve(found: Variables) -> ZmqCurve | None:
    """Read `ZMQ_CURVE_SECRET_KEY_PATH` and its like; None where nothing is set. Raises SettingsError."""
    secret, server, clients = (
        found.optional(f"ZMQ_CURVE_{name}") for name in ("SECRET_KEY_PATH", "SERVER_KEY_PATH", "CLIENTS_PATH")
    )
    if secret is None:
        if server is not None or clients is not None:
            raise SettingsError("ZMQ_CURVE_SERVER_KEY_PATH and ZMQ_CURVE_CLIENTS_PATH need ZMQ_CURVE_SECRET_KEY_PATH")
        return None
    return ZmqCurve(secret_key_path=secret, server_key_path=server, clients_path=clients)


def _pair(path: str) -> tuple[bytes, bytes]:
    public, secret = _load(path)
    if secret is None:
        raise SettingsError(f"CURVE: {path} holds no secret key")
    return public, secret


def _load(path: str) -> tuple[bytes, bytes | None]:
    """The public and the secret key of a file, as text."""
    try:
        Path(path).read_bytes()
        return zmq.auth.load_certificate(path)
    except OSError as error:
        raise SettingsError(f"CURVE: cannot read {path}: {error.strerror or type(error).__name__}") from None
    except ValueError:
        raise SettingsError(f"CURVE: {path} holds no key of ZeroMQ") from None
