"""Installing asks for a compiler where there is none, and never fails because of the core."""

import importlib.util
import platform
import sys
import sysconfig
from pathlib import Path

import pytest

import hatch_build
from hatch_build import BuildError, Compiler
from tests.native.hook import Hook, new_build_data


@pytest.fixture
def without_compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with neither a compiler nor the wheel that brings one."""
    _forget_choices(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)


def _forget_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CC", "CFLAGS", "LDFLAGS", hatch_build.PURE_VARIABLE):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.usefixtures("without_compilers")
def test_a_compiler_is_asked_for_where_there_is_none(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where its wheel exists; elsewhere the reference has to do."""
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert Hook(checkout).dependencies() == [hatch_build.ZIG_REQUIREMENT]

    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    assert Hook(checkout).dependencies() == []


@pytest.mark.usefixtures("without_compilers")
def test_without_any_compiler_the_installation_goes_on(checkout: Path) -> None:
    """With a sentence that names the three places where one was looked for."""
    hook, data = Hook(checkout), new_build_data()

    hook.initialize("standard", data)

    assert data == new_build_data()
    assert "neither in CC nor on the PATH nor as the ziglang wheel" in hook.app.warnings[0]


def test_the_reference_can_be_asked_for(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing is compiled and no compiler is fetched."""
    monkeypatch.setenv(hatch_build.PURE_VARIABLE, "1")
    hook, data = Hook(checkout), new_build_data()

    hook.initialize("standard", data)

    assert hook.dependencies() == []
    assert data == new_build_data()
    assert "KVROUTER_PURE asks for it" in hook.app.warnings[0]


@pytest.mark.parametrize(
    ("implementation", "free_threaded", "says"),
    [("PyPy", 0, "PyPy has no stable ABI"), ("CPython", 1, "free-threaded Python has no stable ABI")],
)
def test_interpreters_without_the_stable_abi_are_left_alone(
    implementation: str, free_threaded: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A core that cannot be loaded is not built."""
    _forget_choices(monkeypatch)
    monkeypatch.setattr(platform, "python_implementation", lambda: implementation)
    monkeypatch.setattr(sysconfig, "get_config_var", lambda _name: free_threaded)

    assert hatch_build.refusal() == says


def test_a_compiler_that_compiles_nothing_is_none(tmp_path: Path) -> None:
    """Such as one that is not there, or one without the C library's headers."""
    source = tmp_path / "source.c"
    source.write_text("int x;", encoding="utf-8")

    for command in (("/nonexistent/cc",), (sys.executable, "-c", "raise SystemExit('no headers')")):
        with pytest.raises(BuildError, match=r"nonexistent|no headers"):
            Compiler(command=command).compile([source], tmp_path / "output")


def test_the_digest_follows_every_source_and_no_line_ending(checkout: Path) -> None:
    """Headers too; a checkout on Windows is the same source."""
    before = hatch_build.source_digest(checkout)
    source = checkout / "kvrouter" / "native" / "module.c"

    source.write_bytes(source.read_bytes().replace(b"\n", b"\r\n"))
    assert hatch_build.source_digest(checkout) == before

    (checkout / "kvrouter" / "native" / "more.h").write_text("", encoding="utf-8")
    assert hatch_build.source_digest(checkout) != before


def test_a_build_by_hand_says_what_it_made_or_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit status tells a script."""
    output = tmp_path / "core.so"
    monkeypatch.setenv(hatch_build.PURE_VARIABLE, "1")

    assert hatch_build.main(["--output", str(output)]) == 1
    assert capsys.readouterr().err == "not built: KVROUTER_PURE asks for it\n"
    assert not output.exists()
