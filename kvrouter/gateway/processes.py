"""`--processes N`: several gateway processes behind one port, each with a listening socket of its own.

The first process only looks after the others: it holds their sockets, so that connections to one that died wait for the
next one, starts it, passes signals on, and ends when they have ended. With one process there is nobody to look after.
"""

import asyncio
import logging
from collections.abc import Mapping

import uvloop

from kvrouter.gateway.nats_settings import nats_credentials
from kvrouter.gateway.process import run_gateway
from kvrouter.service.auth import refuse_open_bind
from kvrouter.service.listening import listen
from kvrouter.service.logs import configure_logging
from kvrouter.settings import Settings

__all__ = ["run_processes"]

_log = logging.getLogger("kvrouter.gateway")


def run_processes(settings: Settings, environment: Mapping[str, str]) -> int:
    """Run the gateway until it is told to stop; returns the exit code. Raises as `run_gateway`."""
    ours = settings.gateway
    configure_logging(level=settings.log.level, style=settings.log.format)
    refuse_open_bind(ours.host, api_keys=settings.auth.api_keys, insecure=settings.auth.insecure)
    credentials = nats_credentials(ours, environment)
    listener = listen(ours.host, ours.port)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run_gateway(settings, listener, credentials=credentials))
