"""Cores built with AddressSanitizer and UBSan, or with ThreadSanitizer, and processes of Python that run on them.

The sanitizers belong to the compiler that the build of the project finds. Python itself is not built with them, so
their library comes first by `LD_PRELOAD`, and Python takes its memory from the C library (`PYTHONMALLOC`), where each
block has an end that is watched. Leaks are looked for at the end of a process: Python leaves some behind too, so only
memory that the core asked for itself is reported here. Objects of Python that the core forgets are `test_memory`'s.
ThreadSanitizer sees what the core touches, and Python's lock, which orders it; it sees nothing that Python touches.
"""

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

import hatch_build

CHECKOUT = Path(hatch_build.__file__).parent
_MEMORY_FLAGS = "-O1 -g -UNDEBUG -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined"
_THREAD_FLAGS = "-O1 -g -UNDEBUG -fno-omit-frame-pointer -fsanitize=thread"
_THREAD_OPTIONS = "halt_on_error=0:exitcode=66:report_signal_unsafe=0"
_FIXED_ADDRESSES = 0x0040000  # ADDR_NO_RANDOMIZE of <sys/personality.h>
_ADDRESS_OPTIONS = (
    "detect_leaks=1:exitcode=0:abort_on_error=1:allocator_may_return_null=1:detect_stack_use_after_return=1"
)
_UNDEFINED_OPTIONS = "halt_on_error=1:abort_on_error=1:print_stacktrace=1"
_LEAKS = ("Direct leak of", "Indirect leak of")
_FINDINGS = re.compile(
    r"^(?:Direct|Indirect) leak of .*?\n\n"
    r"|^[^\n]*(?:ERROR: AddressSanitizer|WARNING: ThreadSanitizer|runtime error:).*\Z",
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
            "TSAN_OPTIONS": _THREAD_OPTIONS,
        }
        return subprocess.Popen(
            [sys.executable, *arguments],
            # Where addresses are very random, ThreadSanitizer may find its own taken. Where this is not allowed, they
            # are as they are.
            preexec_fn=partial(ctypes.CDLL(None).personality, _FIXED_ADDRESSES),  # noqa: PLW1509 - of one thread
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
    return _build(root, folder, flags=_MEMORY_FLAGS, name="AddressSanitizer", library="asan")


def build_for_threads(root: Path, folder: Path) -> SanitizedCore:
    """`build_sanitized` with ThreadSanitizer, which cannot be there together with the others."""
    return _build(root, folder, flags=_THREAD_FLAGS, name="ThreadSanitizer", library="tsan")


def _build(root: Path, folder: Path, *, flags: str, name: str, library: str) -> SanitizedCore:
    output = folder / hatch_build.in_place(root).name
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CFLAGS", flags)
        patch.delenv("LDFLAGS", raising=False)
        try:
            hatch_build.build(root, output)
        except hatch_build.BuildError as problem:
            pytest.fail(f"the core needs a compiler with {name} to be proven, such as gcc: {problem}", False)
    preload = re.search(rb"lib%s\.so\.\d+" % library.encode(), output.read_bytes())
    if preload is None:
        pytest.fail(f"the compiler's {name} cannot be preloaded; with gcc's it works: set CC=gcc", False)
    return SanitizedCore(path=output, preload=preload[0].decode())
