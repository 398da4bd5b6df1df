"""Tests of the native core need it, and tests of building it need a compiler.

`test_presence` sees to it that neither is missing where it could be there.
"""

import sys
from pathlib import Path

import pytest

import hatch_build
from kvrouter import native_core
from tests.native.hook import make_checkout

collect_ignore = (
    []
    if native_core.present
    else ["test_hashing.py", "test_json_hashes.py", "test_json_tokens.py", "test_memory.py", "test_xxh3.py"]
)
if hatch_build.refusal() is not None or hatch_build.find_compiler() is None:
    collect_ignore.append("test_compile.py")
if hatch_build.refusal() is not None or sys.platform != "linux":
    collect_ignore.append("test_sanitized.py")  # Its tools are Linux's; there a missing compiler is a failure.


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout to build a core from."""
    make_checkout(tmp_path)
    return tmp_path
