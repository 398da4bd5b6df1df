"""Reads flags, variables and the TOML file into `Settings`; says in one line what is wrong with them.

The schema itself is `settings.py`. A key is `section.name`; its variable is `KVROUTER_SECTION__NAME`, its flag
`--section-name` or the short one that the schema gives. `workers` has no section: `--worker`, `KVROUTER_WORKERS`
(separated by white space, because a specification contains commas) and `[[workers]]` tables.
"""

import argparse
import difflib
import re
import tomllib
import types
from collections.abc import Collection, Iterator, Mapping
from dataclasses import Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args, get_type_hints

from kvrouter.errors import SettingsError
from kvrouter.settings import Settings, section_classes, sections_of

__all__ = [
    "LoadedSettings",
    "Origin",
    "Setting",
    "add_settings_flags",
    "all_settings",
    "checked_value",
    "load_settings",
    "load_with_origins",
    "nearest",
    "with_values",
]

Origin: TypeAlias = Literal["file", "environment", "flag"]
"""Which of the three sources a value comes from."""

_PREFIX = "KVROUTER_"
_WORKERS_VARIABLE = "KVROUTER_WORKERS"
_CONFIG_VARIABLE = "KVROUTER_CONFIG"
# Decides what is imported, so it is read before there are settings: by `native_core`.
_PURE_VARIABLE = "KVROUTER_PURE"
# Kubernetes puts these into every pod that has a service named `kvrouter` beside it; they are not ours.
_SERVICE_LINK = re.compile(
    r"KVROUTER_([A-Z0-9_]+_)?(SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)=.*"
    r"|PORT(_\d+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://.*|PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=.*)"
)
_KINDS: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    tuple: "a list of text",
}
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One key of the schema with all the names it goes by."""

    section: str
    name: str
    kind: type
    default: object
    help: str
    flag: str
    variables: tuple[str, ...]
    at_least: float | None
    at_most: float | None
    choices: tuple[str, ...]
    or_else: str
    metavar: str | None
    name_characters_max: int | None
    optional: bool
    live: bool

    @property
    def key(self) -> str:
        """The dotted name, as errors and the TOML file spell it."""
        return f"{self.section}.{self.name}"


def all_settings() -> Iterator[Setting]:
    """Yield every key of the schema, section by section."""
    for section, schema in section_classes().items():
        hints = get_type_hints(schema)
        for each in fields(schema):
            yield _describe(section, each, hints[each.name])


class LoadedSettings(NamedTuple):
    """What the process starts with."""

    settings: Settings
    origins: Mapping[str, Origin]
    """Where a value comes from, by key; what is not in it is a default."""
    file: Path | None


def nearest(name: str, candidates: "Collection[str]") -> str:
    """`; did you mean ...?`, or nothing where nothing is like it."""
    match = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f"; did you mean {match[0]}?" if match else ""


def add_settings_flags(parser: argparse.ArgumentParser, command: str = "serve") -> None:
    """Add `--config` and one flag per setting of a command, grouped by section; to `serve` also `--worker`."""
    parser.add_argument("--config", metavar="FILE", help=f"TOML file with the same keys (or {_CONFIG_VARIABLE})")
    if command == "serve":
        parser.add_argument(
            "--worker",
            action="append",
            metavar="URL[,events=tcp://HOST:PORT][,ranks=N]…",
            help="one worker (repeatable); events= also takes http://, nats:// and redis:// addresses; "
            "also id=, replay=, model=, block_size=, topic=, api_key=",
        )
    groups: dict[str, argparse._ArgumentGroup] = {}
    sections = sections_of(command)
    for setting in all_settings():
        if setting.section not in sections:
            continue
        if setting.section not in groups:
            groups[setting.section] = parser.add_argument_group(setting.section)
        _add_flag(groups[setting.section], setting)


def load_settings(
    arguments: argparse.Namespace, environment: Mapping[str, str], *, elsewhere: Collection[str] = ()
) -> Settings:
    """Merge the three sources over the defaults; variables that are read `elsewhere` are left alone.

    Raises:
        SettingsError: a key is unknown, a value is malformed or out of bounds, or the file cannot be read.
    """
    return load_with_origins(arguments, environment, elsewhere=elsewhere).settings


def load_with_origins(
    arguments: argparse.Namespace, environment: Mapping[str, str], *, elsewhere: Collection[str] = ()
) -> LoadedSettings:
    """As `load_settings`, and where each value comes from. Raises as that does."""
    known = {setting.key: setting for setting in all_settings()}
    values: dict[str, object] = {}
    origins: dict[str, Origin] = {}
    path = getattr(arguments, "config", None) or environment.get(_CONFIG_VARIABLE)
    of_file: dict[str, object] = {}
    workers = _apply_file(Path(path), known, of_file) if path else ()
    of_environment: dict[str, object] = {}
    workers = _apply_environment(environment, known, of_environment, elsewhere) or workers
    flags = {
        key: checked_value(setting, given, setting.flag)
        for key, setting in known.items()
        if (given := getattr(arguments, _destination(setting), None)) is not None
    }
    layers: tuple[tuple[Origin, dict[str, object]], ...] = (
        ("file", of_file),
        ("environment", of_environment),
        ("flag", flags),
    )
    for origin, layer in layers:
        values.update(layer)
        origins.update(dict.fromkeys(layer, origin))
    workers = tuple(getattr(arguments, "worker", None) or workers)
    return LoadedSettings(
        replace(with_values(Settings(), values), workers=workers), origins, Path(path) if path else None
    )


def with_values(settings: Settings, values: Mapping[str, object]) -> Settings:
    """Replace some values, by their keys; they are checked already."""
    sections: dict[str, dict[str, object]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    changed: dict[str, Any] = {name: replace(getattr(settings, name), **new) for name, new in sections.items()}
    return replace(settings, **changed)


def _describe(section: str, each: "Field[Any]", hint: object) -> Setting:
    kind, optional = _kind_of(hint)
    meta = each.metadata
    derived = f"{_PREFIX}{section.upper()}__{each.name.upper()}"
    return Setting(
        section=section,
        name=each.name,
        kind=kind,
        default=each.default,
        help=meta["help"],
        flag=meta["flag"] or "--" + f"{section}-{each.name}".replace("_", "-"),
        variables=(derived, meta["variable"]) if meta["variable"] else (derived,),
        at_least=meta["at_least"],
        at_most=meta["at_most"],
        choices=meta["choices"],
        or_else=meta["or_else"],
        metavar=meta["metavar"],
        name_characters_max=meta["name_characters_max"],
        optional=optional,
        live=meta["live"],
    )


def _kind_of(hint: object) -> tuple[type, bool]:
    """Reduce an annotation to int, float, bool, str, Path or tuple; say whether None is allowed."""
    if isinstance(hint, types.UnionType):
        return next(each for each in get_args(hint) if each is not type(None)), True
    if get_args(hint):
        return tuple, False
    assert isinstance(hint, type)
    return hint, False


def _destination(setting: Setting) -> str:
    return f"setting_{setting.section}_{setting.name}"


def _add_flag(group: "argparse._ArgumentGroup", setting: Setting) -> None:
    default = "none" if setting.default in ((), None) else setting.default
    if setting.kind is bool:
        group.add_argument(
            setting.flag,
            dest=_destination(setting),
            action=argparse.BooleanOptionalAction,
            help=f"{setting.help} (default: {'yes' if setting.default else 'no'})",
        )
        return
    told = "" if "(default:" in setting.help else f" (default: {default})"
    metavar = setting.metavar or ("|".join(setting.choices) if setting.choices else setting.kind.__name__.upper())
    group.add_argument(
        setting.flag,
        dest=_destination(setting),
        action="append" if setting.kind is tuple else "store",
        metavar=metavar,
        help=f"{setting.help}{told}".replace("%", "%%"),
    )


def _apply_file(path: Path, known: Mapping[str, Setting], values: dict[str, object]) -> tuple[str, ...]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from error
    workers = _workers_of(path, tables.pop("workers", []))
    sections = section_classes()
    for section, table in tables.items():
        if section not in sections:
            raise SettingsError(f"{path}: unknown section [{section}]{nearest(section, [*sections, 'workers'])}")
        if not isinstance(table, dict):
            raise SettingsError(f"{path}: {section} must be a table: [{section}]")
        for name, value in table.items():
            key = f"{section}.{name}"
            if key not in known:
                raise SettingsError(f"{path}: unknown key {key}{nearest(key, known)}")
            values[key] = checked_value(known[key], value, f"{path}: {key}")
    return workers


def _workers_of(path: Path, tables: object) -> tuple[str, ...]:
    """Turn `[[workers]]` tables into the specifications that `--worker` takes."""
    if not isinstance(tables, list):
        raise SettingsError(f"{path}: workers must be [[workers]] tables or a list of specifications")
    specifications = []
    for position, table in enumerate(tables):
        if isinstance(table, str):
            specifications.append(table)
        elif isinstance(table, dict) and isinstance(table.get("url"), str):
            rest = [f"{name}={value}" for name, value in table.items() if name != "url"]
            specifications.append(",".join([table["url"], *rest]))
        else:
            raise SettingsError(f"{path}: workers[{position}] needs a url")
    return tuple(specifications)


def _apply_environment(
    environment: Mapping[str, str], known: Mapping[str, Setting], values: dict[str, object], elsewhere: Collection[str]
) -> tuple[str, ...]:
    by_variable = {variable: setting for setting in known.values() for variable in setting.variables}
    workers: tuple[str, ...] = ()
    for variable in sorted(name for name in environment if name.startswith(_PREFIX)):
        text = environment[variable]
        if variable in by_variable:
            setting = by_variable[variable]
            values[setting.key] = checked_value(setting, text, variable)
        elif variable == _WORKERS_VARIABLE:
            workers = tuple(text.split())
        elif variable == _PURE_VARIABLE:
            if text.strip().lower() not in _TRUE | _FALSE:
                raise SettingsError(f"{variable}: {text!r} is not {_KINDS[bool]}")
        elif variable not in {_CONFIG_VARIABLE, *elsewhere} and not _SERVICE_LINK.fullmatch(f"{variable}={text}"):
            known_ones = [*by_variable, _WORKERS_VARIABLE, *elsewhere]
            raise SettingsError(f"unknown variable {variable}{nearest(variable, known_ones)}")
    return workers


def checked_value(setting: Setting, value: object, where: str) -> object:
    """Convert `value` to the kind of the setting and hold it against its bounds; `where` begins what is said of it.

    Raises:
        SettingsError: it is none, or beyond a bound.
    """
    try:
        converted = _converted(setting, value)
    except (TypeError, ValueError):
        raise SettingsError(f"{where}: {value!r} is not {_KINDS[setting.kind]}") from None
    if setting.choices and not setting.or_else and converted not in setting.choices:
        raise SettingsError(f"{where}: {value!r} is not one of {', '.join(setting.choices)}")
    if setting.name_characters_max is not None and converted != setting.default:
        _check_name(str(converted), setting.name_characters_max, where)
    if isinstance(converted, (int, float)) and not isinstance(converted, bool):
        # Written so that NaN fails too.
        if setting.at_least is not None and not converted >= setting.at_least:
            raise SettingsError(f"{where}: {value} is below the least, {setting.at_least:g}")
        if setting.at_most is not None and not converted <= setting.at_most:
            raise SettingsError(f"{where}: {value} is above the most, {setting.at_most:g}")
    return converted


def _check_name(name: str, characters_max: int, where: str) -> None:
    if len(name) > characters_max or _NAME.fullmatch(name) is None:
        shown = name[:characters_max]
        raise SettingsError(f"{where}: {shown!r} is not a name of 1 to {characters_max} letters, digits, _ and -")


def _converted(setting: Setting, value: object) -> object:
    kind = setting.kind
    if kind is tuple:
        parts = re.split(r"[\s,]+", value.strip()) if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
            raise TypeError
        return tuple(part for part in parts if part)
    if isinstance(value, str):
        return _from_text(kind, value, optional=setting.optional)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise TypeError
    return value


def _from_text(kind: type, text: str, *, optional: bool) -> object:
    if kind is bool:
        lowered = text.strip().lower()
        if lowered not in _TRUE | _FALSE:
            raise ValueError
        return lowered in _TRUE
    if optional and not text:
        return None
    return kind(text)
