"""What every benchmark prints: one object for programs, the same as a table for people.

A row is one figure of ours, and beside it the figure of one peer doing the same work in the same run. A peer that was
not there is a row with `peer: null` and the reason, never a figure from somewhere else. Nothing is measured here.
"""

import argparse
import datetime as dt
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

__all__ = ["Report", "argument_parser", "installed_versions", "machine_facts"]

_COLUMNS = ("name", "ours", "unit", "peer", "ratio", "compared with")


class Report:
    """Collects the rows of one benchmark and prints them once.

    `packages` are the distributions whose versions belong to the result; those that are not installed are left out.
    """

    def __init__(self, name: str, *, packages: Iterable[str] = ()) -> None:
        self.name = name
        self.machine = machine_facts()
        self.versions = installed_versions(["kvrouter", *packages])
        self.conditions: dict[str, object] = {
            "command": shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]]),
            "started": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        }
        self.rows: list[dict[str, object]] = []

    def row(
        self,
        name: str,
        unit: str,
        ours: float | None,
        peer: float | None = None,
        peer_name: str | None = None,
        ratio: float | None = None,
        reason: str | None = None,
        *,
        less_is_better: bool = False,
        **extra: object,
    ) -> None:
        """Add one figure, and beside it one peer's.

        `ratio` > 1 means that we are better; it is computed from the two figures unless given. `reason` says why a
        figure is missing. `extra` goes into the row as it is (counts, spreads, settings).
        """
        if ratio is None:
            ratio = _ratio(ours, peer, less_is_better=less_is_better)
        row: dict[str, object] = {
            "name": name,
            "unit": unit,
            "ours": _rounded(ours),
            "peer": _rounded(peer),
            "peer_name": peer_name,
            "ratio": _rounded(ratio),
        }
        if reason is not None:
            row["reason"] = reason
        self.rows.append(row | extra)

    def document(self) -> dict[str, object]:
        """Return the object that `--json` prints."""
        return {
            "benchmark": self.name,
            "machine": self.machine,
            "versions": self.versions,
            "conditions": self.conditions,
            "rows": self.rows,
        }

    def emit(self, json: bool) -> None:  # noqa: FBT001 - every benchmark says emit(arguments.json)
        """Print the object, or the table."""
        sys.stdout.write(_as_json(self.document()) if json else self.table())
        sys.stdout.flush()

    def table(self) -> str:
        """Return the rows as text for people, under one line each about the machine and the versions."""
        lines = [_COLUMNS, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS))]
        text = [
            f"{self.name} · {self.machine['cpu']}, {self.machine['cores']} cores · {self.conditions['started']}",
            " · ".join(f"{name} {version}" for name, version in self.versions.items()),
            "",
        ]
        text += ["  ".join(_aligned(cell, widths[i], i) for i, cell in enumerate(line)).rstrip() for line in lines]
        return "\n".join(text) + "\n"


def argument_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="a smaller run, under a minute; its figures are rougher")
    return parser


def machine_facts() -> dict[str, object]:
    """Return what a reader must know of the machine to compare figures."""
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def installed_versions(packages: Iterable[str], *, path: list[str] | None = None) -> dict[str, str]:
    """Return the versions of those `packages` that are installed here, or in the folders of `path`."""
    found: dict[str, str] = {}
    for package in packages:
        distributions = (
            metadata.distributions(name=package, path=path) if path else metadata.distributions(name=package)
        )
        for distribution in distributions:
            found[package] = distribution.version
            break
    return found


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _ratio(ours: float | None, peer: float | None, *, less_is_better: bool) -> float | None:
    if ours is None or peer is None or ours <= 0 or peer <= 0:
        return None
    return peer / ours if less_is_better else ours / peer


def _rounded(value: float | None) -> float | None:
    """Keep four significant digits: more would claim a precision that no run has."""
    if value is None or isinstance(value, int):
        return value
    return round(value) if abs(value) >= 10_000 else float(f"{value:.4g}")


def _as_json(document: dict[str, object]) -> str:
    return json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n"


def _cells(row: dict[str, object]) -> tuple[str, ...]:
    compared = str(row["peer_name"] or "")
    if "reason" in row:
        compared += f" ({row['reason']})" if compared else f"({row['reason']})"
    return (
        str(row["name"]),
        _figure(row["ours"]),
        str(row["unit"]),
        *map(_figure, (row["peer"], row["ratio"])),
        compared,
    )


def _figure(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if _COLUMNS[column] in {"ours", "peer", "ratio"} else cell.ljust(width)
