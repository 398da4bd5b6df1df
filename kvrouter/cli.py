"""The `kvrouter` command: one subcommand per module, errors in one line, nothing else.

Exit codes: 0 fine, 1 the work failed, 2 the call was wrong (an unknown flag, setting, file or missing part).
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from kvrouter import __version__
from kvrouter.errors import KvrouterError, MissingExtraError, SettingsError

__all__ = ["main"]

_ROUTER_PARTS = {"fastapi", "httptools", "jinja2", "msgspec", "numpy", "prometheus_client", "rich", "tokenizers"}
_ROUTER_PARTS |= {"uvicorn", "uvloop", "xxhash"}
# In the order in which somebody new would want them.
_COMMANDS = ("kvrouter.demo", "kvrouter.service.serve", "kvrouter.events_cli")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    try:
        parsed = _parser().parse_args(arguments)
        return int(parsed.run(parsed))
    except (SettingsError, MissingExtraError) as error:
        return _fail(error, 2)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _ROUTER_PARTS:
            raise
        return _fail(MissingExtraError(f"this command (it found no {error.name})", "router"), 2)
    except KvrouterError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvrouter",
        description="Routes LLM requests to the worker whose KV cache already holds their prefix.",
        epilog="Begin with `kvrouter demo`; then `kvrouter serve --worker http://HOST:8000,events=tcp://HOST:5557`.",
    )
    parser.add_argument("--version", action="version", version=f"kvrouter {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in _COMMANDS:
        _module(name).add_parser(subparsers)
    return parser


def _module(name: str) -> ModuleType:
    return importlib.import_module(name)


def _fail(error: Exception, code: int) -> int:
    sys.stderr.write(f"kvrouter: {error}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
