"""`kvrouter objects`: serve an object store over HTTP, for machines that share neither a disk nor a broker with it.

docs/object-store.md is its page; the protocol and both of its ends are `kvrouter.store.http_*`.
"""

import argparse
import asyncio
import os
import signal
import ssl
import sys
from pathlib import Path

from kvrouter.errors import SettingsError

__all__ = ["KEY_VARIABLE", "add_parser", "run"]

KEY_VARIABLE = "KVROUTER_OBJECTS_KEY"
"""Only of this command; others leave it alone."""
_PORT_MAX = 65_535


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `objects`."""
    parser = subparsers.add_parser(
        "objects",
        help="serve an object store over HTTP",
        description="Serve the object store at STORE over HTTP. Others open it as http://:KEY@HOST:PORT.",
    )
    parser.add_argument("store", metavar="STORE", help="what is served: file:///var/lib/kvrouter, or any other store")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8090, help="port to listen on, 0 for a free one (default: 8090)")
    parser.add_argument(
        "--api-key",
        default=os.environ.get(KEY_VARIABLE),
        metavar="KEY",
        help=f"what clients must bring (default: {KEY_VARIABLE})",
    )
    parser.add_argument("--insecure", action="store_true", help="serve other machines without a key")
    parser.add_argument("--tls-certificate", type=Path, metavar="FILE", help="serve with TLS")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="the certificate's key")
    parser.add_argument(
        "--drain-seconds", type=int, default=60, metavar="S", help="for what is under way at the end (default: 60)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT, and finish what is under way.

    Raises:
        SettingsError: the store is none, the address is taken, or open to others without a key.
    """
    # Imported here, so that `kvrouter --help` needs none of the router's dependencies.
    import uvloop  # noqa: PLC0415

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(arguments))
    return 0


async def _serve(arguments: argparse.Namespace) -> None:
    from kvrouter.errors import RequestError  # noqa: PLC0415 - as above
    from kvrouter.service.auth import Authenticator, refuse_open_bind  # noqa: PLC0415 - as above
    from kvrouter.service.embedded import EmbeddedServer  # noqa: PLC0415 - as above
    from kvrouter.service.listening import listen  # noqa: PLC0415 - as above
    from kvrouter.store import open_object_store  # noqa: PLC0415 - as above
    from kvrouter.store.http_object_app import ObjectApp  # noqa: PLC0415 - as above

    if not 0 <= arguments.port <= _PORT_MAX:
        raise SettingsError(f"--port: {arguments.port} is not from 0 to {_PORT_MAX}")
    if arguments.drain_seconds < 0:
        raise SettingsError(f"--drain-seconds: {arguments.drain_seconds} is below the least, 0")
    _check_tls(arguments.tls_certificate, arguments.tls_key)
    keys = (arguments.api_key,) if arguments.api_key else ()
    refuse_open_bind(arguments.host, api_keys=keys, insecure=arguments.insecure, variable=KEY_VARIABLE)
    authenticator = Authenticator(api_keys=keys)

    def authorise(authorization: bytes | None) -> bool:
        try:
            authenticator.check("PUT", "/", authorization)
        except RequestError:
            return False
        return True

    async with open_object_store(arguments.store) as store:
        listener = listen(arguments.host, arguments.port)
        server = EmbeddedServer(
            ObjectApp(store, authorise=authorise),
            listener=listener,
            certificate=arguments.tls_certificate,
            key=arguments.tls_key,
            drain_seconds=arguments.drain_seconds,
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.stop)
        scheme = "https" if arguments.tls_certificate else "http"
        sys.stdout.write(f"objects are served at {scheme}://{arguments.host}:{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        await server.run()


def _check_tls(certificate: Path | None, key: Path | None) -> None:
    """Say in one line what would otherwise be a traceback of the server's."""
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise SettingsError("--tls-certificate and --tls-key belong together")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except OSError as error:  # what OpenSSL refuses is one too
        raise SettingsError(f"--tls-certificate {certificate}, --tls-key {key}: {error.strerror or error}") from None
