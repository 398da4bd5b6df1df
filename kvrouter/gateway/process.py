"""The life of one gateway process: what is opened and started, and the written order in which it stops.

On the first SIGTERM or SIGINT: not ready, then draining, then closed, exit code 0. A second one skips the waiting.
"""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from kvrouter.errors import SettingsError, UnreachableError
from kvrouter.gateway.app import GatewayApplication
from kvrouter.gateway.composition import Gateway
from kvrouter.gateway.nats_settings import without_secrets
from kvrouter.gateway.server import HttpServer
from kvrouter.service.logs import log_event
from kvrouter.settings import Settings

__all__ = ["run_gateway"]

_log = logging.getLogger("kvrouter.gateway")


class _Stop:
    """What SIGTERM and SIGINT ask for: the first to stop, the second to stop at once."""

    def __init__(self) -> None:
        self.asked, self.at_once = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told)

    def _told(self) -> None:
        (self.at_once if self.asked.is_set() else self.asked).set()


async def run_gateway(
    settings: Settings,
    listener: socket.socket,
    *,
    credentials: Mapping[str, Any],
    ready: Callable[[], None] = lambda: None,
) -> int:
    """Serve until told to stop; returns the exit code. `ready` is called when connections are accepted.

    Raises:
        SettingsError: something that the settings name cannot be used.
        UnreachableError: NATS cannot be reached.
    """
    stop = _Stop()
    ours = settings.gateway
    gateway = Gateway(settings, credentials=credentials)
    server = _server(gateway, listener)
    try:
        await gateway.link.connect(seconds=ours.connect_seconds)
    except UnreachableError as error:
        raise UnreachableError(f"no NATS at {without_secrets(ours.nats_url)}: {error}") from None
    try:
        serving = asyncio.create_task(server.run(), name="http")
        await server.started()
        log_event(
            _log,
            logging.INFO,
            "listening",
            host=ours.host,
            port=listener.getsockname()[1],
            scheme="https" if ours.tls_certificate else "http",
            routes=len(gateway.table),
            nats=without_secrets(ours.nats_url),
        )
        ready()
        gc.collect()
        gc.freeze()  # What is here now stays: the collector need not look at it while requests wait.
        await asyncio.wait((serving, asyncio.ensure_future(stop.asked.wait())), return_when=asyncio.FIRST_COMPLETED)
        await _drain(gateway, server, serving, stop.at_once)
        await serving
    finally:
        await gateway.answers.close()
        await gateway.link.close()
    log_event(_log, logging.INFO, "stopped")
    return 0


async def _drain(gateway: Gateway, server: HttpServer, serving: "asyncio.Task[None]", at_once: asyncio.Event) -> None:
    """Not ready, then draining; what has not ended by then is told so."""
    ours = gateway.settings.gateway
    log_event(_log, logging.INFO, "stopping", streams=gateway.counters.streams_active)
    gateway.stopping = True  # 1. balancers stop choosing us
    with suppress(TimeoutError):
        async with asyncio.timeout(ours.unready_seconds):
            await at_once.wait()
    server.stop()  # 2. finish what is under way
    impatient = asyncio.ensure_future(at_once.wait())
    await asyncio.wait((serving, impatient), timeout=ours.drain_seconds, return_when=asyncio.FIRST_COMPLETED)
    impatient.cancel()
    if not serving.done():
        log_event(_log, logging.WARNING, "cut", streams=gateway.counters.streams_active)
        await gateway.link.close()  # 3. what still waits for a service fails now


def _server(gateway: Gateway, listener: socket.socket) -> HttpServer:
    ours = gateway.settings.gateway
    if ours.tls_key is not None and ours.tls_certificate is None:
        raise SettingsError("gateway.tls_key needs gateway.tls_certificate")
    for file in (ours.tls_certificate, ours.tls_key):
        if file is not None and not file.is_file():
            raise SettingsError(f"gateway.tls_certificate: there is no file {file}")
    return HttpServer(GatewayApplication(gateway), listener, certificate=ours.tls_certificate, key=ours.tls_key)
