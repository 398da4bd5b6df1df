"""Tests of the native core need it, and tests of building it need a compiler.

`test_presence` sees to it that neither is missing where it could be there.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import hatch_build
from kvrouter import native_core
from tests.native.hook import make_checkout

_OF_THE_CORE = [
    "test_failing_readers.py",
    "test_failing_tables.py",
    "test_hashing.py",
    "test_histogram.py",
    "test_json_hashes.py",
    "test_json_tokens.py",
    "test_long_histories.py",
    "test_memory.py",
    "test_wheels.py",
    "test_xxh3.py",
]
collect_ignore = [] if native_core.present else _OF_THE_CORE
if find_spec("_testcapi") is None:
    collect_ignore += ["test_failing_readers.py", "test_failing_tables.py"]  # Python's own tool to let memory end.
if hatch_build.refusal() is not None or hatch_build.find_compiler() is None:
    collect_ignore += ["test_compile.py", "test_installing.py"]
if hatch_build.refusal() is not None or sys.platform != "linux":
    # Their tools are Linux's; there a missing compiler is a failure.
    collect_ignore += ["test_sanitized.py", "test_threads.py", "test_shared_threads.py", "test_pages.py"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout to build a core from."""
    make_checkout(tmp_path)
    return tmp_path
