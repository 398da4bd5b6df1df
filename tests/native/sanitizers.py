"""Cores built with AddressSanitizer and UBSan, and processes of Python that run on them.

The sanitizers belong to the compiler that the build of the project finds. Python itself is not built with them, so
their library comes first by `LD_PRELOAD`, and Python takes its memory from the C library (`PYTHONMALLOC`), where each
block has an end that is watched. Leaks are looked for at the end of a process: Python leaves some behind too, so only
memory that the core asked for itself is reported here. Objects of Python that the core forgets are `test_memory`'s.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import hatch_build

CHECKOUT = Path(hatch_build.__file__).parent
_FLAGS = "-O1 -g -UNDEBUG -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined"
_ADDRESS_OPTIONS = (
    "detect_leaks=1:exitcode=0:abort_on_error=1:allocator_may_return_null=1:detect_stack_use_after_return=1"
)
_UNDEFINED_OPTIONS = "halt_on_error=1:abort_on_error=1:print_stacktrace=1"
_LEAKS = ("Direct leak of", "Indirect leak of")
_FINDINGS = re.compile(
    r"^(?:Direct|Indirect) leak of .*?\n\n|^[^\n]*(?:ERROR: AddressSanitizer|runtime error:).*\Z",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SanitizedCore:
    """A core that tells of its errors; `preload` is the library that has to come before it."""

    path: Path
    preload: str

    def start(self, arguments: Sequence[str]) -> "subprocess.Popen[str]":
        """Start Python with `arguments` where this core can be loaded; all that is found is in its output."""
        # Whoever measures coverage measures the process that starts this one.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("COV_CORE_")}
        environment = {
            "LD_PRELOAD": self.preload,
            "PYTHONMALLOC": "malloc",
            "ASAN_OPTIONS": _ADDRESS_OPTIONS,
            "UBSAN_OPTIONS": _UNDEFINED_OPTIONS,
        }
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=CHECKOUT,
            env=kept | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def findings(output: str) -> list[str]:
    """What the sanitizers found in a core, one text for each."""
    found = _FINDINGS.findall(output + "\n\n")
    return [text.strip() for text in found if not text.startswith(_LEAKS) or "/kvrouter/native/" in text]


def build_sanitized(root: Path, folder: Path) -> SanitizedCore:
    """Build the core of the checkout at `root` into `folder`; fails the test, in a sentence, where that cannot be."""
    output = folder / hatch_build.in_place(root).name
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CFLAGS", _FLAGS)
        patch.delenv("LDFLAGS", raising=False)
        try:
            hatch_build.build(root, output)
        except hatch_build.BuildError as problem:
            pytest.fail(f"the core needs a compiler with AddressSanitizer to be proven, such as gcc: {problem}", False)
    preload = re.search(rb"libasan\.so\.\d+", output.read_bytes())
    if preload is None:
        pytest.fail("the compiler's AddressSanitizer cannot be preloaded; with gcc's it works: set CC=gcc", False)
    return SanitizedCore(path=output, preload=preload[0].decode())
