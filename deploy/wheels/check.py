"""Whether wheels keep what their tags promise: `python deploy/wheels/check.py dist/*.whl`. `build.py` asks for each.

A tag says for which machines the library inside is, which C library or system it gets along with, and that it needs no
more of Python than the stable ABI. Whether it works there, only such a machine can tell.
"""

import base64
import csv
import hashlib
import io
import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from libraries import Library, read_library  # It lies beside this file, and is no package.

__all__ = ["WheelError", "check_library", "check_wheel"]

ABI = Path(__file__).resolve().parents[2] / "kvrouter" / "native" / "python_abi.h"
_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
# What a core may ask for: the C library, under each system's name for it.
_NEEDS = {
    "manylinux": re.compile(r"lib(c|m|pthread)\.so\.\d"),
    "musllinux": re.compile(r"libc\.(musl-\w+\.)?so(\.1)?"),
    "macosx": re.compile(r"/usr/lib/libSystem\.B\.dylib"),
    "win": re.compile(r"python3\.dll|KERNEL32\.dll|api-ms-win-crt-[\w-]+\.dll"),
}


class WheelError(Exception):
    """A wheel does not keep what it promises; the text says what."""


def check_wheel(path: Path) -> Library:
    """Look through a wheel with a core; returns what there is to say of its library.

    Raises:
        WheelError: something is wrong with it.
    """
    tags = path.stem.split("-")[2:]
    with zipfile.ZipFile(path) as wheel:
        _check_record(wheel)
        [info] = [name for name in wheel.namelist() if name.endswith(".dist-info/WHEEL")]
        lines = wheel.read(info).decode().splitlines()
        expected = {f"Tag: {tags[0]}-{tags[1]}-{platform}" for platform in tags[2].split(".")}
        if {line for line in lines if line.startswith("Tag:")} != expected or "Root-Is-Purelib: false" not in lines:
            raise WheelError(f"{info} does not say {', '.join(sorted(expected))}")
        libraries = [name for name in wheel.namelist() if name.endswith((".so", ".pyd", ".dll", ".dylib"))]
        if tags[:2] != ["cp311", "abi3"] or [name.rpartition("_native.")[0] for name in libraries] != ["kvrouter/"]:
            raise WheelError(f"cp311-abi3 and one kvrouter/_native are expected, not {tags} and {libraries}")
        library = read_library(wheel.read(libraries[0]))
    for platform in tags[2].split("."):
        check_library(library, platform)
    return library


def check_library(library: Library, platform: str) -> None:
    """Compare a core with the tag of a platform.

    Raises:
        WheelError: it is not for that platform, or not for all machines of it.
    """
    family = next((name for name in _NEEDS if platform.startswith(name)), None)
    if family is None or not platform.endswith(tuple(name for name in _MACHINES if _MACHINES[name] == library.machine)):
        raise WheelError(f"a library for {library.machine} is not for {platform}")
    strange = sorted(name for name in library.needs if not _NEEDS[family].fullmatch(name))
    if strange:
        raise WheelError(f"needs {', '.join(strange)}, which not all have: {platform}")
    if library.offers != {"PyInit__native"}:
        raise WheelError(f"offers {sorted(library.offers)}, not PyInit__native alone")
    unlisted = sorted(library.expects - _stable_names())
    if unlisted or not library.expects:
        raise WheelError(f"expects of Python {', '.join(unlisted) or 'nothing'}; what it may is listed in {ABI.name}")
    _check_versions(library, platform, family)


def _check_versions(library: Library, platform: str, family: str) -> None:
    # manylinux2014 is another name for manylinux_2_17.
    promised = re.search(r"_(\d+)_(\d+)_", platform.replace("manylinux2014", "manylinux_2_17"))
    versions = [re.fullmatch(r"(?:GLIBC_)?(\d+)\.(\d+)(?:\.\d+)?", version) for version in library.versions]
    if family == "musllinux" and library.versions:
        raise WheelError(f"musl has no versions of symbols, this has {sorted(library.versions)}")
    for version, text in zip(versions, library.versions, strict=True):
        if version is None or promised is None or _pair(version) > _pair(promised):
            raise WheelError(f"needs {text}, more than {platform} promises")
    if family == "macosx" and (not versions or (library.machine == "aarch64" and not library.is_signed)):
        raise WheelError("does not say for which macOS it is, or is not signed, and would not be loaded")


def _pair(match: re.Match[str]) -> tuple[int, int]:
    return int(match[1]), int(match[2])


def _stable_names() -> frozenset[str]:
    text = ABI.read_text(encoding="utf-8")
    lines = re.findall(r"^KVR_IMPORT ([^;]*);", text, re.MULTILINE)
    return frozenset(name for line in lines for name in re.findall(r"\b_?Py\w+(?=\(|,|$)", line))


def _check_record(wheel: zipfile.ZipFile) -> None:
    [record] = [name for name in wheel.namelist() if name.endswith(".dist-info/RECORD")]
    rows = {name: digest for name, digest, _ in csv.reader(io.StringIO(wheel.read(record).decode()))}
    if rows.pop(record, None) != "" or set(rows) != set(wheel.namelist()) - {record}:
        raise WheelError(f"{record} does not list what is in the wheel")
    for name, digest in rows.items():
        found = base64.urlsafe_b64encode(hashlib.sha256(wheel.read(name)).digest()).rstrip(b"=").decode()
        if digest != f"sha256={found}":
            raise WheelError(f"{name} is not what {record} says")


def main(arguments: Sequence[str] | None = None) -> int:
    """Check wheels, and say of each what it needs."""
    failed = 0
    for name in sys.argv[1:] if arguments is None else arguments:
        if name.endswith("-py3-none-any.whl"):
            continue  # It has no core, and promises nothing.
        try:
            library = check_wheel(Path(name))
        except (WheelError, ValueError) as problem:
            print(f"{name}: {problem}", file=sys.stderr)  # noqa: T201 - a command
            failed = 1
        else:
            print(f"{name}: {', '.join(sorted(library.needs | library.versions))}")  # noqa: T201 - a command
    return failed


if __name__ == "__main__":
    sys.exit(main())
