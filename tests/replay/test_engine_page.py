"""docs/simulated-engine.md is about the engine that there is."""

import re
import subprocess
import sys
from pathlib import Path

import msgspec

from kvrouter.replay.engine.faults import KINDS, Fault

PAGE = (Path(__file__).parents[2] / "docs" / "simulated-engine.md").read_text(encoding="utf-8")


def test_the_page_lists_every_fault_with_its_fields() -> None:
    """No more and no fewer, and only fields that a fault has."""
    rows = dict(re.findall(r"^\| `([a-z_]+)` \|([^|]*)\|", PAGE, re.MULTILINE))
    fields = {field.name for field in msgspec.structs.fields(Fault)}

    assert rows.keys() == KINDS.keys()
    assert set(re.findall(r"`(\w+)`", " ".join(rows.values()))) == fields - {"kind"}


def test_the_flags_of_the_page_are_the_engines() -> None:
    """With these defaults."""
    command = [sys.executable, "-m", "kvrouter.replay.engine", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    flags = set(re.findall(r"--[a-z][a-z-]+", PAGE)) - {"--help", "--worker"}

    assert flags <= set(re.findall(r"--[a-z][a-z-]+", told))
    for number in ("4096", "16", "8000.0", "0.012", "0.0003", "64", "10000"):
        assert f"(default: {number})" in re.sub(r"\s+", " ", told)
