"""Which path goes to which subject, and what is spoken there: a table in TOML or YAML, read once and checked.

Pure but for reading the file. Types are names here; `translation.py` finds them in the descriptor set.
"""

import difflib
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from kvrouter.errors import MissingExtraError, SettingsError
from kvrouter.gateway.schema import SHIPPED_ROUTES

__all__ = ["Match", "Route", "RouteTable", "load_routes", "parse_routes"]

ROUTES_MAX = 1000
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_SEGMENT = re.compile(r"[A-Za-z0-9._~-]+")
_VARIABLE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SUBJECT = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")
_TYPE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_OURS = ("/health", "/ready", "/live", "/livez", "/readyz", "/metrics", "/admin", "/docs", "/openapi.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One row of the table.

    `repeatable` requests change nothing when they are made twice, so their traffic may be shadowed; `dry_run` says that
    the side which gets the copies does nothing at all. `legacy` is the base URL of the HTTP service from before;
    `cutover` is the share of requests that NATS answers, `shadow` the share of which the other side gets a copy: both
    until somebody sets others at run time. `ignored` members are not compared, `shown` ones are seen in samples.
    """

    name: str
    path: str
    subject: str
    request: str
    response: str
    stream: str | None = None
    methods: tuple[str, ...] = ("POST",)
    timeout_seconds: float | None = None
    repeatable: bool = False
    dry_run: bool = False
    legacy: str | None = None
    cutover: float = 1.0
    shadow: float = 0.0
    ignored: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()

    @property
    def variables(self) -> tuple[str, ...]:
        """The variables of the path."""
        return tuple(_VARIABLE.findall(self.path))

    @property
    def may_be_shadowed(self) -> bool:
        """Whether a copy of a request does no harm."""
        return self.legacy is not None and (self.repeatable or self.dry_run)


class Match(NamedTuple):
    """What a path means."""

    route: Route
    variables: Mapping[str, str]


class RouteTable:
    """Finds the route of a path; where several fit, the one with the earliest fixed segment."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self.routes = routes
        self._fixed = {route.path: Match(route, {}) for route in routes if not route.variables}
        self._by_length: dict[int, list[tuple[re.Pattern[str], Route]]] = {}
        for route in sorted((each for each in routes if each.variables), key=_generality):
            pattern = re.compile(_VARIABLE.sub(r"(?P<\1>[^/]+)", route.path.replace(".", r"\.")))
            self._by_length.setdefault(route.path.count("/"), []).append((pattern, route))

    def __iter__(self) -> Iterator[Route]:
        return iter(self.routes)

    def __len__(self) -> int:
        return len(self.routes)

    def find(self, path: str) -> Match | None:
        """Return the route of a path and its variables."""
        fixed = self._fixed.get(path)
        if fixed is not None:
            return fixed
        for pattern, route in self._by_length.get(path.count("/"), ()):
            found = pattern.fullmatch(path)
            if found is not None:
                return Match(route, found.groupdict())
        return None


def load_routes(path: Path | None) -> RouteTable:
    """Read a table; None: the one that is shipped.

    Raises:
        SettingsError: the file is missing or malformed, or a row is wrong; the text names the row and the key.
    """
    source = SHIPPED_ROUTES if path is None else path
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"route table {source}: cannot be read: {reason}") from None
    return parse_routes(_document(source, text), str(source))


def parse_routes(document: object, source: str) -> RouteTable:
    """Check a table that was read; raises as `load_routes`."""
    if not isinstance(document, dict) or set(document) != {"routes"}:
        raise SettingsError(f"route table {source}: must hold `routes` and nothing else")
    rows = document["routes"]
    if not isinstance(rows, list) or not 1 <= len(rows) <= ROUTES_MAX:
        raise SettingsError(f"route table {source}: routes must be a list of 1 to {ROUTES_MAX} tables")
    routes = tuple(_route(row, f"route table {source}: routes[{number}]") for number, row in enumerate(rows))
    for name, values in (
        ("path", [_VARIABLE.sub("{}", route.path) for route in routes]),
        ("name", [route.name for route in routes]),
    ):
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise SettingsError(f"route table {source}: two routes have the {name} {twice!r}")
    return RouteTable(routes)


def _document(source: Path, text: str) -> object:
    if source.suffix not in (".yaml", ".yml"):
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(f"route table {source}: not valid TOML: {error}") from None
    try:
        import yaml  # noqa: PLC0415 - only where a table is written in it
    except ImportError as error:
        raise MissingExtraError("a route table in YAML", "gateway") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"route table {source}: not valid YAML: {' '.join(str(error).split())}") from None


def _generality(route: Route) -> list[bool]:
    """Sorts templates: fixed segments before variables, from the left."""
    return [_VARIABLE.fullmatch(segment) is not None for segment in route.path.split("/")]


def _route(row: object, where: str) -> Route:
    if not isinstance(row, dict):
        raise SettingsError(f"{where}: must be a table")
    known = [field.name for field in fields(Route)]
    for key in row:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
            raise SettingsError(f"{where}: unknown key {key!r}" + (f"; did you mean {near[0]}?" if near else ""))
    reading = _Row(row, where)
    path = reading.path()
    legacy = reading.legacy()
    stream = reading.optional_type("stream")
    route = Route(
        name=reading.name(path),
        path=path,
        subject=reading.text("subject", _SUBJECT),
        request=reading.text("request", _TYPE),
        response=reading.text("response", _TYPE),
        stream=stream,
        methods=reading.methods(),
        timeout_seconds=reading.number("timeout_seconds", None, 0.001, 86_400),
        repeatable=reading.flag("repeatable"),
        dry_run=reading.flag("dry_run"),
        legacy=legacy,
        cutover=reading.number("cutover", 1.0 if legacy is None else 0.0, 0, 1) or 0.0,
        shadow=reading.number("shadow", 0.0, 0, 1) or 0.0,
        ignored=reading.texts("ignored"),
        shown=reading.texts("shown"),
    )
    if legacy is None and route.cutover != 1:
        raise SettingsError(f"{where}: cutover below 1 needs `legacy`, where the other requests go")
    if route.shadow and not route.may_be_shadowed:
        raise SettingsError(f"{where}: shadow needs `legacy`, and `repeatable` or `dry_run`: copies must do no harm")
    return route


class _Row:
    """One row while it is checked."""

    def __init__(self, row: Mapping[Any, Any], where: str) -> None:
        self._row, self._where = row, where

    def text(self, key: str, pattern: re.Pattern[str]) -> str:
        value = self._row.get(key)
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            raise self._wrong(key, "is missing" if value is None else f"cannot be {value!r}")
        return value

    def optional_type(self, key: str) -> str | None:
        return self.text(key, _TYPE) if self._row.get(key) is not None else None

    def path(self) -> str:
        value = self._row.get("path")
        if not isinstance(value, str) or not value.startswith("/") or value == "/":
            raise self._wrong("path", "must begin with / and name something")
        for segment in value[1:].split("/"):
            if _SEGMENT.fullmatch(segment) is None and _VARIABLE.fullmatch(segment) is None:
                raise self._wrong("path", f"has the segment {segment!r}; segments are text or {{variable}}")
        variables = _VARIABLE.findall(value)
        if len(set(variables)) < len(variables):
            raise self._wrong("path", "has a variable twice")
        if any(value == ours or value.startswith(f"{ours}/") for ours in _OURS):
            raise self._wrong("path", f"{value} is the gateway's own")
        return value

    def name(self, path: str) -> str:
        """What metrics and the admin API call it: the path without braces and the slash in front, unless given."""
        value = self._row.get("name", _VARIABLE.sub(r"\1", path)[1:])
        if not isinstance(value, str) or len(value) > 150 or re.fullmatch(_NAME, value) is None:
            raise self._wrong("name", "must be 1 to 150 letters, digits, _ and -, with single slashes or dots between")
        return value

    def methods(self) -> tuple[str, ...]:
        value = self.texts("methods") or ("POST",)
        if not set(value) <= set(_METHODS):
            raise self._wrong("methods", f"must be some of {', '.join(_METHODS)}")
        return value

    def legacy(self) -> str | None:
        value = self._row.get("legacy")
        if value is None:
            return None
        try:
            parts = urlsplit(value if isinstance(value, str) else "")
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_url = False
        if not is_url or parts.query or parts.fragment:
            raise self._wrong("legacy", "must be a URL such as http://host:port")
        return str(value).rstrip("/")

    def flag(self, key: str) -> bool:
        value = self._row.get(key, False)
        if not isinstance(value, bool):
            raise self._wrong(key, "must be true or false")
        return value

    def number(self, key: str, default: float | None, least: float, most: float) -> float | None:
        value = self._row.get(key, default)
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not least <= value <= most:
            raise self._wrong(key, f"must be a number from {least:g} to {most:g}")
        return float(value)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._row.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
            raise self._wrong(key, "must be a list of texts")
        return tuple(value)

    def _wrong(self, key: str, problem: str) -> SettingsError:
        return SettingsError(f"{self._where}: {key} {problem}")


_NAME = r"[A-Za-z0-9_-]+([./][A-Za-z0-9_-]+)*"
