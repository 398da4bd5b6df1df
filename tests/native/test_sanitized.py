"""The tests of the core pass under AddressSanitizer and UBSan too, and neither finds anything, not even a leak.

On Linux, wherever a core may be built at all, a compiler with these sanitizers has to be there: whoever changes C needs
it, so its absence is a failure that says so.
"""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.native.hook import make_checkout
from tests.native.sanitizers import SanitizedCore, build_sanitized, findings

# About as long each, run at the same time. Folders where all of it is about the core, files elsewhere.
SUITES = {
    "index": ["tests/index", "--ignore=tests/index/test_reference.py"],
    "tables": [
        "tests/ingest/test_aliases.py",
        "tests/ingest/test_block_table.py",
        "tests/ingest/test_native_batches.py",
        "tests/ingest/test_runs.py",
        "tests/routing/test_native_refusals.py",
        "tests/routing/test_predictions.py",
        "tests/routing/test_predictions_memory.py",
        "tests/routing/test_rank_load.py",
        "tests/routing/test_weighing.py",
        "tests/routing/test_weighing_memory.py",
    ],
    "readers": [
        "tests/native",
        "--ignore=tests/native/test_build.py",
        "--ignore=tests/native/test_compile.py",
        "--ignore=tests/native/test_installing.py",
        "--ignore=tests/native/test_pages.py",
        "--ignore=tests/native/test_presence.py",
        "--ignore=tests/native/test_sanitized.py",
        "--ignore=tests/native/test_shared_threads.py",
        "--ignore=tests/native/test_threads.py",
        "--ignore=tests/native/test_wheels.py",
        "tests/prompts/test_remembered_pieces.py",
        "tests/prompts/test_token_array.py",
        "tests/proxy/test_http_core.py",
        "tests/subscribers/test_read_ahead.py",
        "tests/subscribers/test_zmtp_frames.py",
    ],
}
# What a core may do wrong, and how it is told.
MISTAKES = {
    "beyond": ("char *at = PyMem_Malloc(7); at[7] = 1; PyMem_Free(at);", "heap-buffer-overflow"),
    "freed": ("char *at = PyMem_Malloc(7); PyMem_Free(at); return PyLong_FromLong(at[0]);", "heap-use-after-free"),
    "stack": (
        "char at[8]; char *volatile far = at + 8; *far = 1;",
        "stack-buffer-overflow",
    ),
    "shift": ("volatile int bits = 40; return PyLong_FromLong(1 << bits);", "shift exponent 40 is too large"),
    "unaligned": ("long at[2] = {0}; return PyLong_FromLong(*(int *)(void *)((char *)at + 1));", "misaligned address"),
    "lost": ("char *volatile at = PyMem_Malloc(7); at[0] = 1;", "leak of 7 byte"),
}
_SUITE_SECONDS_MAX = 1800  # A minute where nobody else works.
_PYTEST = [
    "-m",
    "pytest",
    "-q",
    "-x",
    "-s",
    "--timeout=1200",
    "-p",
    "no:cacheprovider",
    "-p",
    "tests.native.sanitized_core",
]

pytestmark = pytest.mark.timeout(_SUITE_SECONDS_MAX + 60)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, "subprocess.Popen[str]"]]:
    """All suites at once, on one sanitized core."""
    folder = tmp_path_factory.mktemp("sanitized")
    core = build_sanitized(Path(__file__).parents[2], folder)
    with ExitStack() as started:
        running = {}
        for name, paths in SUITES.items():
            arguments = [*_PYTEST, f"--core={core.path}", f"--basetemp={folder / name}", *paths]
            process = core.start(arguments)
            started.callback(_stop, process)
            running[name] = process
        yield running


def _stop(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


@pytest.mark.parametrize("suite", SUITES)
def test_the_sanitizers_find_nothing(suite: str, runs: dict[str, "subprocess.Popen[str]"]) -> None:
    """No wrong access, nothing undefined, nothing lost, in whatever the tests do to the core."""
    process = runs[suite]

    output, _ = process.communicate(timeout=_SUITE_SECONDS_MAX)

    assert findings(output) == []
    assert process.returncode == 0, output
    assert " passed" in output


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory: pytest.TempPathFactory) -> SanitizedCore:
    """A core that makes the mistake whose name `MISTAKE` has."""
    folder = tmp_path_factory.mktemp("mistaken")
    mistakes = "".join(
        f'if (!strcmp(getenv("MISTAKE"), "{name}")) {{ {code} }}' for name, (code, _) in MISTAKES.items()
    )
    make_checkout(folder, before_the_answer=mistakes)
    return build_sanitized(folder, folder)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_would_be_found(mistake: str, mistaken: SanitizedCore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sanitizers that are not at work find nothing either."""
    monkeypatch.setenv("MISTAKE", mistake)
    code = f"from tests.native.hook import load, Path; load(Path({str(mistaken.path)!r})).answer()"

    process = mistaken.start(["-c", code])
    output, _ = process.communicate(timeout=120)

    [told] = findings(output)
    assert MISTAKES[mistake][1] in told
