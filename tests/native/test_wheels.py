"""What is promised by the tag of a wheel is kept by the library in it, and a wheel that breaks its promise is refused.

`tests/golden/wheels` has a small module for each kind of platform, as the release script makes them; the cores of a
release are looked through when they are built.
"""

import gzip
import importlib
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvrouter import native_core
from tests.native.hook import CHECKOUT

GOLDEN = CHECKOUT / "tests" / "golden" / "wheels"
PLATFORMS = ("manylinux_2_17_aarch64", "musllinux_1_2_x86_64", "macosx_11_0_arm64", "win_amd64")


@pytest.fixture(scope="module")
def scripts() -> Any:
    """The release's scripts, which are no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CHECKOUT / "deploy" / "wheels"))
        yield importlib.import_module("check"), importlib.import_module("libraries"), importlib.import_module("build")


def _golden(tag: str) -> bytes:
    return gzip.decompress(next(GOLDEN.glob(f"{tag}.*")).read_bytes())


@pytest.mark.parametrize("tag", PLATFORMS)
def test_a_library_for_each_platform_is_what_its_tag_says(tag: str, scripts: Any) -> None:
    """And is not what another one's says."""
    check, libraries, _ = scripts
    library = libraries.read_library(_golden(tag))

    check.check_library(library, tag)

    for other in {*PLATFORMS, "manylinux_2_17_x86_64", "win_arm64", "linux_ppc64le"} - {tag}:
        with pytest.raises(check.WheelError):
            check.check_library(library, other)


def test_the_core_of_this_machine_is_read_alike(scripts: Any) -> None:
    """Whatever compiler made it."""
    _, libraries, _ = scripts
    library = libraries.read_library(Path(native_core.native.__file__).read_bytes())

    assert library.offers == {"PyInit__native"}
    assert "PyModuleDef_Init" in library.expects


@pytest.mark.parametrize(
    ("tag", "change", "says"),
    [
        ("manylinux_2_17_aarch64", {"versions": frozenset({"GLIBC_2.34"})}, "GLIBC_2.34, more than"),
        ("manylinux_2_17_aarch64", {"versions": frozenset({"GLIBC_PRIVATE"})}, "GLIBC_PRIVATE, more than"),
        ("manylinux_2_17_aarch64", {"needs": frozenset({"libasan.so.8"})}, "libasan.so.8, which not all have"),
        ("musllinux_1_2_x86_64", {"needs": frozenset({"libc.so.6"})}, "libc.so.6, which not all have"),
        ("musllinux_1_2_x86_64", {"versions": frozenset({"GLIBC_2.2.5"})}, "musl has no versions"),
        ("macosx_11_0_arm64", {"versions": frozenset({"14.0"})}, "14.0, more than"),
        ("macosx_11_0_arm64", {"is_signed": False}, "not signed"),
        ("win_amd64", {"needs": frozenset({"python311.dll"})}, "python311.dll, which not all have"),
        ("win_amd64", {"offers": frozenset({"PyInit__native", "helper"})}, "not PyInit__native alone"),
        ("win_amd64", {"expects": frozenset({"PyList_GET_ITEM"})}, "PyList_GET_ITEM"),
        ("win_amd64", {"expects": frozenset()}, "nothing"),
    ],
)
def test_a_library_that_asks_for_more_is_refused(tag: str, change: dict[str, Any], says: str, scripts: Any) -> None:
    """It would be installed, and not be loaded."""
    check, libraries, _ = scripts

    with pytest.raises(check.WheelError, match=says):
        check.check_library(replace(libraries.read_library(_golden(tag)), **change), tag)


@pytest.mark.parametrize("tag", PLATFORMS)
def test_a_library_that_was_cut_off_is_none(tag: str, scripts: Any) -> None:
    """Wherever it ends, it is read or refused."""
    _, libraries, _ = scripts
    whole = _golden(tag)

    for length in {*range(0, 600, 7), *range(600, len(whole), 997)}:
        try:
            library = libraries.read_library(whole[:length])
        except ValueError:
            continue
        assert library.machine in tag.replace("arm64", "aarch64").replace("amd64", "x86_64")


def test_wheels_are_made_and_looked_through(scripts: Any, tmp_path: Path) -> None:
    """From the one without a core and a library; what is changed in it afterwards is noticed."""
    check, _, build = scripts
    golden = tmp_path / "_native.abi3.so"
    golden.write_bytes(_golden("manylinux_2_17_aarch64"))
    wheel = build.add_core(build.build_pure(tmp_path), golden, build.TARGETS[1], tmp_path)

    assert check.check_wheel(wheel).machine == "aarch64"
    with zipfile.ZipFile(wheel, "a") as changed:
        changed.writestr("kvrouter/more.py", "")
    with pytest.raises(check.WheelError, match="does not list"):
        check.check_wheel(wheel)


def test_the_command_tells_which_wheel_is_wrong(
    scripts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its exit status too."""
    check, _, build = scripts
    golden = tmp_path / "_native.abi3.so"
    golden.write_bytes(_golden("manylinux_2_17_aarch64"))
    pure = build.build_pure(tmp_path)
    good = build.add_core(pure, golden, build.TARGETS[1], tmp_path)
    bad = build.add_core(pure, golden, build.TARGETS[0], tmp_path)

    assert check.main([str(pure), str(good)]) == 0
    assert check.main([str(pure), str(good), str(bad)]) == 1
    told = capsys.readouterr()
    assert told.out == f"{good}: GLIBC_2.17, libc.so.6\n" * 2
    assert told.err.startswith(f"{bad}: a library for aarch64 is not for")
