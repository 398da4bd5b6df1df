"""What is different between two JSON answers to one request, told without their contents. Pure.

A member that is missing and one that has Protobuf's default are the same: the one side leaves defaults out, the other
writes them. Everything else counts, also a number that became text: clients would notice.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

__all__ = ["COMPARED_BYTES_MAX", "DIFFERENCES_MAX", "Difference", "compared", "differences", "redacted"]

COMPARED_BYTES_MAX = 1 << 20
"""As much as NATS takes. To compare more would be work that clients feel."""
DIFFERENCES_MAX = 20
_DEPTH_MAX = 64
_NAME_CHARACTERS_MAX = 60
_SHOWN_CHARACTERS_MAX = 200
_DEFAULTS: tuple[Any, ...] = (None, "", 0, False, [], {})


class Difference(NamedTuple):
    """Where two answers differ, and what is there on both sides."""

    path: tuple[str, ...]
    primary: Any
    secondary: Any


def compared(
    primary: bytes, secondary: bytes, ignored: Sequence[str] = (), shown: Sequence[str] = ()
) -> tuple[str, list[dict[str, Any]]]:
    """Return what comparing two bodies gives, match, diff or error, and what people are told of it."""
    if max(len(primary), len(secondary)) > COMPARED_BYTES_MAX:
        return "error", [{"problem": f"one of the answers is longer than what is compared, {COMPARED_BYTES_MAX} bytes"}]
    try:
        one, other = msgspec.json.decode(primary), msgspec.json.decode(secondary)
    except msgspec.DecodeError:
        return "diff", [{"problem": "one of the answers is no JSON"}]
    found = differences(one, other, ignored)
    return ("diff" if found else "match"), [redacted(each, shown) for each in found]


def differences(primary: Any, secondary: Any, ignored: Sequence[str] = ()) -> list[Difference]:
    """Return the first differences, but none inside of `ignored` paths, such as `meta` or `models.*.labels`."""
    patterns = [tuple(path.split(".")) for path in ignored]
    found: list[Difference] = []
    for difference in _walk((), primary, secondary):
        if not any(_covers(pattern, difference.path) for pattern in patterns):
            found.append(difference)
            if len(found) == DIFFERENCES_MAX:
                break
    return found


def redacted(difference: Difference, shown: Sequence[str] = ()) -> dict[str, Any]:
    """Return a difference for people: kinds and lengths of values; of `shown` paths, the values themselves."""
    may_show = any(_covers(tuple(path.split(".")), difference.path) for path in shown)
    tell = _shortened if may_show else _kind
    return {
        "path": ".".join(part[:_NAME_CHARACTERS_MAX] for part in difference.path),
        "primary": tell(difference.primary),
        "secondary": tell(difference.secondary),
    }


def _walk(path: tuple[str, ...], primary: Any, secondary: Any) -> Iterator[Difference]:
    if len(path) < _DEPTH_MAX and isinstance(primary, dict) and isinstance(secondary, dict):
        for name in sorted({*primary, *secondary}):
            one, other = primary.get(name), secondary.get(name)
            is_default = (name not in primary and other in _DEFAULTS) or (name not in secondary and one in _DEFAULTS)
            if not is_default:
                yield from _walk((*path, name), one, other)
    elif len(path) < _DEPTH_MAX and isinstance(primary, list) and isinstance(secondary, list):
        if len(primary) != len(secondary):
            yield Difference(path, primary, secondary)
            return
        for position, (one, other) in enumerate(zip(primary, secondary, strict=True)):
            yield from _walk((*path, str(position)), one, other)
    elif primary != secondary or _is_bool(primary) != _is_bool(secondary):
        yield Difference(path, primary, secondary)


def _is_bool(value: Any) -> bool:
    """In Python 1 and True are the same; in JSON they are not."""
    return isinstance(value, bool)


def _covers(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    return len(pattern) <= len(path) and all(
        wanted in ("*", part) for wanted, part in zip(pattern, path[: len(pattern)], strict=True)
    )


def _kind(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return f"text of {len(value)} characters"
        case list():
            return f"a list of {len(value)}"
        case _:
            return f"an object of {len(value)} members"


def _shortened(value: Any) -> Any:
    if isinstance(value, dict | list):
        return _kind(value)
    return value[:_SHOWN_CHARACTERS_MAX] if isinstance(value, str) else value
