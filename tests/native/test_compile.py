"""Where there is a compiler the core is built, with Python's headers or without, for wheels and in place."""

import json
import random
from array import array
from pathlib import Path

import pytest

import hatch_build
from tests.native.hook import CHECKOUT, Hook, load, new_build_data

# Errors for newer compilers, warnings for older ones.
UNDECLARED = "-Werror=implicit-function-declaration -Werror=incompatible-pointer-types -Werror=int-conversion"


@pytest.mark.parametrize("flags", ["", "-DKVR_WITHOUT_PYTHON_H"])
def test_a_module_is_built_with_and_without_pythons_headers(
    checkout: Path, flags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Distributions often leave them out, so our own page of declarations has to be enough."""
    monkeypatch.setenv("CFLAGS", flags)
    output = checkout / hatch_build.in_place(checkout).name

    hatch_build.build(checkout, output)

    module = load(output)
    assert (module.answer(), module.SOURCES) == (42, hatch_build.source_digest(checkout))


@pytest.mark.parametrize("flags", ["", "-DKVR_WITHOUT_PYTHON_H"])
def test_the_whole_core_can_be_built_with_and_without_pythons_headers(
    tmp_path: Path, flags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every name that any part of it uses is declared, since newer compilers take nothing else."""
    monkeypatch.setenv("CFLAGS", f"{flags} {UNDECLARED}")
    output = tmp_path / hatch_build.in_place(CHECKOUT).name

    hatch_build.build(CHECKOUT, output)

    core = load(output)
    assert core.parse_token_array(b"[1, 2]", 0) == (b"\1\0\0\0\2\0\0\0", 6)
    assert hatch_build.source_digest(CHECKOUT) == core.SOURCES


@pytest.mark.parametrize("without", ["SSE2", "AVX2"])
def test_processors_without_the_usual_instructions_read_the_same(
    tmp_path: Path, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done many bytes at a time has a plain form too."""
    monkeypatch.setenv("CFLAGS", f"-O1 -DKVR_WITHOUT_{without}")
    output = tmp_path / hatch_build.in_place(CHECKOUT).name

    hatch_build.build(CHECKOUT, output)

    parse, numbers = load(output).parse_token_array, random.Random(6)
    for _ in range(1000):
        ids = [numbers.randrange(10 ** numbers.randrange(1, 8)) for _ in range(numbers.randrange(1, 400))]
        text = bytearray(json.dumps(ids, separators=(numbers.choice([",", ", ", "\t,\r\n"]), ":")).encode())
        assert parse(bytes(text), 0) == (array("I", ids).tobytes(), len(text))
        text[numbers.randrange(1, len(text) - 1)] = numbers.choice(b"x-.[\x00\xff")
        assert parse(bytes(text), 0) is None


def test_a_wheel_gets_the_core_and_a_tag_that_says_so(checkout: Path) -> None:
    """One build serves Python 3.11 and all later ones, on this platform."""
    hook, data = Hook(checkout), new_build_data()

    hook.initialize("standard", data)

    [(source, target)] = data["force_include"].items()
    assert target == f"kvrouter/{hatch_build.in_place(checkout).name}"
    assert load(Path(source)).answer() == 42
    assert data["pure_python"] is False
    assert data["tag"].startswith("cp311-abi3-")
    assert not hatch_build.in_place(checkout).exists()
    hook.finalize("standard", data, "")
    assert not Path(source).exists()


def test_an_editable_installation_gets_the_core_in_place(checkout: Path) -> None:
    """The wheel itself has nothing in it then."""
    hook, data = Hook(checkout), new_build_data()

    hook.initialize("editable", data)

    assert load(hatch_build.in_place(checkout)).answer() == 42
    assert data == new_build_data()
    assert [each.name for each in (checkout / "kvrouter").iterdir() if each.name.startswith(".")] == []


def test_a_build_that_fails_is_a_warning_and_leaves_no_old_core(checkout: Path) -> None:
    """The installation goes on; what the compiler said is shown."""
    (checkout / "kvrouter" / "native" / "broken.c").write_text("int broken(", encoding="utf-8")
    hatch_build.in_place(checkout).write_bytes(b"an old one")
    for version in ("standard", "editable"):
        hook, data = Hook(checkout), new_build_data()

        hook.initialize(version, data)

        assert data == new_build_data()
        [warning] = hook.app.warnings
        assert "reference implementation" in warning
        assert "broken.c" in warning
    assert not hatch_build.in_place(checkout).exists()
