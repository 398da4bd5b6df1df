"""The `kvrouter` command: one subcommand per module, errors in one line, nothing else.

Exit codes: 0 fine, 1 the work failed, 2 the call was wrong (an unknown flag, setting, file or missing part).
"""

import argparse
import difflib
import importlib
import re
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from kvrouter import __version__
from kvrouter.errors import KvrouterError, MissingExtraError, SettingsError

__all__ = ["main"]

_ROUTER_PARTS = {"fastapi", "httptools", "jinja2", "msgspec", "numpy", "prometheus_client", "rich", "tokenizers"}
_ROUTER_PARTS |= {"uvicorn", "uvloop", "xxhash"}
# In the order in which somebody new would want them.
_COMMANDS = (
    "kvrouter.demo",
    "kvrouter.service.serve",
    "kvrouter.worker",
    "kvrouter.replay.command",
    "kvrouter.events_cli",
    "kvrouter.gateway.command",
    "kvrouter.service.object_server",
    "kvrouter.config_cli",
    "kvrouter.doctor",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        parser, commands = _parser()
        if not given:
            parser.print_help(sys.stderr)
            return 2
        parsed, unknown = parser.parse_known_args(given)
        if unknown:
            return _fail(_unknown_argument(unknown[0], parsed.command, commands), 2)
        return int(parsed.run(parsed))
    except (SettingsError, MissingExtraError) as error:
        return _fail(error, 2)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _ROUTER_PARTS:
            raise
        # The gateway's has the router's parts in it: one installation, not two.
        extra = "gateway" if list(given[:1]) == ["gateway"] else "router"
        return _fail(MissingExtraError(f"this command (it found no {error.name})", extra), 2)
    except KvrouterError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130


def _parser() -> tuple[argparse.ArgumentParser, "argparse._SubParsersAction[argparse.ArgumentParser]"]:
    parser: argparse.ArgumentParser = _OneLineParser(
        prog="kvrouter",
        description="Routes LLM requests to the worker whose KV cache already holds their prefix.",
        epilog="Begin with `kvrouter demo`; then `kvrouter serve --worker http://HOST:8000,events=tcp://HOST:5557`.",
    )
    parser.add_argument("--version", action="version", version=f"kvrouter {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name in _COMMANDS:
        _module(name).add_parser(subparsers)
    return parser, subparsers


class _OneLineParser(argparse.ArgumentParser):
    """Says in one line what is wrong, instead of a usage of fifty; takes no abbreviations, which later flags break."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; see {self.prog} --help")


def _unknown_argument(
    argument: str, command: str, commands: "argparse._SubParsersAction[argparse.ArgumentParser]"
) -> SettingsError:
    """Name the command: left alone, argparse shows the usage of `kvrouter` itself, which has none of its flags."""
    flags = set(re.findall(r"--[a-z][a-z-]*", commands.choices[command].format_usage()))
    near = difflib.get_close_matches(argument.partition("=")[0], sorted(flags), n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"see kvrouter {command} --help"
    return SettingsError(f"{command}: unknown argument {argument}; {hint}")


def _module(name: str) -> ModuleType:
    return importlib.import_module(name)


def _fail(error: Exception, code: int) -> int:
    sys.stderr.write(f"kvrouter: {error}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
