"""`kvrouter worker`: one engine, one command."""

import argparse
import asyncio
import logging
import signal
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

__all__ = ["add_parser", "run"]

_TRANSPORTS = ("tcp", "http", "zmq", "nats", "grpc")
_NOT_TOLD = frozenset({"url", "api_key"})
"""Between the worker and its engine only."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `worker` with its flags."""
    parser = subparsers.add_parser(
        "worker",
        help="put an engine behind a request plane",
        description="Serve an OpenAI-compatible engine over a request plane, and tell discovery about it.",
        epilog="A router finds it with: kvrouter serve --discovery URL",
    )
    parser.add_argument(
        "engine", metavar="URL[,events=tcp://HOST:PORT]…", help="the engine, as `serve --worker` has it"
    )
    parser.add_argument("--discovery", required=True, metavar="URL", help="where workers' records are kept")
    parser.add_argument(
        "--transport", action="append", choices=_TRANSPORTS, help="way in (repeatable, the preferred one first; tcp)"
    )
    parser.add_argument("--namespace", default="kvrouter")
    parser.add_argument("--component", default="backend")
    parser.add_argument("--endpoint", default="generate")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default: 127.0.0.1)")
    parser.add_argument("--advertise", metavar="HOST", help="host that routers reach it by, where --host is a wildcard")
    parser.add_argument("--nats-server", metavar="URL", help="NATS server, for the transport nats")
    parser.add_argument("--answers-home", action="store_true", help="answer over TCP what comes over NATS")
    parser.add_argument("--requests-max", type=int, default=4096, help="requests at a time (default: 4096)")
    parser.add_argument(
        "--drain-seconds", type=float, default=30.0, help="on SIGTERM, time for running requests (default: 30)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    # Imported here, so that `kvrouter --help` needs none of the router's dependencies.
    from kvrouter.service.worker_spec import parse_worker_spec  # noqa: PLC0415

    spec = parse_worker_spec(arguments.engine)
    told = {name: value for name, value in spec.fields.items() if name not in _NOT_TOLD}
    assert spec.url is not None
    asyncio.run(_serve(arguments, spec.url, spec.api_key, told))
    return 0


async def _serve(arguments: argparse.Namespace, url: str, api_key: str | None, told: Mapping[str, Any]) -> None:
    """Leave discovery at the first signal, finish what runs, end; a second one ends at once."""
    from kvrouter.service.logs import configure_logging, log_event  # noqa: PLC0415 - as in `run`
    from kvrouter.transport.serve import serve  # noqa: PLC0415
    from kvrouter.worker.engine import engine_handler  # noqa: PLC0415

    configure_logging(level="info", style="json")
    log = logging.getLogger("kvrouter.worker")
    stop = asyncio.Event()
    loop, serving = asyncio.get_running_loop(), asyncio.current_task()
    assert serving is not None

    def told_to_stop() -> None:
        if stop.is_set():
            serving.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_stop)
    with suppress(asyncio.CancelledError):
        async with (
            engine_handler(url, api_key=api_key) as handler,
            serve(
                f"{arguments.namespace}/{arguments.component}",
                {arguments.endpoint: handler},
                store=arguments.discovery,
                transports=tuple(arguments.transport or ("tcp",)),
                host=arguments.host,
                advertise=arguments.advertise,
                nats_server=arguments.nats_server,
                answers_home=arguments.answers_home,
                worker=told,
                streams_max=arguments.requests_max,
                drain_seconds=arguments.drain_seconds,
            ) as worker,
        ):
            log_event(
                log, logging.INFO, "serving", engine=url, instance=f"{worker.instance_id:x}", addresses=worker.addresses
            )
            await stop.wait()
            log_event(log, logging.INFO, "stopping", active=len(worker.endpoints))
    log_event(log, logging.INFO, "stopped")
