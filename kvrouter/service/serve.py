"""`kvrouter serve`: the router process on the command line. Reads the settings, runs `process.py`, and nothing else."""

import argparse
import asyncio
import os
from functools import partial

from kvrouter.service.object_server import KEY_VARIABLE
from kvrouter.settings_sources import add_settings_flags, load_with_origins

__all__ = ["add_parser", "run"]

_EPILOG = """\
examples:
  kvrouter serve --worker http://10.0.0.11:8000,events=tcp://10.0.0.11:5557,replay=tcp://10.0.0.11:5657 \\
                 --worker http://10.0.0.12:8000,events=tcp://10.0.0.12:5557,replay=tcp://10.0.0.12:5657
  kvrouter serve --worker http://10.0.0.11:8000 --policy least-loaded           engines that tell no events
  kvrouter serve --discovery redis://10.0.0.5:6379/0/kv                         workers that `kvrouter worker` serves
  kvrouter serve --config kvrouter.toml --host 0.0.0.0 --api-key KEY            for other machines, most of it in a file

Every flag is also a KVROUTER_SECTION__NAME variable and a key of the TOML file of --config.
Exit codes: 0 stopped as it was told, 1 it failed, 2 wrong call.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `serve` with a flag for every setting."""
    parser = subparsers.add_parser(
        "serve",
        help="run the router",
        description="Run the router in front of OpenAI-compatible workers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; a second one stops at once."""
    # Imported here, so that `kvrouter --help` needs none of the router's dependencies.
    import uvloop  # noqa: PLC0415

    from kvrouter.service.planes.environment import PLANE_VARIABLES, plane_choices  # noqa: PLC0415
    from kvrouter.service.process import run_service  # noqa: PLC0415
    from kvrouter.transport.plane_settings import log_levels  # noqa: PLC0415

    read = partial(load_with_origins, arguments, os.environ, elsewhere={*PLANE_VARIABLES, KEY_VARIABLE})
    loaded = read()
    planes = plane_choices(loaded.settings, os.environ)
    again = None if loaded.file is None else read

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run_service(loaded, planes, log_levels=log_levels(os.environ), read_again=again))
