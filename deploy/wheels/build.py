"""Builds the wheels of a release, for every platform, on one machine: `python deploy/wheels/build.py --output dist`.

Needs hatchling, and ziglang for its cross compiler: `pip install hatchling ziglang`. The core is plain C on the stable
ABI, declared in `python_abi.h`, so neither Python's headers nor the platforms themselves are needed. Each wheel is the
one without the core, the core, and a tag that says for whom; `check.py` sees to it that the tag is kept. The wheel
without the core goes along for all the others.
"""

import argparse
import base64
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from check import check_wheel  # noqa: E402 - beside this file, likewise

import hatch_build  # noqa: E402 - it lies beside pyproject.toml, and is no package

_ZIG = (sys.executable, "-m", "ziglang")
_OPTIONS = ("-std=gnu11", "-O3", "-DNDEBUG", "-fvisibility=hidden", "-fno-sanitize=undefined", "-s", "-shared")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A platform: what zig calls it, what pip calls it, and how a library for it is linked."""

    zig: str
    tag: str
    library: str = "_native.abi3.so"
    options: tuple[str, ...] = ("-fPIC",)


_MAC_OPTIONS = ("-fPIC", "-undefined", "dynamic_lookup", "-Wl,-install_name,@rpath/_native.abi3.so")
TARGETS = (
    # A C library of this age is in every distribution that has Python 3.11.
    Target(zig="x86_64-linux-gnu.2.17", tag="manylinux_2_17_x86_64.manylinux2014_x86_64"),
    Target(zig="aarch64-linux-gnu.2.17", tag="manylinux_2_17_aarch64.manylinux2014_aarch64"),
    Target(zig="x86_64-linux-musl", tag="musllinux_1_2_x86_64"),
    Target(zig="aarch64-linux-musl", tag="musllinux_1_2_aarch64"),
    Target(zig="x86_64-macos.11.0", tag="macosx_11_0_x86_64", options=_MAC_OPTIONS),
    Target(zig="aarch64-macos.11.0", tag="macosx_11_0_arm64", options=_MAC_OPTIONS),
    Target(zig="x86_64-windows-gnu", tag="win_amd64", library="_native.pyd", options=()),
    Target(zig="aarch64-windows-gnu", tag="win_arm64", library="_native.pyd", options=()),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build all wheels, or those of the given targets."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder for the wheels (default: dist)")
    names = [target.zig for target in TARGETS]
    parser.add_argument("--target", action="append", choices=names, help="only this one (repeatable)")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    pure = build_pure(options.output)
    print(pure)  # noqa: T201 - a command
    for target in TARGETS:
        if not options.target or target.zig in options.target:
            with tempfile.TemporaryDirectory() as folder:
                library = compile_core(target, Path(folder))
                wheel = add_core(pure, library, target, options.output)
                check_wheel(wheel)
                print(wheel)  # noqa: T201 - a command
    return 0


def build_pure(output: Path) -> Path:
    """Build the wheel without the core."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {hatch_build.PURE_VARIABLE: "1"}
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
        _run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        [built] = Path(folder).glob("*.whl")
        wheel = output / built.name
        wheel.write_bytes(built.read_bytes())
    return wheel


def compile_core(target: Target, folder: Path) -> Path:
    """Compile the core for a platform, from the same sources with the same digest as everywhere."""
    library = folder / target.library
    definitions = ["-DKVR_WITHOUT_PYTHON_H", f'-DKVR_SOURCES="{hatch_build.source_digest(ROOT)}"']
    sources = [str(source) for source in hatch_build.sources(ROOT)]
    imports = [str(import_library(target, folder))] if "windows" in target.zig else []
    command = [*_ZIG, "cc", "-target", target.zig, *_OPTIONS, *target.options, *definitions, *sources, *imports]
    _run([*command, "-o", str(library)], cwd=folder)
    return library


def import_library(target: Target, folder: Path) -> Path:
    """Say to the linker of Windows what `python3.dll` has: the names that our own page of declarations lists."""
    text = (ROOT / "kvrouter" / "native" / "python_abi.h").read_text(encoding="utf-8")
    lines = re.findall(r"^KVR_IMPORT (?:extern )?([^;]*);", text, re.MULTILINE)
    data = [name for line in lines if "(" not in line for name in re.findall(r"(\w+)(?=,|$)", line)]
    functions = [match[1] for line in lines if (match := re.match(r"[^(]*?(\w+)\(", line))]
    exports = [*functions, *(f"{name} DATA" for name in data)]
    definition, library = folder / "python3.def", folder / "python3.lib"
    definition.write_text("LIBRARY python3.dll\nEXPORTS\n" + "\n".join(exports) + "\n", encoding="utf-8")
    machine = "arm64" if target.zig.startswith("aarch64") else "i386:x86-64"
    command = [*_ZIG, "dlltool", "-m", machine, "-d", str(definition), "-l", str(library)]
    _run(command, cwd=folder)
    return library


def add_core(pure: Path, library: Path, target: Target, output: Path) -> Path:
    """Write the wheel of one platform."""
    tags = [f"cp311-abi3-{platform}" for platform in target.tag.split(".")]
    wheel = output / pure.name.replace("py3-none-any", f"cp311-abi3-{target.tag}")
    with zipfile.ZipFile(pure) as source, zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as result:
        records: list[str] = []

        def add(like: zipfile.ZipInfo, name: str, content: bytes) -> None:
            entry = zipfile.ZipInfo(name, like.date_time)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, like.external_attr
            result.writestr(entry, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            records.append(f"{name},sha256={digest},{len(content)}\n")

        *entries, record = source.infolist()
        assert record.filename.endswith(".dist-info/RECORD")
        for entry in entries:
            content = source.read(entry)
            if entry.filename.endswith(".dist-info/WHEEL"):
                content = _wheel_file(content.decode(), tags)
            add(entry, entry.filename, content)
        add(entries[0], f"kvrouter/{library.name}", library.read_bytes())
        result.writestr(record, "".join(records) + f"{record.filename},,\n")
    return wheel


def _run(command: Sequence[str], **options: Any) -> None:
    subprocess.run(command, check=True, **options)  # noqa: S603 - the commands are written above


def _wheel_file(text: str, tags: Sequence[str]) -> bytes:
    kept = [line for line in text.splitlines() if line and not line.startswith(("Tag:", "Root-Is-Purelib:"))]
    return "\n".join([*kept, "Root-Is-Purelib: false", *(f"Tag: {tag}" for tag in tags), ""]).encode()


if __name__ == "__main__":
    sys.exit(main())
