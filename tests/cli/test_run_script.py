"""`./run`: what it installs, and when it does so again; pip and the command are stand-ins that say their names."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "run"
INPUTS = ("pyproject.toml", "hatch_build.py", "kvrouter/native/core.c")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like a clone, with an environment in which nothing is installed yet."""
    shutil.copy(SCRIPT, tmp_path / "run")
    for name in INPUTS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("pip", "python", "kvrouter"):
        (programs / name).write_text(f"#!/bin/sh\necho {name} $*\n")
        (programs / name).chmod(0o755)
    return tmp_path


def run(checkout: Path, *arguments: str) -> list[str]:
    """Call it and return which programs were called, with their first words."""
    environment = {name: value for name, value in os.environ.items() if name != "VENV"}
    done = subprocess.run(
        [checkout / "run", *arguments], capture_output=True, text=True, timeout=120, check=True, env=environment
    )
    return [" ".join(line.split()[:3]) for line in done.stdout.splitlines()]


def test_the_demo_installs_once(checkout: Path) -> None:
    """The second call goes straight to the command."""
    assert run(checkout, "demo", "--json") == ["python -m pip", "kvrouter demo --json"]
    assert run(checkout, "demo", "--json") == ["kvrouter demo --json"]


@pytest.mark.parametrize("changed", INPUTS)
def test_what_an_installation_is_made_of_is_installed_again(checkout: Path, changed: str) -> None:
    """A native core that is older than the Python around it would fail on the first request."""
    run(checkout, "demo")
    stamp = (checkout / ".venv" / "installed-router").stat().st_mtime
    os.utime(checkout / changed, (stamp + 10, stamp + 10))

    assert run(checkout, "demo")[0] == "python -m pip"


def test_without_a_command_it_explains_itself(checkout: Path) -> None:
    """And an unknown one is a wrong call."""
    explained = run(checkout)
    unknown = subprocess.run([checkout / "run", "dmeo"], capture_output=True, timeout=120, check=False)

    assert "./run demo [OPTIONS]" in explained
    assert unknown.returncode == 2
