"""Builds the native core, `kvrouter/_native`, where a C compiler can be had; leaves it out where none can.

`pip install .`, `pip install -e .` and `uv sync` come here through hatchling. `python hatch_build.py` builds in place,
for whoever changed a file of `kvrouter/native`. Compilers are tried in this order: `CC`, those on the PATH, the one in
the `ziglang` wheel, which the build asks for only if the others are missing. Python's headers are used where they are
installed, and are not needed. Nothing that goes wrong here fails an installation: without the core, kvrouter runs on
its reference implementation, slower and otherwise the same. `KVROUTER_PURE=1` asks for that.
"""

import argparse
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:

    class BuildHookInterface:
        """The part of hatchling's class that we use."""

        root: str
        app: Any
else:
    try:
        from hatchling.builders.hooks.plugin.interface import BuildHookInterface
    except ImportError:  # Not a build, but somebody who builds in place.
        BuildHookInterface = object

ROOT = Path(__file__).resolve().parent
PURE_VARIABLE = "KVROUTER_PURE"
ZIG_REQUIREMENT = "ziglang>=0.13"
# Where ziglang has wheels; a requirement that cannot be met would fail the installation.
_ZIG_SYSTEMS, _ZIG_MACHINES = {"Linux", "Darwin", "Windows"}, {"x86_64", "amd64", "aarch64", "arm64"}
_TRUE = {"1", "true", "yes", "on"}
_COMPILE_SECONDS_MAX = 600
_PROBE = "#include <stdint.h>\n#include <stdlib.h>\n#include <string.h>\nint probe(void) { return 0; }\n"


class BuildError(Exception):
    """The core cannot be built here; the text says why, in a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiler:
    """A command that compiles C to a library that Python can load."""

    command: tuple[str, ...]

    @property
    def is_msvc(self) -> bool:
        """Whether it takes Microsoft's options."""
        return Path(self.command[0]).stem.lower() == "cl"

    @property
    def is_zig(self) -> bool:
        """Whether it is clang as zig sets it up."""
        return "ziglang" in self.command or "zig" in Path(self.command[0]).stem.lower()

    def compile(self, sources: Sequence[Path], output: Path, *, definitions: Sequence[str] = ()) -> None:
        """Compile and link.

        Raises:
            BuildError: it did not work.
        """
        options = self._msvc(output) if self.is_msvc else self._gnu(output)
        defined = [("/D" if self.is_msvc else "-D") + each for each in definitions]
        files = [str(source.resolve()) for source in sources]
        # Objects and import libraries that a compiler leaves beside its output go with the folder.
        with tempfile.TemporaryDirectory() as folder:
            command = [*self.command, *options[0], *defined, *files, *options[1]]
            try:
                done = subprocess.run(  # noqa: S603 - the command is the user's own compiler
                    command, cwd=folder, capture_output=True, text=True, timeout=_COMPILE_SECONDS_MAX, check=False
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise BuildError(f"{shlex.join(self.command)}: {error}") from error
        if done.returncode:
            raise BuildError(f"{shlex.join(self.command)} failed:\n{(done.stderr or done.stdout).strip()}")

    def _gnu(self, output: Path) -> tuple[list[str], list[str]]:
        # The core is plain C11; Python's own header needs names that strict C11 hides.
        options = ["-std=gnu11", "-O3", "-fvisibility=hidden", "-Wall", "-Wextra", "-DNDEBUG", *_include_options("-I")]
        if self.is_zig:
            # Its own defaults are this very processor, traps on everything that C leaves undefined, and all symbols.
            options += ["-mcpu=baseline", "-fno-sanitize=undefined", "-s"]
        if sys.platform == "darwin":
            options += ["-bundle", "-undefined", "dynamic_lookup"]
        else:
            options += ["-shared", *([] if sys.platform == "win32" else ["-fPIC"])]
        options += shlex.split(os.environ.get("CFLAGS", ""))
        return options, [*_import_library(), *shlex.split(os.environ.get("LDFLAGS", "")), "-o", str(output)]

    def _msvc(self, output: Path) -> tuple[list[str], list[str]]:
        options = ["/nologo", "/LD", "/O2", "/std:c11", "/W3", "/DNDEBUG", *_include_options("/I")]
        return options, [*_import_library(), f"/Fe:{output}"]


class NativeCoreHook(BuildHookInterface):
    """What hatchling calls when it makes a wheel."""

    PLUGIN_NAME = "custom"
    _folder: "tempfile.TemporaryDirectory[str] | None" = None

    def dependencies(self) -> list[str]:
        """Ask for a compiler if there is none."""
        has_zig_wheel = platform.system() in _ZIG_SYSTEMS and platform.machine().lower() in _ZIG_MACHINES
        wanted = refusal() is None and has_zig_wheel and find_compiler() is None
        return [ZIG_REQUIREMENT] if wanted else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Put the core into the wheel, or beside its sources for an editable installation."""
        root, is_editable = Path(self.root), version == "editable"
        output = in_place(root)
        if is_editable:
            output.unlink(missing_ok=True)  # An old one must not outlive a build that fails.
        else:
            self._folder = tempfile.TemporaryDirectory(prefix="kvrouter-native-")
            output = Path(self._folder.name) / output.name
        try:
            build(root, output)
        except BuildError as problem:
            self._tidy()
            self.app.display_warning(
                f"kvrouter will run on its reference implementation, without the native core: {problem}"
            )
            return
        if not is_editable:
            build_data["pure_python"] = False
            build_data["tag"] = f"cp311-abi3-{_platform_tag()}"
            build_data["force_include"][str(output)] = f"kvrouter/{output.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what was made for the wheel."""
        self._tidy()

    def _tidy(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()


def build(root: Path, output: Path) -> None:
    """Compile the core of the checkout at `root` to `output`, whole or not at all.

    Raises:
        BuildError: it cannot be built.
    """
    reason = refusal()
    if reason is not None:
        raise BuildError(reason)
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("there is no working C compiler, neither in CC nor on the PATH nor as the ziglang wheel")
    # A process that runs on the old file keeps it; writing into it would crash that process.
    unfinished = output.with_name(f".{os.getpid()}.{output.name}")
    try:
        compiler.compile(sources(root), unfinished, definitions=[f'KVR_SOURCES="{source_digest(root)}"'])
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)


def refusal() -> str | None:
    """Return why this interpreter cannot or shall not have the core; None: it can."""
    if os.environ.get(PURE_VARIABLE, "").strip().lower() in _TRUE:
        return f"{PURE_VARIABLE} asks for it"
    if platform.python_implementation() != "CPython":
        return f"{platform.python_implementation()} has no stable ABI"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "free-threaded Python has no stable ABI"
    return None


def find_compiler() -> Compiler | None:
    """Return the first compiler that really compiles: a compiler without the C library's headers is none."""
    for command in _candidates():
        compiler = Compiler(command=command)
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "probe.c"
            source.write_text(_PROBE, encoding="utf-8")
            try:
                compiler.compile([source], Path(folder) / "probe.out")
            except BuildError:
                continue
        return compiler
    return None


def sources(root: Path) -> list[Path]:
    """Return the files to compile."""
    return sorted((root / "kvrouter" / "native").glob("*.c"))


def source_digest(root: Path) -> str:
    """Return a digest of everything that is compiled; the core tells which one it was built from."""
    digest = hashlib.sha256()
    for path in sorted((root / "kvrouter" / "native").glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()[:16]


def in_place(root: Path) -> Path:
    """Return where the core lies in a checkout."""
    return root / "kvrouter" / ("_native.pyd" if sys.platform == "win32" else "_native.abi3.so")


def _candidates() -> Iterator[tuple[str, ...]]:
    chosen = os.environ.get("CC")
    if chosen:
        yield tuple(shlex.split(chosen))
    for name in (*(("cl",) if sys.platform == "win32" else ()), "cc", "gcc", "clang"):
        path = shutil.which(name)
        if path is not None:
            yield (path,)
    if importlib.util.find_spec("ziglang") is not None:
        yield (sys.executable, "-m", "ziglang", "cc")


def _include_options(option: str) -> list[str]:
    folders = {sysconfig.get_path(name) for name in ("include", "platinclude")}
    return [option + folder for folder in sorted(folders) if folder and (Path(folder) / "Python.h").exists()]


def _import_library() -> list[str]:
    """Windows resolves names when a library is linked; elsewhere they are resolved when it is loaded."""
    library = Path(sys.base_prefix) / "libs" / "python3.lib"
    return [str(library)] if sys.platform == "win32" else []


def _platform_tag() -> str:
    """Return the tag of wheels for this machine alone; wheels for others are made in `deploy/wheels`."""
    from packaging.tags import platform_tags  # noqa: PLC0415 - hatchling brings it; building in place does without

    # A library compiled here needs this machine's C library: no manylinux promise is made.
    return next(tag for tag in platform_tags() if not tag.startswith(("manylinux", "musllinux")))


def main(arguments: Sequence[str] | None = None) -> int:
    """Build in place, or to a given path."""
    parser = argparse.ArgumentParser(description="Build the native core in place.")
    parser.add_argument("--output", type=Path, default=in_place(ROOT), help="where to write it (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        build(ROOT, options.output.resolve())
    except BuildError as problem:
        print(f"not built: {problem}", file=sys.stderr)  # noqa: T201 - a command
        return 1
    print(options.output)  # noqa: T201 - a command
    return 0


if __name__ == "__main__":
    sys.exit(main())
