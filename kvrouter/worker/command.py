"""`kvrouter worker`: one engine, one command."""

import argparse
import asyncio
import logging
import math
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvrouter.worker.serving import WorkerOptions

__all__ = ["add_parser", "run"]

_TRANSPORTS = ("tcp", "http", "zmq", "nats", "grpc")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `worker` with its flags."""
    parser = subparsers.add_parser(
        "worker",
        help="put an engine behind a request plane",
        description="Serve an OpenAI-compatible engine over a request plane, and tell discovery about it.",
        epilog="A router finds it with: kvrouter serve --discovery URL. Ports and limits: docs/planes.md, environment.",
    )
    parser.add_argument(
        "engine", metavar="URL[,events=tcp://HOST:PORT]…", help="the engine, as --worker of kvrouter serve has it"
    )
    parser.add_argument("--discovery", required=True, metavar="URL", help="where workers' records are kept")
    parser.add_argument(
        "--transport",
        action="append",
        choices=_TRANSPORTS,
        help="way in (repeatable, the preferred one first; default: KVROUTER_REQUEST_PLANE, or tcp)",
    )
    parser.add_argument("--namespace", default="kvrouter", help="default: kvrouter")
    parser.add_argument("--component", default="backend", help="default: backend")
    parser.add_argument("--endpoint", default="generate", help="default: generate")
    parser.add_argument("--host", help="address to bind (default: that of the environment, or 127.0.0.1)")
    parser.add_argument(
        "--insecure", action="store_true", help="take requests of other machines without tokens or client certificates"
    )
    parser.add_argument("--advertise", metavar="HOST", help="host that routers reach it by, where --host is a wildcard")
    parser.add_argument("--nats-server", metavar="URL", help="for the transport nats (default: NATS_SERVER)")
    parser.add_argument(
        "--answers-home",
        action="store_true",
        help="answer over TCP connections to the router (tcp, http, nats; default: as KVROUTER_RESPONSE_PLANE says)",
    )
    parser.add_argument(
        "--requests-max", type=_between(1, 1_000_000), default=4096, metavar="N",
        help="requests at a time (default: 4096)",
    )  # fmt: skip
    parser.add_argument(
        "--metrics-port", type=_between(0, 65_535), metavar="PORT",
        help="serve /metrics on this port (0: a free one; default: nowhere)",
    )  # fmt: skip
    parser.add_argument(
        "--drain-seconds", type=_seconds, default=30.0, metavar="S",
        help="on SIGTERM, time for running requests (default: 30)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; a second one ends it at once."""
    # Imported here, so that `kvrouter --help` needs none of the router's dependencies.
    from kvrouter.service.logs import configure_logging  # noqa: PLC0415
    from kvrouter.transport.plane_settings import log_levels  # noqa: PLC0415
    from kvrouter.worker.serving import worker_options  # noqa: PLC0415

    options, levels = worker_options(arguments, os.environ), log_levels(os.environ)
    configure_logging(level="info", style="json", levels=levels)
    asyncio.run(_serve(options))
    return 0


def _between(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be between {least} and {most}, got {value}")
        return value

    parse.__name__ = "number"
    return parse


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must not be negative, nor without end; got {text}")
    return value


async def _serve(options: "WorkerOptions") -> None:
    """Leave discovery at the first signal, finish what runs, end."""
    from kvrouter.service.logs import log_event  # noqa: PLC0415 - as in `run`
    from kvrouter.worker.serving import serving  # noqa: PLC0415

    log, stop = logging.getLogger("kvrouter.worker"), asyncio.Event()
    loop, here = asyncio.get_running_loop(), asyncio.current_task()
    assert here is not None

    def told_to_stop() -> None:
        if stop.is_set():
            here.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_stop)
    with suppress(asyncio.CancelledError):
        async with AsyncExitStack() as stack:
            worker, metrics_port = await stack.enter_async_context(serving(options))
            log_event(
                log,
                logging.INFO,
                "serving",
                engine=options.engine,
                instance=f"{worker.instance_id:x}",
                addresses=worker.addresses,
                metrics_port=metrics_port,
            )
            await stop.wait()
            log_event(log, logging.INFO, "stopping", active=len(worker.endpoints))
    log_event(log, logging.INFO, "stopped")
