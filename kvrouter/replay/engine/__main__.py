"""`python -m kvrouter.replay.engine`: one engine process. It ends with 0 on SIGINT and SIGTERM."""

import asyncio
import contextlib
import json
import os
import signal
import stat
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from kvrouter.errors import MissingExtraError, SettingsError
from kvrouter.replay.engine.options import EngineOptions, parse_options

if TYPE_CHECKING:
    from kvrouter.replay.engine.simulated import SimulatedEngine


def main() -> int:
    """Run an engine until it is told to stop."""
    options = parse_options()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(options))
    except (SettingsError, MissingExtraError) as error:
        sys.stderr.write(f"engine: {error}\n")
        return 2
    except OSError as error:
        # asyncio tells a taken port with its number and the address twice.
        reason = os.strerror(error.errno) if error.errno else str(error)
        sys.stderr.write(f"engine: cannot listen on {options.host}:{options.port}: {reason}\n")
        return 2
    return 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Prefer uvloop, which costs half as much; the standard loop does where it is not installed."""
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ModuleNotFoundError:
        return None
    return cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)


async def _serve(options: EngineOptions) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    if options.exit_with_parent:
        await _watch_standard_input(stopping)
    engine = _engine(options)
    await engine.start()
    sys.stdout.write(json.dumps(engine.announcement()) + "\n")
    sys.stdout.flush()
    running = loop.create_task(engine.run(), name="engine")
    running.add_done_callback(lambda _task: stopping.set())
    await stopping.wait()
    running.cancel()
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await running
    finally:
        engine.close()


def _engine(options: EngineOptions) -> "SimulatedEngine":
    """Imported here, so that `--help` needs none of the router's dependencies.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    try:
        from kvrouter.replay.engine.simulated import SimulatedEngine  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"the simulated engine (it found no {error.name})", "router") from None
    return SimulatedEngine(options)


async def _watch_standard_input(stopping: asyncio.Event) -> None:
    """Stop when the parent is gone: its end of our standard input closes, however it died, on every system.

    Raises:
        SettingsError: standard input is a file or a terminal; neither closes when a parent dies.
    """
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        raise SettingsError("--exit-with-parent needs a pipe as standard input")

    class _Watch(asyncio.Protocol):
        def connection_lost(self, exception: Exception | None) -> None:  # noqa: ARG002 - asyncio names it
            stopping.set()

    await asyncio.get_running_loop().connect_read_pipe(_Watch, sys.stdin)


if __name__ == "__main__":
    sys.exit(main())
