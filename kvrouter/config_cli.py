"""`kvrouter config`: shows the settings of a running router, and changes those that need no restart.

All of it goes over the router's admin API, which checks and applies; nothing is decided here.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvrouter.asking import add_router_arguments, ask_router, router_address, write_lines
from kvrouter.errors import KvrouterError, SettingsError

__all__ = ["add_parser"]

_REFUSED = (400, 409, 503)
_WATCH_SECONDS = 1.0


def add_parser(subparsers: Any) -> None:
    """Add `config` and its subcommands."""
    config = subparsers.add_parser(
        "config",
        help="show the settings of a running router, and change them while it runs",
        description="Shows the settings of a running router, and changes those that need no restart.",
    )
    commands = config.add_subparsers(title="commands", metavar="COMMAND", required=True)
    get = commands.add_parser("get", help="show settings, where their values come from, and what a change needs")
    get.add_argument("names", nargs="*", metavar="NAME", help="settings, or sections (default: all)")
    get.add_argument("--changed", action="store_true", help="only those that are not as at the start")
    get.set_defaults(run=_get)
    change = commands.add_parser("set", help="change settings, all of them or none")
    change.add_argument("values", nargs="+", metavar="NAME=VALUE", help="what to set; lists are separated by commas")
    change.set_defaults(run=_set)
    unset = commands.add_parser("unset", help="give settings back what the router was started with")
    unset.add_argument("names", nargs="*", metavar="NAME", help="settings")
    unset.add_argument("--all", action="store_true", help="every setting")
    unset.set_defaults(run=_unset)
    watch = commands.add_parser("watch", help="print what is not as at the start, then each change")
    watch.add_argument("--seconds", type=float, metavar="S", help="stop after so long")
    watch.set_defaults(run=_watch)
    for command in (get, change, unset, watch):
        add_router_arguments(command)
        command.add_argument("--json", action="store_true", help="print JSON")


def _get(arguments: argparse.Namespace) -> int:
    record = _asked(arguments)
    settings = record["settings"]
    for name in arguments.names:
        if not any(_is_in(key, name) for key in settings):
            raise SettingsError(f"{name}: there is no such setting, and no such section")
    shown = {
        key: each
        for key, each in settings.items()
        if (not arguments.names or any(_is_in(key, name) for name in arguments.names))
        and (not arguments.changed or each["value"] != each["start"])
    }
    if arguments.json:
        write_lines(json.dumps({**record, "settings": shown}))
    else:
        rows = [(key, _text(each["value"]), each["from"], each["change"]) for key, each in shown.items()]
        write_lines(_table([("setting", "value", "from", "change"), *rows]))
    return 0


def _set(arguments: argparse.Namespace) -> int:
    values: dict[str, object] = {}
    for each in arguments.values:
        name, separator, value = each.partition("=")
        if not separator:
            raise SettingsError(f"{each}: say NAME=VALUE")
        values[name] = value
    return _change(arguments, "PATCH", values)


def _unset(arguments: argparse.Namespace) -> int:
    if bool(arguments.names) == arguments.all:
        raise SettingsError("config unset: name settings, or say --all")
    if arguments.all:
        return _change(arguments, "DELETE", None)
    return _change(arguments, "PATCH", dict.fromkeys(arguments.names))


def _change(arguments: argparse.Namespace, method: str, values: Mapping[str, object] | None) -> int:
    """Make a change and print what came of it.

    Raises:
        SettingsError: the router refused a name or a value.
        KvrouterError: it did not answer, or could not reach its store.
    """
    before = _asked(arguments)["settings"]
    answer = _asked(arguments, method, values)
    if "error" in answer:
        error = answer["error"]
        raise (SettingsError if error["code"] == "invalid_setting" else KvrouterError)(error["message"])
    if arguments.json:
        write_lines(json.dumps(answer))
        return 0
    after = _asked(arguments)["settings"]
    named = values if values is not None else [key for key in after if after[key]["value"] != before[key]["value"]]
    rows = [(key, _text(after[key]["value"]), f"(was {_text(before[key]['value'])})") for key in named]
    store = answer["store"]
    where = (
        "" if store is None else f" {store['key']}" + (f", revision {store['revision']}" if store["revision"] else "")
    )
    write_lines("\n".join([*([_table(rows)] if rows else []), f"applies to {answer['applies_to']}{where}"]))
    return 0


def _watch(arguments: argparse.Namespace) -> int:
    if arguments.seconds is not None and not 0 < arguments.seconds <= 86_400:
        raise SettingsError(f"--seconds {arguments.seconds:g} must be above 0 and at most 86400")
    until = None if arguments.seconds is None else time.monotonic() + arguments.seconds
    now = _asked(arguments)["settings"]
    before = {key: {**each, "value": each["start"]} for key, each in now.items()}  # what is not as at the start is told
    while until is None or time.monotonic() < until:
        for change in _changes(before, now):
            if not write_lines(json.dumps(change) if arguments.json else _sentence(change)):
                return 0
        time.sleep(_WATCH_SECONDS if until is None else max(0.0, min(_WATCH_SECONDS, until - time.monotonic())))
        before, now = now, _asked(arguments)["settings"]
    return 0


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for key, each in after.items():
        old = before[key]
        if old["value"] != each["value"]:
            yield {"setting": key, "before": old["value"], "after": each["value"], "from": each["from"]}


def _sentence(change: Mapping[str, Any]) -> str:
    return f"{change['setting']}: {_text(change['before'])} -> {_text(change['after'])} ({change['from']})"


def _asked(arguments: argparse.Namespace, method: str = "GET", values: Mapping[str, object] | None = None) -> Any:
    """The answer of `/config`, which names settings, or what was wrong."""
    address = router_address(arguments.url)
    allowed = _REFUSED if method != "GET" else ()
    answer = ask_router(f"{address}/config", arguments.api_key, method=method, payload=values, allowed=allowed)
    if not isinstance(answer, dict) or not answer.keys() & {"settings", "overrides", "error"}:
        raise KvrouterError(f"{address} does not answer as this version expects; is it a kvrouter of the same version?")
    return answer


def _is_in(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def _text(value: object) -> str:
    """A value as the command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
