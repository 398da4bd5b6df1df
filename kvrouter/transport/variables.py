"""Reads variables of the environment that have two prefixes; a value that is none is an error that names its variable.

`KVROUTER_...` is preferred; `DYN_...`, the names of NVIDIA Dynamo, are accepted. Pure: the environment is an argument.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from kvrouter.errors import SettingsError

__all__ = ["PREFIXES", "Variables", "variables_read"]

PREFIXES = ("KVROUTER_", "DYN_")
_PORT_MAX = 65_535
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


class Variables:
    """Variables by what follows their prefix; an empty one counts as not set."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def found(self, name: str) -> tuple[str, str] | None:
        """The variable's full name and its value."""
        for prefix in PREFIXES:
            value = self._environment.get(prefix + name, "").strip()
            if value:
                return prefix + name, value
        return None

    def text(self, name: str, default: str) -> str:
        """A value as it stands."""
        found = self.found(name)
        return default if found is None else found[1]

    def choice(self, name: str, default: str, known: Sequence[str]) -> str:
        """One of some words, in whatever case."""
        found = self.found(name)
        if found is None:
            return default
        if found[1].lower() not in known:
            raise SettingsError(f"{found[0]}={found[1]!r} must be one of {', '.join(known)}")
        return found[1].lower()

    def optional(self, name: str) -> str | None:
        """A value as it stands, None if there is none."""
        found = self.found(name)
        return None if found is None else found[1]

    def path(self, name: str, default: str) -> str:
        """The path of a URL, without a slash at its end."""
        found = self.found(name)
        if found is None:
            return default
        if not found[1].startswith("/") or not found[1].rstrip("/"):
            raise SettingsError(f"{found[0]}={found[1]!r} must be a path that begins with /")
        return found[1].rstrip("/")

    def port(self, name: str, default: int) -> int:
        """A number of a port; 0 lets the system choose."""
        return self.whole(name, default, most=_PORT_MAX)

    def flag(self, name: str, *, default: bool) -> bool:
        """Yes or no."""
        word = self.choice(name, "", (*_TRUE, *_FALSE))
        return default if not word else word in _TRUE

    def whole(self, name: str, default: int, *, least: int = 0, most: int = 1 << 31) -> int:
        """A whole number within bounds, both of which it may be."""
        found = self.found(name)
        if found is None:
            return default
        if not (found[1].isascii() and found[1].isdigit()) or not least <= int(found[1]) <= most:
            raise SettingsError(f"{found[0]}={found[1]!r} must be a whole number from {least} to {most}")
        return int(found[1])

    def seconds(self, name: str, default: float) -> float:
        """A time above zero."""
        found = self._above_zero(name, "a number of seconds")
        return default if found is None else found

    def number(self, name: str) -> float | None:
        """A number above zero, None if there is none."""
        return self._above_zero(name, "a number")

    def _above_zero(self, name: str, what: str) -> float | None:
        found = self.found(name)
        if found is None:
            return None
        try:
            number = float(found[1])
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf"):
            raise SettingsError(f"{found[0]}={found[1]!r} must be {what} above 0")
        return number


class _Asked(Mapping[str, str]):
    """An environment with nothing in it, which notes what is looked for."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def variables_read(*readers: Callable[[Mapping[str, str]], object]) -> frozenset[str]:
    """The full names of what the readers of an environment look for, whatever they find."""
    asked = _Asked()
    for read in readers:
        read(asked)
    return frozenset(asked.names)
