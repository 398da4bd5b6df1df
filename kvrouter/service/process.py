"""The life of the router process: what is opened and started, and the written order in which it stops.

On the first SIGTERM or SIGINT: not ready, then draining, then closed, exit code 0. A second one skips the waiting.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from kvrouter.errors import SettingsError
from kvrouter.service.app import Service
from kvrouter.service.auth import refuse_open_bind
from kvrouter.service.collector import set_survivors_aside
from kvrouter.service.listening import listen, raise_descriptor_limit
from kvrouter.service.logs import NO_LEVELS, configure_logging, log_event
from kvrouter.service.planes.ways import PlaneChoices
from kvrouter.service.workers import WorkerSpec, parse_worker_spec
from kvrouter.settings import Settings
from kvrouter.settings_sources import LoadedSettings

__all__ = ["run_service"]

_SOCKET_FOLDER_BYTES_MAX = 70
"""A name of our own and that of the socket follow; macOS allows 103 in all."""
_CONFIG_SECONDS = 2.0
"""So long the first request waits for the settings of the store; later ones come while it runs."""
_LAST_SAVE_SECONDS = 5.0
"""What is known is worth this much of a stop: what was kept before is a minute old."""

_log = logging.getLogger("kvrouter.service")


async def run_service(
    loaded: LoadedSettings,
    planes: PlaneChoices | None = None,
    *,
    log_levels: Mapping[str, str] = NO_LEVELS,
    read_again: Callable[[], LoadedSettings] | None = None,
) -> int:
    """Run the router until it is told to stop; returns the exit code.

    Args:
        loaded: what is set, and where.
        planes: how workers that discovery finds are reached; None where none are looked for.
        log_levels: levels of some loggers, by name.
        read_again: reads the settings anew at SIGHUP; None leaves that signal alone.

    Raises:
        SettingsError: a worker specification, the address or the certificate cannot be used.
    """
    settings = loaded.settings
    configure_logging(level=settings.log.level, style=settings.log.format, levels=log_levels)
    if settings.server.exit_with_parent:
        _refuse_deaf_input()
    raise_descriptor_limit()
    refuse_open_bind(settings.server.host, api_keys=settings.auth.api_keys, insecure=settings.auth.insecure)
    specs = _worker_specs(settings.workers)
    certificate = _tls_context(settings)
    # Before anything that a signal would leave behind: from here on it is a request, not the end.
    stop = _Stop(exit_with_parent=settings.server.exit_with_parent)
    with tempfile.TemporaryDirectory(prefix="kvrouter-", dir=_short_folder()) as folder:
        admin_socket = None if settings.server.admin_port else str(Path(folder) / "admin.sock")
        listener = listen(settings.server.host, settings.server.port)
        service = Service(settings, admin_socket=admin_socket, planes=planes, loaded=loaded)
        service.load_tokenizers()
        if read_again is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _read_settings_again, service, read_again)
        if service.planes is not None:
            service.planes.ways.ready()
        try:
            if service.keeper is not None:
                await _unless(stop.asked, service.keeper.load())
            service.add_workers(specs)
            if not stop.asked.is_set():
                async with _running(service, listener, certificate, stop.at_once):
                    await stop.asked.wait()
                    await _drain(service, stop.at_once)
        finally:
            if service.keeper is not None:
                await service.keeper.close()
    log_event(_log, logging.INFO, "stopped")
    return 0


@asynccontextmanager
async def _running(
    service: Service, listener: socket.socket, certificate: ssl.SSLContext | None, at_once: asyncio.Event
) -> AsyncIterator[None]:
    """Start the parts, in the order in which they need each other; stop them the other way round."""
    async with asyncio.TaskGroup() as tasks:
        subscriber = tasks.create_task(service.subscriber.run(), name="events")
        health = tasks.create_task(service.health.run(), name="health")
        housekeeping = tasks.create_task(service.housekeeping(), name="housekeeping")
        asks_loads = service.settings.events.load_seconds > 0
        loads = tasks.create_task(service.loads.run(), name="loads") if asks_loads else None
        backlog = tasks.create_task(service.work_off_backlogs(), name="backlog")
        queue = tasks.create_task(service.keep_queue(), name="queue")
        saving = tasks.create_task(service.keeper.run(), name="snapshots") if service.keeper is not None else None
        planes = tasks.create_task(service.planes.run(), name="planes") if service.planes is not None else None
        config = tasks.create_task(service.follow_config(), name="config") if service.config_key is not None else None
        replicas = tasks.create_task(service.replicas.run(), name="replicas") if service.replicas is not None else None
        collector = tasks.create_task(set_survivors_aside(), name="collector")
        admin = tasks.create_task(service.admin.run(), name="admin")
        if service.config_key is not None:
            await service.config_key.known(seconds=_CONFIG_SECONDS)
        await service.admin.started()
        await service.proxy.start(ssl=certificate, sock=listener)
        _log_listening(service, scheme="https" if certificate else "http")
        gc.collect()
        gc.freeze()  # what is here now stays: the collector need not look at it while requests wait
        yield
        # Requests have ended or were cut by `_drain`; what is left only served them.
        await service.proxy.close()
        if planes is not None:
            planes.cancel()
        if config is not None:
            config.cancel()
        if service.splits is not None:
            await service.splits.close()
        service.admin.stop()
        await admin
        for task in (health, housekeeping, backlog, queue, loads, collector):
            if task is not None:
                task.cancel()
        await _leave(service, replicas)
        if saving is not None and service.keeper is not None:
            service.keeper.finish()
            await _unless(at_once, asyncio.wait({saving}, timeout=_LAST_SAVE_SECONDS))
            saving.cancel()
        if service.planes is not None:
            await service.planes.close()
        await service.subscriber.close()
        await subscriber
        service.resolver.close()


def _log_listening(service: Service, *, scheme: str) -> None:
    log_event(
        _log,
        logging.INFO,
        "listening",
        host=service.settings.server.host,
        port=service.proxy.port,
        scheme=scheme,
        policy=service.settings.routing.policy,
        workers=len(service.registry),
    )
    if not len(service.registry) and service.planes is None:
        log_event(_log, logging.WARNING, "no_workers", hint="give --worker, or register some with POST /workers")


async def _drain(service: Service, at_once: asyncio.Event) -> None:
    """Not ready, then draining; a second signal skips what is left of both."""
    server = service.settings.server
    log_event(_log, logging.INFO, "stopping", active=service.proxy.statistics.requests_active)
    service.probes.stopping = True  # 1. balancers stop choosing us
    service.proxy.begin_drain()
    with suppress(TimeoutError):
        async with asyncio.timeout(server.unready_seconds):
            await at_once.wait()
    drained = asyncio.create_task(service.proxy.drain(server.drain_seconds))  # 2. finish what is under way
    impatient = asyncio.create_task(at_once.wait())
    await asyncio.wait({drained, impatient}, return_when=asyncio.FIRST_COMPLETED)
    cut = drained.result() if drained.done() else service.proxy.statistics.requests_active
    for task in (drained, impatient):
        task.cancel()
    log_event(_log, logging.INFO, "drained", cut=cut)


async def _leave(service: Service, telling: "asyncio.Task[None] | None") -> None:
    """The other routers need not wait until our lease is over."""
    if telling is not None and service.replicas is not None:
        telling.cancel()
        await asyncio.wait({telling})
        await service.replicas.close()


async def _unless(event: asyncio.Event, work: Coroutine[None, None, object]) -> None:
    """Do `work`, and leave it where it is when `event` comes first."""
    working, waiting = asyncio.create_task(work), asyncio.create_task(event.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        working.cancel()
        waiting.cancel()
        await asyncio.wait({working, waiting})
    if not working.cancelled():
        working.result()


def _short_folder() -> str:
    """Where a socket's path is short enough: systems allow about a hundred bytes, and TMPDIR may be longer."""
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) <= _SOCKET_FOLDER_BYTES_MAX else "/tmp"  # noqa: S108 - a private one in it


def _refuse_deaf_input() -> None:
    """A file or a terminal as standard input never tells that the parent is gone."""
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        raise SettingsError("--exit-with-parent needs a pipe as standard input")


def _read_settings_again(service: Service, read_again: Callable[[], LoadedSettings]) -> None:
    """Take from the settings file what may change while the router runs; say what may not."""
    running = service.config
    try:
        loaded = read_again()
        waiting = running.start_anew(loaded)
    except SettingsError as error:
        running.refuse(error, source="file")
        return
    log_event(_log, logging.INFO, "settings_read_again", file=str(loaded.file))
    if waiting:
        log_event(_log, logging.WARNING, "settings_need_restart", settings=list(waiting))


class _Stop:
    """What SIGTERM and SIGINT ask for: the first to stop, the second to stop at once."""

    def __init__(self, *, exit_with_parent: bool) -> None:
        self.asked, self.at_once = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told)
        # Held, because the loop alone would not keep the task alive.
        self._watching = loop.create_task(self._watch_parent()) if exit_with_parent else None

    def _told(self) -> None:
        (self.at_once if self.asked.is_set() else self.asked).set()

    async def _watch_parent(self) -> None:
        """Stop when the program that started us is gone: its end of our standard input closes, however it died."""
        asked = self.asked

        class _Watch(asyncio.Protocol):
            def connection_lost(self, exception: Exception | None) -> None:  # noqa: ARG002 - asyncio names it
                asked.set()

        await asyncio.get_running_loop().connect_read_pipe(_Watch, sys.stdin)


def _worker_specs(texts: tuple[str, ...]) -> list[WorkerSpec]:
    """Parse and compare the specifications, so that a double entry is an error of the call, not a late one."""
    specs = [parse_worker_spec(text) for text in texts]
    for name, values, hint in (
        ("url", [spec.address for spec in specs], ""),
        ("id", [spec.worker_id for spec in specs], "; tell them apart with id="),
    ):
        for value in values:
            if values.count(value) > 1:
                raise SettingsError(f"two workers have the {name} {value!r}{hint}")
    return specs


def _tls_context(settings: Settings) -> ssl.SSLContext | None:
    server = settings.server
    if server.tls_certificate is None and server.tls_key is None:
        return None
    if server.tls_certificate is None:
        raise SettingsError("server.tls_key needs server.tls_certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(server.tls_certificate, server.tls_key)
    except ssl.SSLError:
        files = f"{server.tls_certificate}, {server.tls_key or 'which must hold its key too'}"
        raise SettingsError(
            f"server.tls_certificate: not a PEM certificate chain with its private key: {files}"
        ) from None
    except OSError as error:
        files = " or ".join(str(each) for each in (server.tls_certificate, server.tls_key) if each)
        raise SettingsError(f"server.tls_certificate: cannot read {files}: {error.strerror or error}") from None
    return context
