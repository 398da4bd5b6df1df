"""The native core is in use wherever it can be, is the one of these sources, and is out of use where it is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hatch_build
from kvrouter import native_core

CHECKOUT = Path(hatch_build.__file__).parent
_REPORT = (
    "import json, sys; from kvrouter import native_core, blocks; "
    "print(json.dumps([native_core.implementation, native_core.present, native_core.absence,"
    " 'kvrouter._native' in sys.modules, blocks.sequence_hashes([1, 2, 3, 4], 2).tolist()]))"
)


def _in_a_process(code: str, **environment: str) -> list[object]:
    rest = {name: value for name, value in os.environ.items() if name != native_core.PURE_VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=CHECKOUT,
        env=rest | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    report: list[object] = json.loads(done.stdout)
    return report


def test_the_core_is_here_if_it_can_be_built() -> None:
    """A build that failed without a word would cost a factor of ten, and nobody would know."""
    can_be = hatch_build.refusal() is None and hatch_build.find_compiler() is not None

    assert native_core.present or not can_be, f"{native_core.absence}; in a checkout: python hatch_build.py"


def test_the_core_was_built_from_these_sources() -> None:
    """Tests of an older core would prove nothing."""
    built_from = native_core.native.SOURCES if native_core.present else hatch_build.source_digest(CHECKOUT)

    assert built_from == hatch_build.source_digest(CHECKOUT), "out of date: run `python hatch_build.py`"


def test_a_variable_forces_the_reference() -> None:
    """Then the core is not even loaded, and the answers are the same."""
    usual, forced = _in_a_process(_REPORT), _in_a_process(_REPORT, KVROUTER_PURE="1")

    assert forced[:4] == ["reference", False, "KVROUTER_PURE asks for the reference implementation", False]
    assert forced[4] == usual[4]


def test_a_core_older_than_its_sources_is_not_used(tmp_path: Path) -> None:
    """After an update of a checkout, what the Python code calls may not be in it yet."""
    shutil.copytree(CHECKOUT / "kvrouter", tmp_path / "kvrouter", ignore=shutil.ignore_patterns("__pycache__"))
    for library in (tmp_path / "kvrouter").glob("_native*"):
        os.utime(library, (1, 1))
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {_REPORT}"

    implementation, present, absence, *_ = _in_a_process(code)

    assert (implementation, present) == ("reference", False)
    assert "python hatch_build.py" in str(absence)


def test_the_variable_can_also_say_no() -> None:
    """Only a yes keeps the core out."""
    assert _in_a_process(_REPORT, KVROUTER_PURE="0") == _in_a_process(_REPORT)


def test_a_core_that_is_missing_or_cannot_be_loaded_is_done_without() -> None:
    """With a sentence that says so."""
    block = "import sys; sys.modules['kvrouter._native'] = None; " + _REPORT.replace(
        "'kvrouter._native' in sys.modules", "0"
    )

    implementation, present, absence, *_ = _in_a_process(block)

    assert (implementation, present) == ("reference", False)
    assert str(absence).startswith("the native core is not installed (")


def test_importing_kvrouter_does_not_load_the_core() -> None:
    """Inside an engine nothing of it is needed."""
    code = "import json, sys, kvrouter, kvrouter_publishers; print(json.dumps(['kvrouter._native' in sys.modules]))"

    assert _in_a_process(code, PYTHONPATH=str(CHECKOUT / "publishers")) == [False]
