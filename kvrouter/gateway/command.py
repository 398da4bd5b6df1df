"""`kvrouter gateway` on the command line. Reads the settings, runs `processes.py`, and nothing else."""

import argparse
import os
from collections.abc import Mapping

from kvrouter.errors import SettingsError
from kvrouter.settings import Settings
from kvrouter.settings_sources import add_settings_flags, load_settings

__all__ = ["PLAIN_VARIABLES", "add_parser", "gateway_settings", "run"]

PLAIN_VARIABLES = {
    "HOST": "HOST",
    "PORT": "PORT",
    "NATS_SERVER": "NATS_URL",
    "NATS_URL": "NATS_URL",
    "NATS_TIMEOUT_SECONDS": "TIMEOUT_SECONDS",
    "NATS_TLS_CERT": "NATS_TLS_CERTIFICATE",
    "NATS_TLS_KEY": "NATS_TLS_KEY",
    "NATS_TLS_CA": "NATS_TLS_CA",
}
"""Variables without our prefix, and the end of ours that they stand for; of two for one, the later wins."""

_PREFIX = "KVROUTER_GATEWAY__"


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `gateway` with a flag for every setting of it."""
    parser = subparsers.add_parser(
        "gateway",
        help="serve HTTP with JSON in front of services on NATS with Protobuf",
        description="Translate HTTP with JSON to NATS with Protobuf, route by route.",
        epilog="Every flag is also a KVROUTER_SECTION__NAME variable and a key of the TOML file of --config. HOST, "
        "PORT, NATS_URL, NATS_TIMEOUT_SECONDS, NATS_TLS_CERT, NATS_TLS_KEY and NATS_TLS_CA are taken too.",
    )
    add_settings_flags(parser, "gateway")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; a second one stops at once."""
    settings = gateway_settings(arguments, os.environ)
    # Imported here, so that `kvrouter --help` needs none of the gateway's dependencies.
    from kvrouter.gateway.processes import run_processes  # noqa: PLC0415

    return run_processes(settings, os.environ)


def gateway_settings(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    """Read the settings.

    Raises:
        SettingsError: as `load_settings`; the text names the variable that was set.
    """
    ours = dict(environment)
    plain: dict[str, str] = {}
    for name, ending in PLAIN_VARIABLES.items():
        if environment.get(name) and f"{_PREFIX}{ending}" not in environment:
            ours[f"{_PREFIX}{ending}"] = environment[name]
            plain[f"{_PREFIX}{ending}"] = name
    try:
        return load_settings(arguments, ours)
    except SettingsError as error:
        variable, colon, rest = str(error).partition(":")
        raise SettingsError(f"{plain.get(variable, variable)}{colon}{rest}") from None
