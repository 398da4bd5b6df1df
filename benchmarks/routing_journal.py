"""Keeps what each run of the routing benchmark measured, so that a long one can be stopped and goes on where it was.

A file of JSON lines: first what was played, then one line for each run as it ends. Runs are the same whatever else is
measured beside them, so parts of a grid may be measured one after the other into one file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from kvrouter.replay.measures import Measures

__all__ = ["Journal", "JournalError"]

_KEYS: Final = ("cell", "policy", "seed")
_FIELDS: Final = tuple(field.name for field in fields(Measures))

# Cell, policy and seed.
Key = tuple[str, str, int]


class JournalError(Exception):
    """A file is not a journal, or one of another benchmark run."""


class Journal:
    """What is measured already, by cell, policy and seed. Without a `path` nothing is kept.

    Raises:
        JournalError: the file is of runs under other `conditions`, or of other measures.
    """

    def __init__(self, path: Path | None, conditions: Mapping[str, Any]) -> None:
        self.known: dict[Key, Measures] = {}
        self._path, self._conditions = path, {"conditions": dict(conditions)}
        if path is not None and path.is_file() and path.stat().st_size:
            self._read(path)
        elif path is not None:
            path.write_text(json.dumps(self._conditions) + "\n", encoding="utf-8")

    def note(self, key: Key, measures: Measures) -> None:
        """Keep what a run measured."""
        self.known[key] = measures
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict(zip(_KEYS, key, strict=True)) | asdict(measures)) + "\n")

    def _read(self, path: Path) -> None:
        first, *lines = path.read_text(encoding="utf-8").split("\n")
        if _object(first) != self._conditions:
            raise JournalError(f"{path} is of runs under other conditions: {first[:200]}")
        *whole, torn = lines
        for line in whole:
            row = _object(line)
            if row.keys() != {*_KEYS, *_FIELDS}:
                raise JournalError(f"{path} has other measures: {line[:200]}")
            cell, policy, seed = (row[name] for name in _KEYS)
            self.known[cell, policy, seed] = Measures(**{name: row[name] for name in _FIELDS})
        if torn:  # Written by a run that was killed meanwhile.
            path.write_text("\n".join([first, *whole, ""]), encoding="utf-8")


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    return row if isinstance(row, dict) else {}
