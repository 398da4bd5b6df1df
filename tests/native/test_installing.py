"""Installing from the source distribution, with a compiler, without, without the wish, with a broken one.

Each goes into an empty environment of its own, by pip, which fetches what a build needs from the index it is set up
for: hatchling, and for the machine without a compiler the `ziglang` wheel.
"""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

import hatch_build
from tests.native.hook import CHECKOUT

_SECONDS_MAX = 400
_WARNING = "kvrouter will run on its reference implementation, without the native core: "
_REPORT = """
import json
from importlib import metadata
from kvrouter import native_core as core
tags = [line for line in metadata.distribution("kvrouter").read_text("WHEEL").splitlines() if line.startswith("Tag: ")]
print(json.dumps([core.implementation, core.absence, core.native and core.native.SOURCES, tags]))
"""
# Good enough to be found, and not for the core.
_BROKEN_COMPILER = """
import subprocess, sys
if not any(argument.endswith("probe.c") for argument in sys.argv):
    sys.exit("internal compiler error: out of ideas")
sys.exit(subprocess.run([*COMPILER, *sys.argv[1:]]).returncode)
"""

pytestmark = pytest.mark.timeout(_SECONDS_MAX + 60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What an installation said, and what came of it."""

    output: str
    implementation: str
    absence: str | None
    built_from: str | None
    tags: list[str]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of this checkout."""
    folder = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(folder)]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, timeout=120)
    [archive] = folder.iterdir()
    return archive


@pytest.fixture(scope="module")
def installed(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Installed]]:
    """All four, made at the same time."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "empty").mkdir()
    compiler = hatch_build.find_compiler()
    assert compiler is not None
    broken = folder / "broken.py"
    broken.write_text(f"COMPILER = {compiler.command!r}\n{_BROKEN_COMPILER}", encoding="utf-8")
    machines: dict[str, dict[str, str]] = {
        "compiler": {},
        "no-compiler": {"PATH": str(folder / "empty")},
        "no-wish": {hatch_build.PURE_VARIABLE: "1"},
        "broken-compiler": {"CC": f"{sys.executable} {broken}"},
    }
    with ExitStack() as started:
        running = {}
        for name, environment in machines.items():
            running[name] = started.enter_context(_start(sdist, folder / name, environment))
            started.callback(running[name].kill)
        yield {name: _finish(process, folder / name) for name, process in running.items()}


def _start(sdist: Path, folder: Path, environment: Mapping[str, str]) -> "subprocess.Popen[str]":
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    unset = {"CC", "CFLAGS", "LDFLAGS", "PYTHONPATH", hatch_build.PURE_VARIABLE}
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    # Without its cache of wheels, in which the core may be one of an earlier run.
    command = [sys.executable, "-m", "pip", "--python", str(_python(folder)), "install", "--verbose", "--no-deps"]
    return subprocess.Popen(
        [*command, "--disable-pip-version-check", "--no-binary", "kvrouter", str(sdist)],
        env={**kept, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(process: "subprocess.Popen[str]", folder: Path) -> Installed:
    output, _ = process.communicate(timeout=_SECONDS_MAX)
    assert process.returncode == 0, output
    command = [str(_python(folder)), "-I", "-c", _REPORT]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    implementation, absence, built_from, tags = json.loads(said)
    return Installed(output=output, implementation=implementation, absence=absence, built_from=built_from, tags=tags)


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def test_the_source_distribution_is_complete(sdist: Path) -> None:
    """Whatever is written here is in it, and nothing that is built."""
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    folders = [each.name for each in CHECKOUT.iterdir() if each.is_dir() and not each.name.startswith(".")]
    written = {
        path.relative_to(CHECKOUT).as_posix()
        for folder in {"kvrouter", "publishers", "subscribers", "tests", "docs", "deploy"} & set(folders)
        for suffix in ("py", "pyi", "typed", "c", "h", "md", "toml", "j2", "css", "js", "html")
        for path in (CHECKOUT / folder).rglob(f"*.{suffix}")
    }

    assert written | {"pyproject.toml", "hatch_build.py", "LICENSE", "README.md", "PKG-INFO"} <= names
    assert [name for name in names if name.endswith((".so", ".pyd", ".pyc"))] == []


@pytest.mark.parametrize("machine", ["compiler", "no-compiler"])
def test_the_core_is_installed_with_a_compiler_and_without(
    machine: str, installed: dict[str, Installed], sdist: Path, tmp_path: Path
) -> None:
    """The wheel that brings a compiler is fetched only where there is none."""
    found = installed[machine]
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [source] = tmp_path.iterdir()

    assert (found.implementation, found.absence) == ("native", None), found.output[-5000:]
    assert found.built_from == hatch_build.source_digest(source)
    assert [tag.startswith("Tag: cp311-abi3-") for tag in found.tags] == [True]
    assert ("ziglang" in found.output) is (machine == "no-compiler")
    assert _WARNING not in found.output


@pytest.mark.parametrize(
    ("machine", "why"), [("no-wish", "KVROUTER_PURE asks for it"), ("broken-compiler", "out of ideas")]
)
def test_an_installation_without_the_core_says_so_once_and_works(
    machine: str, why: str, installed: dict[str, Installed]
) -> None:
    """Neither a refused core nor a broken compiler fails an installation."""
    found = installed[machine]

    assert found.implementation == "reference"
    assert str(found.absence).startswith("the native core is not installed (")
    assert found.tags == ["Tag: py3-none-any"]
    assert found.output.count(_WARNING) == 1
    assert why in found.output.partition(_WARNING)[2]
    assert "ziglang" not in found.output
