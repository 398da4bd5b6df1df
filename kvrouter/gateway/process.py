"""The life of one gateway process: what is opened and started, and the written order in which it stops.

On the first SIGTERM or SIGINT: not ready, then draining, then closed, exit code 0. A second one skips the waiting.
"""

import asyncio
import gc
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from kvrouter.errors import SettingsError, StoreError, UnreachableError
from kvrouter.gateway.app import GatewayApplication
from kvrouter.gateway.composition import Gateway, Place
from kvrouter.gateway.nats_settings import without_secrets
from kvrouter.gateway.server import ConnectionBounds, gateway_server
from kvrouter.service.embedded import EmbeddedServer
from kvrouter.service.logs import log_event
from kvrouter.settings import Settings

__all__ = ["run_gateway"]

_log = logging.getLogger("kvrouter.gateway")


class _Stop:
    """What SIGTERM and SIGINT ask for: the first to stop, the second to stop at once."""

    def __init__(self, parent_life: int | None) -> None:
        """With `parent_life`, a pipe, it is asked for too when that closes: who looked after us is gone."""
        self.asked, self.at_once = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told)
        if parent_life is not None:
            loop.add_reader(parent_life, self._orphaned, parent_life)

    def _told(self) -> None:
        (self.at_once if self.asked.is_set() else self.asked).set()

    def _orphaned(self, parent_life: int) -> None:
        asyncio.get_running_loop().remove_reader(parent_life)
        self.asked.set()


async def run_gateway(
    settings: Settings,
    listener: socket.socket,
    *,
    credentials: Mapping[str, Any],
    place: Place,
    parent_life: int | None = None,
    ready: Callable[[], None] = lambda: None,
) -> int:
    """Serve until told to stop; returns the exit code. `ready` is called when connections are accepted.

    Raises:
        SettingsError: something that the settings name cannot be used.
        UnreachableError: NATS cannot be reached.
        StoreError: the store of cut-over shares cannot be reached, so it is not known who is to answer.
    """
    stop = _Stop(parent_life)
    gateway = Gateway(settings, credentials=credentials, place=place)
    server = _server(gateway, listener)
    following: asyncio.Task[None] | None = None
    try:
        await _connect(gateway)
        if gateway.cutover.is_needed:
            following = asyncio.create_task(gateway.cutover.run(), name="cutover")
            await _until_synced(gateway, following)
        await gateway.siblings.start()
        serving = asyncio.create_task(server.run(), name="http")
        await server.started()
        if serving.done():
            await serving  # It could not begin, and says why.
        _say_listening(gateway, listener)
        ready()
        gc.collect()
        gc.freeze()  # What is here now stays: the collector need not look at it while requests wait.
        asked = asyncio.create_task(stop.asked.wait())
        await asyncio.wait((serving, asked), return_when=asyncio.FIRST_COMPLETED)
        await _drain(gateway, server, serving, stop.at_once)
        await serving
    finally:
        await _close(gateway, following)
    log_event(_log, logging.INFO, "stopped")
    return 0


async def _connect(gateway: Gateway) -> None:
    ours = gateway.settings.gateway
    try:
        await gateway.link.connect(seconds=ours.connect_seconds)
    except UnreachableError as error:
        raise UnreachableError(f"no NATS at {without_secrets(ours.nats_url)}: {error}") from None


async def _until_synced(gateway: Gateway, following: "asyncio.Task[None]") -> None:
    """Wait until it is known which shares hold: a gateway that guessed could undo a cut-over."""
    synced = asyncio.create_task(gateway.cutover.synced.wait())
    seconds = gateway.settings.gateway.connect_seconds
    await asyncio.wait((synced, following), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    if not synced.done():
        synced.cancel()
        raise StoreError(f"gateway.store said nothing within {seconds:g} s", reason="unavailable")


def _say_listening(gateway: Gateway, listener: socket.socket) -> None:
    ours = gateway.settings.gateway
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


async def _close(gateway: Gateway, following: "asyncio.Task[None] | None") -> None:
    """Close what was opened, the other way round."""
    if following is not None:
        following.cancel()
        await asyncio.wait({following})
    await gateway.siblings.close()
    await gateway.shadow.close()
    await gateway.answers.close()
    if gateway.legacy is not None:
        await gateway.legacy.close()
    await gateway.store.close()
    await gateway.link.close()


async def _drain(
    gateway: Gateway, server: EmbeddedServer, serving: "asyncio.Task[None]", at_once: asyncio.Event
) -> None:
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


def _server(gateway: Gateway, listener: socket.socket) -> EmbeddedServer:
    ours = gateway.settings.gateway
    if ours.tls_key is not None and ours.tls_certificate is None:
        raise SettingsError("gateway.tls_key needs gateway.tls_certificate")
    for file in (ours.tls_certificate, ours.tls_key):
        if file is not None and not file.is_file():
            raise SettingsError(f"gateway.tls_certificate: there is no file {file}")
    if ours.tls_certificate is not None:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(ours.tls_certificate, ours.tls_key)
        except OSError as error:  # what OpenSSL refuses is one too
            raise SettingsError(f"gateway.tls_certificate: cannot use {ours.tls_certificate}: {error}") from None
    counters = gateway.counters
    return gateway_server(
        GatewayApplication(gateway),
        listener,
        ConnectionBounds(ours.header_seconds, ours.slow_client_seconds, partial(counters.count, "connections_cut")),
        certificate=ours.tls_certificate,
        key=ours.tls_key,
    )
