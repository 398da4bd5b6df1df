"""Asks a running router over its admin API, for commands that show or change things. Not for requests to models."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from kvrouter.errors import KvrouterError, SettingsError

__all__ = ["add_router_arguments", "ask_router", "router_address", "write_lines"]

_ANSWER_BYTES_MAX = 64 << 20
_TIMEOUT_SECONDS = 10.0
_HINTS = {
    401: "; give an admin key with --api-key",
    403: "; give an admin key with --api-key",
    404: "; is it a kvrouter, and its admin port if it has one?",
}


def add_router_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--url` and `--api-key`."""
    parser.add_argument(
        "--url",
        default="http://127.0.0.1:8080",
        help="the router, or its admin port if it has one of its own (default: %(default)s)",
    )
    parser.add_argument(
        "--api-key",
        default=os.environ.get("KVROUTER_API_KEY"),
        metavar="KEY",
        help="an admin key of the router (default: KVROUTER_API_KEY)",
    )


def router_address(url: str) -> str:
    """Return `url` as paths are added to it.

    Raises:
        SettingsError: it is not one of HTTP.
    """
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"--url {url!r} must begin with http:// or https://")
    return url.rstrip("/")


def ask_router(
    address: str,
    api_key: str | None,
    *,
    allowed: tuple[int, ...] = (),
    method: str = "GET",
    payload: Mapping[str, object] | None = None,
) -> Any:
    """Ask for `address`, giving it `payload` as JSON, and return its JSON; statuses in `allowed` are answers too.

    Raises:
        KvrouterError: nobody answers, or it is refused, or no JSON comes.
    """
    headers = {"Accept": "application/json", **({"Authorization": f"Bearer {api_key}"} if api_key else {})}
    data = None if payload is None else json.dumps(payload).encode()
    if data is not None:
        headers["Content-Type"] = "application/json"
    asked = Request(address, data, headers, method=method)  # noqa: S310 - checked above
    try:
        with urlopen(asked, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310 - as above
            return json.loads(answer.read(_ANSWER_BYTES_MAX))
    except HTTPError as error:
        with error:
            if error.code in allowed:
                return _refusal(error, address)
            hint = _HINTS.get(error.code, "")
            raise KvrouterError(f"{address} answered {error.code} {error.reason}{hint}") from None
    except (URLError, OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise KvrouterError(f"{address} does not answer ({reason}); is the router running there?") from None
    except ValueError:
        raise _no_json(address) from None


def _refusal(error: HTTPError, address: str) -> Any:
    try:
        return json.loads(error.read(_ANSWER_BYTES_MAX))
    except ValueError:
        raise _no_json(address) from None


def _no_json(address: str) -> KvrouterError:
    return KvrouterError(f"{address} does not answer with JSON; is it a kvrouter?")


def write_lines(text: str) -> bool:
    """Write an answer; a reader that went away, such as `head`, ends the command quietly: False."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True
